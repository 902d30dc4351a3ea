"""NICs with SR-IOV: each endpoint has a VF for itself, which its VM drives as a card of its own, or by a macvtap on it.

The NIC's switch is the network. What it can't do, like a guard by addresses, its ports haven't got; those with a macvtap have it
from the host's kernel, through which their frames go. Where that switch is in mode switchdev, each VF has a representor on the
host, and that is put on a bridge and has what a port of it has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vifd.drivers import abilities, functions
from vifd.drivers.addressing import Addressing
from vifd.drivers.base import NetworkDriver, Planned
from vifd.drivers.functions import FunctionState, FunctionStatus, PfStatus, Taken
from vifd.errors import NetworkFull, Violation
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.ops import (
    BindFunction,
    ClaimFunction,
    ConfigurePort,
    CreateMacvtap,
    EnsureBridge,
    EnsureNode,
    Made,
    Plan,
    below_macvtap,
)
from vifd.kernel.sriov.inventory import Function, Inventory, PhysicalFunction, Slot, allows, explain_mode, is_address
from vifd.model import (
    EndpointSpec,
    Kind,
    Location,
    MacvtapDevice,
    MacvtapMode,
    MacvtapPreference,
    Offer,
    PciDevice,
    PciHostDriver,
    PciPreference,
    Port,
    Preference,
    State,
    Vlan,
)

_DEFAULT_MTU_BYTES = 1500
_UNFIT_SECONDS = 60.0


class SriovOptions(Struct, frozen=True):
    """The keys of a network whose driver is `sriov`.

    Args:
        pfs: the NICs' PFs, each by its netdev's name or its PCI address; all on the same physical network.
        physical_network: what that is called; empty: nothing.
        vlan: the VLAN that its ports are in; 0: none, or the one that a port asks for.
        vfs: how many VFs each PF is to have, made where there are none; 0: as there are. Or which of them may be used: addresses,
            and ranges of them.
        exclude: VFs that are never used, likewise.
        mtu: bytes; 0: the PFs'.
        bridge: where VFs' representors are put, for PFs whose switch is in mode switchdev; made if it is missing, else used as
            it is. Empty: the PFs' own switches are the network.
        repair: whether what somebody else changed of an endpoint is mended, or only told.
    """

    pfs: tuple[str, ...]
    physical_network: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}\Z")] = ""
    vlan: Annotated[int, Meta(ge=0, le=4094)] = 0
    vfs: Annotated[int, Meta(ge=0, le=65535)] | tuple[str, ...] = 0
    exclude: tuple[str, ...] = ()
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 0
    bridge: str = ""
    repair: Literal["auto", "report"] = "auto"


class SriovDriver(NetworkDriver[SriovOptions]):
    """See the module.

    Args:
        network: the network's name.
        options: the network's keys.
        inventory: the PFs and VFs; None: this host's.
        now: gives the time, in seconds.
    """

    name = "sriov"
    options = SriovOptions

    def __init__(
        self,
        network: str,
        options: SriovOptions,
        inventory: Inventory | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(network, options)
        self._inventory, self._now = inventory or Inventory(), now
        self._grant = self.grant(options)
        self._unfit: dict[str, tuple[float, str]] = {}

    @classmethod
    def check_options(cls, options: SriovOptions) -> list[Violation]:
        """See NetworkDriver."""
        problems = [] if options.pfs else [Violation("pfs", "is empty: name at least one PF")]
        problems += [
            Violation("pfs", f"{name!r} is no PF: name its network device, like ens1f0, or its PCI address, like 0000:03:00.0")
            for name in options.pfs
            if not (is_address(name) or names.is_ifname(name)) or names.is_device_name(name)
        ]
        problems += [Violation("pfs", f"has {name} twice") for name, count in Counter(options.pfs).items() if count > 1]
        if isinstance(options.vfs, tuple):
            problems += functions.check("vfs", options.vfs)
            if not options.vfs:
                problems.append(Violation("vfs", "is empty: list the VFs that may be used, or leave it out for all"))
        problems += functions.check("exclude", options.exclude)
        if not problems and isinstance(options.vfs, tuple) and not _usable(options):
            problems.append(Violation("exclude", "leaves none of vfs"))
        if options.bridge and (not names.is_ifname(options.bridge) or options.bridge in options.pfs):
            problems.append(Violation("bridge", f"{options.bridge!r} can't name a bridge: give it a name that no device has"))
        return problems

    @classmethod
    def grant(cls, options: SriovOptions) -> FunctionGrant:
        """See NetworkDriver."""
        is_count = isinstance(options.vfs, int)
        return FunctionGrant(
            pfs=options.pfs,
            vfs=options.vfs if isinstance(options.vfs, int) else 0,
            addresses=() if is_count else _usable(options),
            exclude=functions.expand(options.exclude),
            mtu_bytes=options.mtu,
            vlan=options.vlan,
            bridge=BridgeGrant(options.bridge, mtu_bytes=options.mtu or _DEFAULT_MTU_BYTES) if options.bridge else None,
        )

    @classmethod
    def addressing(cls, options: SriovOptions) -> Addressing:
        """See NetworkDriver."""
        return Addressing(options.bridge)

    @classmethod
    def physical_network(cls, options: SriovOptions) -> str:
        """See NetworkDriver."""
        return options.physical_network

    @property
    def repairs(self) -> bool:
        """See NetworkDriver."""
        return self.config.repair == "auto"

    @property
    def bridge_name(self) -> str:
        """See NetworkDriver."""
        return self.config.bridge

    @property
    def mtu_bytes(self) -> int:
        """See NetworkDriver."""
        return self.config.mtu

    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """See NetworkDriver."""
        problem = self._find_problem()
        if spec is None:
            of_vf = of_macvtap = problem
        else:
            refused = next(self._refusals(spec.port), "")
            of_nic = "" if self.config.bridge else next(abilities.refusals_of_nic(spec.port), "")
            of_vf = refused or of_nic or problem or self._find_vfio_problem(spec)
            of_macvtap = refused or problem or next(abilities.refusals_of_macvtap(spec), "")
        if self.config.bridge:
            of_macvtap = (
                f"network {self.network} has a bridge for its VFs' representors; ask for a VF of it, or for a tap on that bridge"
            )
        features = abilities.REPRESENTED if self.config.bridge else abilities.FUNCTION
        return (Offer(Kind.PCI, features, of_vf), Offer(Kind.MACVTAP, abilities.MACVTAP, of_macvtap))

    def pick(self, spec: EndpointSpec, taken: Taken) -> str:
        """Pick one of a PF that is up, on the instance's NUMA node, on the PF with the fewest in use, with the lowest number."""
        pfs = self._pfs()
        candidates = self._allowed(pfs)
        in_use = Counter(one.pf_address for one in candidates if one.address in taken)
        fit = {pf.address for pf in pfs if not self._mode_problem(pf)}
        free = [one for one in candidates if one.address not in taken and not self._why_unfit(one.address)]
        free = [one for one in free if one.pf_address in fit]
        if not free:
            raise NetworkFull(self._explain_full(candidates, taken))
        node, up = spec.instance.numa_node, {pf.address for pf in pfs if pf.up}

        def rank(one: Slot) -> tuple[bool, bool, int, int, str]:
            is_far = node not in (None, one.numa_node)
            return (one.pf_address not in up, is_far, in_use[one.pf_address], one.vf_index, one.address)

        return min(free, key=rank).address

    def note_unfit(self, function: str, reason: str) -> None:
        """See NetworkDriver."""
        self._unfit[function] = (self._now() + _UNFIT_SECONDS, reason)

    def lane(self, function: str) -> str:
        """See NetworkDriver."""
        return self._inventory.find_pf_address(function) or function  # what is gone keeps nobody waiting

    def complete(self, port: Port) -> Port:
        """See NetworkDriver."""
        if port.vlan is None and self.config.vlan:
            port = msgspec.structs.replace(port, vlan=Vlan(self.config.vlan))
        return port if port.mtu_bytes else msgspec.structs.replace(port, mtu_bytes=self.config.mtu)

    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """See NetworkDriver."""
        function, owner = spec.function, spec.owner
        if not function:
            raise ValueError(f"endpoint {endpoint_id} has no VF that could be claimed")
        port = msgspec.structs.replace(self.complete(spec.port), mac=spec.port.mac or names.derived_mac(endpoint_id))
        if isinstance(preference, MacvtapPreference):
            return Planned(self._plan_macvtap(endpoint_id, spec, port), port)
        claim = ClaimFunction(endpoint_id, self.network, function, port)
        bind = BindFunction(endpoint_id, self.network, function, _pci(preference).host_driver, owner.uid, owner.gid)
        if not self.config.bridge:
            return Planned((claim, bind), port)
        configure = ConfigurePort(endpoint_id, "", self.network, port)
        return Planned((EnsureBridge(self.network), claim, bind, configure), port)

    def _plan_macvtap(self, endpoint_id: str, spec: EndpointSpec, port: Port) -> Plan:
        function, owner, ifname = spec.function, spec.owner, names.device_name(Kind.MACVTAP, endpoint_id)
        return (
            ClaimFunction(endpoint_id, self.network, function, below_macvtap(port)),
            BindFunction(endpoint_id, self.network, function, PciHostDriver.KERNEL, owner.uid, owner.gid),
            CreateMacvtap(endpoint_id, ifname, self.network, port.mac, MacvtapMode.PASSTHRU),
            EnsureNode(endpoint_id, ifname, owner.uid, owner.gid),
            ConfigurePort(endpoint_id, ifname, self.network, port),
        )

    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """See NetworkDriver."""
        if made.function is None:
            raise ValueError(f"nothing is known of the VF of endpoint {endpoint_id}")
        if isinstance(preference, MacvtapPreference):
            return MacvtapDevice(
                ifname=names.device_name(Kind.MACVTAP, endpoint_id),
                ifindex=made.ifindex,
                device_path=made.device_path,
                lower_ifname=made.function.ifname,
                mode=MacvtapMode.PASSTHRU,
                queues=preference.queues,
                vnet_hdr=preference.vnet_hdr,
            )
        wanted, function = _pci(preference), made.function
        return PciDevice(
            address=function.address,
            pf_ifname=function.pf_ifname,
            vf_index=function.vf_index,
            host_driver=wanted.host_driver,
            iommu_group=function.iommu_group,
            vfio_path=function.vfio_path,
            vfio_device_path=function.vfio_device_path,
            ifname=function.ifname,
            numa_node=function.numa_node,
            representor=function.representor,
            representor_ifindex=made.ifindex,
        )

    def physical_functions(self) -> Sequence[PfStatus]:
        """See NetworkDriver."""
        return [self._status(name) for name in self.config.pfs]

    def _status(self, name: str) -> PfStatus:
        pf = self._inventory.find_pf(name)
        if pf is None:
            return PfStatus(name, None, message=self._inventory.explain_pf(name))
        found, wanted = [self._status_of(one) for one in self._inventory.functions(pf)], self._grant.vfs
        message = _problem_of(name, pf) or self._mode_problem(pf)
        if not message and wanted not in (0, pf.vf_count):
            message = f"PF {name} has {pf.vf_count} VFs, and vfs = {wanted} says otherwise; those that there are stay"
        return PfStatus(name, pf, found, message)

    def _status_of(self, one: Function) -> FunctionStatus:
        if not allows(self._grant, one.address):
            return FunctionStatus(one, FunctionState.EXCLUDED, f"the configuration of network {self.network} keeps it out")
        reason = self._why_unfit(one.address)
        return FunctionStatus(one, FunctionState.TAKEN if reason else FunctionState.FREE, reason)

    def _refusals(self, port: Port) -> Iterator[str]:
        """Say what of a port no VF of this network can do, whatever the VM has of it."""
        vlan = port.vlan
        if vlan is not None and not vlan.vid and not self.config.bridge:
            yield f"a VF is in one VLAN: network {self.network} has no trunks"
        elif vlan is not None and self.config.vlan not in (0, vlan.vid):
            yield f"network {self.network} is VLAN {self.config.vlan}, and its ports are in no other; let port.vlan.vid be that"
        if self.config.mtu and port.mtu_bytes > self.config.mtu:
            yield f"MTU {port.mtu_bytes} is more than the {self.config.mtu} of network {self.network}"
        if port.limits is not None and not self.config.bridge:
            yield from abilities.refusals_of_promise(port.limits.from_vm)

    def _find_problem(self) -> str:
        """Say why no VF can be handed out at all, whoever has them."""
        pfs = [pf for pf in self._pfs() if pf.vf_count]
        candidates = self._allowed(pfs)
        if not candidates:
            return self._explain_none()
        if not any(pf.up for pf in pfs):
            return "; ".join(_problem_of(pf.ifname or pf.address, pf) for pf in pfs)
        if all(problems := [self._mode_problem(pf) for pf in pfs]):
            return "; ".join(problems)
        return ""

    def _find_vfio_problem(self, spec: EndpointSpec) -> str:
        """Say why no VF can be passed through."""
        if not any(isinstance(one, PciPreference) and one.host_driver is PciHostDriver.VFIO for one in spec.acceptable):
            return ""
        if spec.owner.gid is not None:
            return "a VFIO node is opened by a user, whatever the group; leave owner.gid out"
        if not any(map(self._inventory.has_iommu, self._allowed(self._pfs()))):
            return "this host has no IOMMU that is switched on, and without one no VM gets a PCI device (vifctl doctor says more)"
        return ""

    def _explain_none(self) -> str:
        found = [(status.name, status) for status in self.physical_functions()]
        reasons = [status.message for _, status in found if status.pf is None]
        reasons += [f"PF {name} has no VFs" for name, one in found if one.pf is not None and not one.functions]
        reasons += [f"each VF of PF {name} is kept out by the configuration" for name, one in found if one.functions]
        return f"network {self.network} has no VF: {'; '.join(reasons)} (vifctl doctor says what to do)"

    def _explain_full(self, candidates: Sequence[Slot], taken: Taken) -> str:
        excluded = sum(len(self._inventory.slots(pf)) for pf in self._pfs()) - len(candidates)
        states = [taken[one.address] for one in candidates if one.address in taken]
        leaving = sum(state is State.RELEASING for state in states)
        others = sum(one.address not in taken and bool(self._why_unfit(one.address)) for one in candidates)
        counts = {
            "in use by endpoints": len(states) - leaving,
            "taken by others on this host": others,
            "not yet as new after a release": leaving,
            "kept out by the configuration": excluded,
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        total = len(candidates) + excluded
        return f"network {self.network} has no free VF: of {total}, {told}; release an endpoint of it, or use another network"

    def _mode_problem(self, pf: PhysicalFunction) -> str:
        return explain_mode(pf.ifname or pf.address, pf, self.config.bridge)

    def _pfs(self) -> list[PhysicalFunction]:
        return self._inventory.find_pfs(self._grant)

    def _allowed(self, pfs: Sequence[PhysicalFunction]) -> list[Slot]:
        """Give the VFs of PFs that the configuration doesn't keep out."""
        return [slot for pf in pfs for slot in self._inventory.slots(pf) if allows(self._grant, slot.address)]

    def _why_unfit(self, function: str) -> str:
        """Say why a VF was found unfit a short while ago, or nothing."""
        until, reason = self._unfit.get(function, (0.0, ""))
        return reason if self._now() < until else ""


def _usable(options: SriovOptions) -> tuple[str, ...]:
    """Give the addresses that the key `vfs` lists, without the excluded ones."""
    listed = options.vfs if isinstance(options.vfs, tuple) else ()
    excluded = set(functions.expand(options.exclude))
    return tuple(address for address in functions.expand(listed) if address not in excluded)


def _problem_of(name: str, pf: PhysicalFunction) -> str:
    if not pf.ifname:
        return f"PF {name} has no network device here: load its driver, or take it out of the namespace that it is in"
    if not pf.vf_count:
        return f"PF {name} has no VFs; it can have {pf.total_vfs}"
    if not pf.up:
        return f"PF {name} is down, and with it its VFs: ip link set {pf.ifname} up"
    return "" if pf.carrier else f"PF {name} has no carrier: what its VFs send out goes nowhere"


def _pci(preference: Preference) -> PciPreference:
    if not isinstance(preference, PciPreference):
        raise TypeError(f"an SR-IOV network has no {preference.kind}")
    return preference
