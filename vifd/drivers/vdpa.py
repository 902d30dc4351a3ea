"""vDPA: each endpoint has a device of a network card for itself, which its VM drives as the virtio card that it knows already.

The network card's switch is the network, as with SR-IOV: what it can't do, like a guard by addresses, its ports haven't got.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vifd.drivers.base import NetworkDriver, Planned
from vifd.drivers.functions import Taken
from vifd.errors import NetworkFull, Violation
from vifd.kernel import names
from vifd.kernel.authority import VdpaGrant
from vifd.kernel.ops import BindVdpa, CreateVdpa, Made
from vifd.kernel.vdpa.inventory import VdpaInventory
from vifd.model import EndpointSpec, Feature, Kind, Location, Offer, Port, Preference, VdpaDevice, VdpaPreference

_UNFIT_SECONDS = 60.0


class VdpaOptions(Struct, frozen=True):
    """The keys of a network whose driver is `vdpa`.

    Args:
        management_devices: what makes its devices, each as `vdpa mgmtdev show` names it; all on the same physical network.
        physical_network: what that is called; empty: nothing.
        queues: how many queue pairs a device may have at most.
        mtu: bytes, of a device that asks for none, and the most that one may ask for; 0: the driver's choice, and any.
        repair: whether what somebody else changed of an endpoint is mended, or only told.
    """

    management_devices: tuple[str, ...]
    physical_network: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}\Z")] = ""
    queues: Annotated[int, Meta(ge=1, le=256)] = 1
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 0
    repair: Literal["auto", "report"] = "auto"


class VdpaDriver(NetworkDriver[VdpaOptions]):
    """See the module.

    Args:
        network: the network's name.
        options: the network's keys.
        inventory: what there is of vDPA; None: this host's.
        now: gives the time, in seconds.
    """

    name = "vdpa"
    options = VdpaOptions

    def __init__(
        self,
        network: str,
        options: VdpaOptions,
        inventory: VdpaInventory | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(network, options)
        self._inventory, self._now = inventory or VdpaInventory(), now
        self._unfit: dict[str, tuple[float, str]] = {}

    @classmethod
    def check_options(cls, options: VdpaOptions) -> list[Violation]:
        """See NetworkDriver."""
        key, managers = "management_devices", options.management_devices
        problems = [] if managers else [Violation(key, "is empty: name at least one")]
        problems += [
            Violation(key, f"{name!r} is no vDPA management device: name it as `vdpa mgmtdev show` does, like pci/0000:03:00.2")
            for name in managers
            if not names.is_management_device(name)
        ]
        return problems + [Violation(key, f"has {name} twice") for name, count in Counter(managers).items() if count > 1]

    @classmethod
    def grant(cls, options: VdpaOptions) -> VdpaGrant:
        """See NetworkDriver."""
        return VdpaGrant(options.management_devices, options.queues, options.mtu)

    @classmethod
    def physical_network(cls, options: VdpaOptions) -> str:
        """See NetworkDriver."""
        return options.physical_network

    @property
    def repairs(self) -> bool:
        """See NetworkDriver."""
        return self.config.repair == "auto"

    @property
    def mtu_bytes(self) -> int:
        """See NetworkDriver."""
        return self.config.mtu

    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """See NetworkDriver."""
        features = {Feature.MTU} | ({Feature.MULTI_QUEUE} if self.config.queues > 1 else set())
        problem = "" if spec is None else next(self._refusals(spec), "")
        return (Offer(Kind.VDPA, frozenset(features), problem or self._find_problem()),)

    def pick(self, spec: EndpointSpec, taken: Taken) -> str:
        """Pick a place on a management device on the instance's NUMA node, and of those on the one with the fewest in use."""
        found = [names.parse_place(function) for function in taken]
        in_use = Counter(place[0] for place in found if place is not None)
        fit = [name for name in self._present() if not self._why_unfit(name)]
        if not fit:
            reasons = "; ".join(self._why_unfit(name) for name in self._present())
            words = f"network {self.network} has no management device that takes one more device: {reasons}"
            raise NetworkFull(f"{words}; release an endpoint of it, or use another network")
        node = spec.instance.numa_node
        manager = min(fit, key=lambda name: (node not in (None, self._inventory.numa_node(name)), in_use[name]))
        number = next(number for number in range(len(taken) + 1) if names.place(manager, number) not in taken)
        return names.place(manager, number)

    def note_unfit(self, function: str, reason: str) -> None:
        """See NetworkDriver. A management device that has no room for one has none for another."""
        self._unfit[_manager_of(function)] = (self._now() + _UNFIT_SECONDS, reason)

    def lane(self, function: str) -> str:
        """See NetworkDriver."""
        return _manager_of(function)

    def complete(self, port: Port) -> Port:
        """See NetworkDriver."""
        return port if port.mtu_bytes else msgspec.structs.replace(port, mtu_bytes=self.config.mtu)

    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """See NetworkDriver."""
        wanted, name = _vdpa(preference), names.device_name(Kind.VDPA, endpoint_id)
        if not spec.function:
            raise ValueError(f"endpoint {endpoint_id} has no place at a vDPA management device")
        port = msgspec.structs.replace(self.complete(spec.port), mac=spec.port.mac or names.derived_mac(endpoint_id))
        create = CreateVdpa(endpoint_id, name, self.network, spec.function, port, wanted.queues)
        return Planned((create, BindVdpa(endpoint_id, name, self.network, spec.owner.uid)), port)

    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """See NetworkDriver."""
        return VdpaDevice(made.device_path, names.device_name(Kind.VDPA, endpoint_id), _vdpa(preference).queues)

    def _refusals(self, spec: EndpointSpec) -> Iterator[str]:
        """Say what of a request no device of this network can be."""
        if self.config.mtu and spec.port.mtu_bytes > self.config.mtu:
            yield f"MTU {spec.port.mtu_bytes} is more than the {self.config.mtu} of network {self.network}"
        queues = max((one.queues for one in spec.acceptable if isinstance(one, VdpaPreference)), default=1)
        if queues > self.config.queues > 1:  # with one queue, the offer lacks the feature
            yield f"{queues} queue pairs are more than the {self.config.queues} of network {self.network}"
        if spec.owner.gid is not None:
            yield "a vhost-vdpa node is opened by a user, whatever the group; leave owner.gid out"

    def _find_problem(self) -> str:
        """Say why no device can be made at all, whoever has how many."""
        if (problem := self._inventory.find_problem()) or self._present():
            return problem
        missing = ", ".join(self.config.management_devices)
        return f"network {self.network} has no vDPA management device here: {missing} isn't there; load its driver"

    def _present(self) -> list[str]:
        return [name for name in self.config.management_devices if self._inventory.has(name)]

    def _why_unfit(self, manager: str) -> str:
        """Say why a management device was found unfit a short while ago, or nothing."""
        until, reason = self._unfit.get(manager, (0.0, ""))
        return reason if self._now() < until else ""


def _manager_of(function: str) -> str:
    place = names.parse_place(function)
    return function if place is None else place[0]


def _vdpa(preference: Preference) -> VdpaPreference:
    if not isinstance(preference, VdpaPreference):
        raise TypeError(f"a vDPA network has no {preference.kind}")
    return preference
