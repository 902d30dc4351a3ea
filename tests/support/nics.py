"""NICs with SR-IOV, made up: in a sysfs of plain files, and a driver that looks at that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.support.lives import FakeTime
from tests.support.rooms import AUTHORITY, FakeRoom
from tests.support.sysfs import FakeSysfs
from tests.support.worlds import BOOT, World, asked
from vifd.drivers.sriov import SriovDriver, SriovOptions
from vifd.endpoints.leftovers import Leftovers
from vifd.errors import FunctionTaken, HostNotReady, VifdError, WrongState
from vifd.kernel import names, ops
from vifd.kernel.authority import bridge_grant
from vifd.kernel.sriov.inventory import Inventory
from vifd.model import Drift, EndpointRequest, Kind, MacvtapPreference, PciHostDriver, PciPreference

_OF_FUNCTIONS = (ops.ClaimFunction, ops.BindFunction, ops.ChangeFunction)
#: What NicRoom gives every representor.
REPRESENTOR_IFINDEX = 900
#: Two PFs, on a NUMA node each.
PFS = {"ens1f0": "0000:01:00.0", "ens2f0": "0000:81:00.0"}


def vf(pf: int, index: int) -> str:
    """Give the address of a VF by the place of its PF and its number."""
    return f"0000:{(0x01, 0x81)[pf]:02x}:10.{index * 2}"


def two_nics(root: Path, vfs: int = 3) -> FakeSysfs:
    """Make a sysfs with two PFs and their VFs, each in an IOMMU group of its own."""
    sysfs = FakeSysfs(root)
    for place, (ifname, address) in enumerate(PFS.items()):
        sysfs.add_pf(address, ifname, numa_node=place)
        for index in range(vfs):
            sysfs.add_vf(address, index, vf(place, index), iommu_group=place * 10 + index)
    return sysfs


def set_switchdev(sysfs: FakeSysfs) -> None:
    """Put the switches of both PFs into mode switchdev: VF 2 of ens1f0 has representor ens1f0r2."""
    for ifname, address in PFS.items():
        net = sysfs.device(address) / "net"
        ports = [(ifname, "p0"), *((f"{ifname}r{i}", f"pf0vf{i}") for i in range(len(list(net.parent.glob("virtfn*")))))]
        for port, name in ports:
            netdev = net / port if port == ifname else sysfs.add_netdev(address, port, up=False)
            (netdev / "phys_port_name").write_text(f"{name}\n")
            (netdev / "phys_switch_id").write_text(f"{address}\n")


def sriov_driver(sysfs: FakeSysfs, time: FakeTime | None = None, **options: Any) -> SriovDriver:
    """Give the driver of network fast, which looks at a made-up sysfs and clock."""
    return SriovDriver("fast", _options(options), Inventory(sysfs.root), (time or FakeTime()).now)


def _options(keys: Mapping[str, Any]) -> SriovOptions:
    return SriovOptions(**{"pfs": tuple(PFS)} | dict(keys))


class NicRoom(FakeRoom):
    """A kernel in memory whose VFs are those of a made-up sysfs.

    Args:
        sysfs: where they are.
        options: keys of network fast.
    """

    def __init__(self, sysfs: FakeSysfs, options: Mapping[str, Any]) -> None:
        super().__init__(AUTHORITY | {"fast": SriovDriver.grant(_options(options))})
        self._inventory = Inventory(sysfs.root)
        #: By address, the endpoint that a VF is marked for.
        self.claimed: dict[str, str] = {}
        #: VFs that somebody else on the host has.
        self.foreign: set[str] = set()
        #: By address, what a check finds.
        self.drifts: dict[str, list[Drift]] = {}
        #: The plans with VFs that were run, in order.
        self.ran: list[ops.Plan] = []

    def _apply(self, group: ops.Group) -> list[ops.Made] | VifdError:
        before = dict(self.claimed)
        made = super()._apply(group)
        if isinstance(made, VifdError):
            self.claimed = before
        return made

    def _run(self, plan: ops.Plan) -> ops.Made:
        made = super()._run(plan)
        if any(isinstance(one, _OF_FUNCTIONS) for one in plan):
            self.ran.append(plan)
        for operation in plan:
            match operation:
                case ops.ClaimFunction(endpoint_id, _, address, port):
                    if address in self.foreign or self.claimed.get(address, endpoint_id) != endpoint_id:
                        raise FunctionTaken(address, f"VF {address} is somebody else's")
                    self.claimed[address], self.ports[endpoint_id] = endpoint_id, port
                case ops.ConfigurePort(_, ""):
                    made = replace(made, ifindex=REPRESENTOR_IFINDEX)
                case ops.BindFunction(_, _, address):
                    made = replace(made, function=self._found(address))
                case ops.ChangeFunction(endpoint_id, _, address, _, port):
                    if self.claimed.get(address) != endpoint_id:
                        raise WrongState(f"VF {address} is not endpoint {endpoint_id}'s")
                    self.ports[endpoint_id] = port
                    self.drifts.pop(address, None)
                case ops.CreateMacvtap():
                    device = self._create_macvtap(operation)
                    made = replace(made, ifindex=device.ifindex, device_path=device.device_path)
                case _:
                    pass
        return made

    def _found(self, address: str) -> ops.FunctionMade:
        found = self._inventory.find(address)
        if found is None:
            raise HostNotReady(f"VF {address} is gone")
        group = found.iommu_group
        node = f"/dev/vfio/{group}"
        representor = self._inventory.find_representor(found)
        return ops.FunctionMade(
            found.pf_ifname, found.vf_index, group, found.numa_node, node, address=address, representor=representor
        )

    def _create_macvtap(self, operation: ops.CreateMacvtap) -> ops.Device:
        ifname, ifindex, path = operation.ifname, self._take_ifindex(), f"/dev/vifd/{operation.ifname}"
        fields = {"master": 0, "mtu_bytes": 1500, "mac": operation.mac, "up": True, "carrier": False, "device_path": path}
        device = ops.Device(ifname, ifindex, Kind.MACVTAP, operation.endpoint_id, **fields)
        self.devices[operation.endpoint_id] = device
        return device

    def _living(self, endpoint_id: str) -> ops.Device:
        if endpoint_id in self.devices or endpoint_id not in self.claimed.values():
            return super()._living(endpoint_id)
        return ops.Device("", REPRESENTOR_IFINDEX, "", endpoint_id, 0, 0, "", up=False, carrier=False)

    def _configure(self, operation: ops.ConfigurePort | ops.ChangePort) -> int:
        if operation.ifname == names.device_name(Kind.MACVTAP, operation.endpoint_id):
            self.ports[operation.endpoint_id] = operation.port
            return operation.port.mtu_bytes or 1500
        if operation.ifname:
            return super()._configure(operation)
        self.ports[operation.endpoint_id] = operation.port
        return operation.port.mtu_bytes or self.bridges[bridge_grant(self.authority, operation.network).bridge]

    def _check(self, plan: ops.Plan) -> list[Drift]:
        claims = [one for one in plan if isinstance(one, ops.ClaimFunction)]
        return [drift for one in claims for drift in self.drifts.get(one.address, ())] if claims else super()._check(plan)

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        found = await super().inspect(endpoint_ids)
        marked = {} if endpoint_ids else self.claimed
        return found + [
            ops.Device(address, 0, Kind.PCI, endpoint_id, 0, 0, "", up=False, carrier=False)
            for address, endpoint_id in marked.items()
        ]

    def _revert(self, plan: ops.Plan) -> VifdError | None:
        for one in plan:
            if isinstance(one, ops.CreateMacvtap):
                self.devices.pop(one.endpoint_id, None)
            if isinstance(one, ops.ClaimFunction):
                if one.endpoint_id in self._stuck:
                    return self._stuck[one.endpoint_id]
                if self.claimed.get(one.address) == one.endpoint_id:
                    del self.claimed[one.address]
        return super()._revert(plan)


@contextlib.contextmanager
def nic_world(root: Path, **options: Any) -> Iterator[NicWorld]:
    """Give a world with a network fast on two NICs with three VFs each, beside those that every world has.

    Args:
        root: an empty directory.
        options: keys of the network.
    """
    sysfs = two_nics(root / "sys")
    room = NicRoom(sysfs, options)
    with contextlib.closing(NicWorld(root / "journal.db", room, sysfs, options)) as one:
        yield one


class NicWorld(World):
    """See `nic_world`."""

    def __init__(self, path: Path, room: NicRoom, sysfs: FakeSysfs, options: Mapping[str, Any]) -> None:
        super().__init__(path, room)
        self.nics, self.sysfs, self._options = room, sysfs, options
        self.driver = sriov_driver(sysfs, self.time, **options)
        self.drivers["fast"] = self.driver
        self.leftovers = Leftovers(self.registry, self.engine)
        self.journal.set_boot_id(BOOT)

    def restarted(self) -> NicWorld:
        """Give what the next run of vifd is, with the same kernel and file."""
        return NicWorld(self.path, self.nics, self.sysfs, self._options)

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


def macvtap_asked(number: int = 1, **fields: Any) -> EndpointRequest:
    """Give a request for a macvtap on a VF under one of many ids."""
    return asked(number, "fast", (MacvtapPreference(),), **fields)


def vf_asked(number: int = 1, *, driver: PciHostDriver = PciHostDriver.VFIO, **fields: Any) -> EndpointRequest:
    """Give a request for a VF under one of many ids."""
    return asked(number, "fast", (PciPreference(driver),), **fields)
