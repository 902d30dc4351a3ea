"""A host with SR-IOV that does, on a fake sysfs, what the kernel does when somebody writes there or speaks rtnetlink to a PF.

Every step that changes something has a name. Each can be made to fail, and the caller can be made to die at any of them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.support.sysfs import FakeSysfs
from vifd.kernel import names
from vifd.kernel.netlink import Reply
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import Elements
from vifd.kernel.nft.guard import NoGuard
from vifd.kernel.sriov.hardware import Hardware, Locks, Patience
from vifd.kernel.sriov.inventory import Function, Inventory
from vifd.kernel.sriov.marks import Mark, Marks, RepresentorMark
from vifd.kernel.sriov.nic import Netdev
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.settings import NO_MAC, Setting, VfSettings
from vifd.kernel.sriov.vfio import VfioNodes, is_vfio

PFS = {"eth0": "0000:01:00.0", "eth1": "0000:02:00.0"}
HOST_DRIVER = "igbvf"
_FIELDS = {
    Setting.VLAN: ("vid", "qos", "protocol"),
    Setting.MAC: ("mac",),
    Setting.SPOOF_CHECK: ("spoof_check",),
    Setting.TRUST: ("trusted",),
    Setting.RATE: ("min_rate_mbps", "max_rate_mbps"),
    Setting.LINK_STATE: ("link_state",),
}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def no_guards() -> Guards:
    """Give the guard of a kernel that has none."""
    nothing = NoGuard("no nftables here")
    return Guards(nothing, nothing)


class NotingGuards(Guards):
    """The guard of a kernel that has none, that notes what it is to forget as a step."""

    def __init__(self, host: FakeHost) -> None:
        nothing = NoGuard("no nftables here")
        super().__init__(nothing, nothing)
        self._host = host

    def put(self, ports: Mapping[int, Elements], standing: frozenset[int] = frozenset()) -> None:
        """See Guards."""
        super().put(ports, standing)
        for ifindex in ports:
            netdev = next(one for one in self._host.netdevs.values() if one.ifindex == ifindex)
            self._host.step(f"forget guard of {netdev.ifname}")
        self._host.done()


def vf_address(pf: str, index: int) -> str:
    """Give a VF's address: two PFs, each with functions at 10.0, 10.2, and so on."""
    device, function = divmod(index * 2, 8)
    return f"{PFS[pf][:8]}{0x10 + device:02x}.{function}"


class FakeHost:
    """Two PFs with VFs that are bound to the host's driver, each VF in an IOMMU group of its own.

    Args:
        path: an empty directory.
        vfs: how many VFs each PF has.
    """

    def __init__(self, path: Path, *, vfs: int = 2) -> None:
        self.sysfs = FakeSysfs(path / "sys")
        self.path = path
        self.steps: list[str] = []
        self.die_at = 0
        self.failing: dict[str, OSError] = {}
        self.refused: dict[Setting, int] = {}
        self.ignored: set[Setting] = set()
        self.refused_steps: set[str] = set()
        self.open_groups: set[int] = set()
        self.node_owners: dict[int, tuple[int, int]] = {}
        self.settings: dict[tuple[str, int], VfSettings] = {}
        self.netdevs: dict[str, Netdev] = {}
        self.addressed: set[int] = set()
        self._opened: list[Hardware] = []
        for driver in (HOST_DRIVER, "vfio-pci"):
            self.sysfs.add_driver(driver)
        group = 10
        for ifname, address in PFS.items():
            self.sysfs.add_pf(address, ifname)
            self.add_netdev(address, ifname, up=True)
            for index in range(vfs):
                self.sysfs.add_vf(address, index, vf_address(ifname, index), iommu_group=group, driver="")
                self.settings[ifname, index] = VfSettings()
                self.bind(vf_address(ifname, index), HOST_DRIVER)
                group += 1
        Marks.prepare(path / "device_dir").close()

    def step(self, name: str) -> None:
        """Note a step, which may fail; and die after it, if it is the one to die at."""
        self.steps.append(name)
        if name in self.failing:
            raise self.failing[name]

    def done(self) -> None:
        """Note that a step is done."""
        if self.die_at and len(self.steps) >= self.die_at:
            raise Killed

    def open(self) -> Hardware:
        """Give what vifd works with, as a helper that begins has it."""
        hardware = Hardware(
            Inventory(self.sysfs.root),
            FakePciBus(self),
            FakeNodes(self),
            FakeMarks.of(self),
            Locks(),
            set(),
            libvirt=self.path / "libvirt",
            udev=self.path / "udev",
            patience=Patience(0.05, 0.05, 0.05, 0.05),
        )
        self._opened.append(hardware)
        return hardware

    def close(self) -> None:
        """Close all that was opened here."""
        for hardware in self._opened:
            hardware.close()

    def snapshot(self) -> object:
        """Give all that vifd could have changed."""
        marks = sorted(path.name for path in (self.path / "device_dir/functions").iterdir() if path.name[0] != ".")
        drivers = {path.name: self.driver(path.name) for path in self.sysfs.root.glob("bus/pci/devices/*")}
        overrides = {path.name: (path / "driver_override").read_text() for path in self.sysfs.root.glob("bus/pci/devices/*")}
        counts = {address: (self.sysfs.device(address) / "sriov_numvfs").read_text() for address in PFS.values()}
        netdevs = {name: netdev._replace(ifindex=0) for name, netdev in self.netdevs.items()}  # a new one has a new index
        return marks, drivers, overrides, dict(self.node_owners), dict(self.settings), netdevs, counts

    def driver(self, address: str) -> str:
        """Give what a function is bound to."""
        link = self.sysfs.device(address) / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def function(self, address: str) -> Function:
        """Give a VF as sysfs shows it."""
        found = Inventory(self.sysfs.root).find(address)
        assert found is not None
        return found

    def add_netdev(self, address: str, ifname: str, *, up: bool, mac: str = "02:00:00:00:00:01") -> None:
        """Give a function a netdev; it is in sysfs of PFs already."""
        path = self.sysfs.device(address) / "net" / ifname
        if not path.exists():
            self.sysfs.add_netdev(address, ifname, up=up)
        self.netdevs[ifname] = Netdev(int((path / "ifindex").read_text()), ifname, 1500, mac, up)

    def set_switchdev(self, pf: str) -> list[str]:
        """Do what a driver does whose switch goes into mode switchdev: give the representors of the PF's VFs, by number."""
        device, names_of = self.sysfs.device(PFS[pf]), []
        (device / "net" / pf / "phys_switch_id").write_text(f"{pf}\n")
        (device / "net" / pf / "phys_port_name").write_text("p0\n")
        for index in range(len(list(device.glob("virtfn*")))):
            names_of.append(f"{pf}r{index}")
            netdev = self.sysfs.add_netdev(PFS[pf], names_of[-1], up=False, port_name=f"pf0vf{index}")
            (netdev / "phys_switch_id").write_text(f"{pf}\n")
            self.add_netdev(PFS[pf], names_of[-1], up=False, mac=f"02:00:00:00:01:{index:02x}")
        return names_of

    def bind(self, address: str, driver: str) -> None:
        """Do what a driver does that takes a function."""
        self.sysfs.bind(address, driver)
        function = self.function(address)
        if is_vfio(driver):
            self.node_owners[function.iommu_group] = (0, 0o600)
        else:
            mac = self.settings[function.pf_ifname, function.vf_index].mac
            self.add_netdev(address, f"{function.pf_ifname}v{function.vf_index}", up=False, mac=mac)

    def unbind(self, address: str) -> None:
        """Do what a driver does that lets a function go."""
        function = self.function(address)
        assert function.iommu_group not in self.open_groups, "the kernel would wait for a program to close it"
        self.netdevs.pop(function.ifname, None)
        self.node_owners.pop(function.iommu_group, None)
        self.sysfs.unbind(address)

    def rename(self, address: str, netdev: Netdev) -> None:
        """Give a function's netdev another name."""
        del self.netdevs[self.function(address).ifname]
        self.sysfs.remove_netdev(address)
        self.sysfs.add_netdev(address, netdev.ifname, up=netdev.up, ifindex=netdev.ifindex)
        self.netdevs[netdev.ifname] = netdev


class FakePciBus(PciBus):
    """Writes as the real one does, and has the host do what the kernel would."""

    def __init__(self, host: FakeHost) -> None:
        super().__init__(host.sysfs.root)
        self._host = host

    def _write(self, address: str, path: tuple[str, ...], text: str) -> None:
        super()._write(address, path, "")  # to find out whether it is there
        name = path[-1]
        self._host.step(name if name != "driver_override" else f"driver_override {text.strip()}".strip())
        device = self._host.sysfs.device(address)
        if name == "driver_override":
            (device / name).write_text(f"{text.strip() or '(null)'}\n")
        elif name == "unbind":
            self._host.unbind(address)
        elif name == "sriov_numvfs":
            (device / name).write_text(text)
        self._host.done()

    def _write_probe(self, address: str) -> None:
        super()._write_probe(address)
        self._host.step("drivers_probe")
        wanted = self.override(address) or HOST_DRIVER
        if not self._host.driver(address) and self.has_driver(wanted):
            self._host.bind(address, wanted)
        self._host.done()


class FakeNodes(VfioNodes):
    """Nodes that nobody has to be root for."""

    def __init__(self, host: FakeHost) -> None:
        super().__init__(host.sysfs.root)
        self._host = host

    def group_path(self, function: Function) -> str:
        """See VfioNodes."""
        return f"/dev/vfio/{function.iommu_group}" if function.iommu_group in self._host.node_owners else ""

    def device_path(self, function: Function) -> str:
        """See VfioNodes."""
        return ""

    def udev_names(self, function: Function) -> list[str]:
        """See VfioNodes."""
        return [f"c244:{function.iommu_group}"]

    def give(self, function: Function, uid: int) -> None:
        """See VfioNodes."""
        self._host.step("give")
        self._host.node_owners[function.iommu_group] = (uid, 0o600)
        self._host.done()

    def take_back(self, function: Function) -> None:
        """See VfioNodes."""
        if self.group_path(function):
            self._host.step("take back")
            self._host.node_owners[function.iommu_group] = (0, 0o600)
            self._host.done()

    def owners(self, function: Function) -> dict[str, tuple[int, int]]:
        """See VfioNodes."""
        path = self.group_path(function)
        return {path: self._host.node_owners[function.iommu_group]} if path else {}

    def is_open(self, function: Function) -> bool:
        """See VfioNodes."""
        if "open" in self._host.failing:
            raise self._host.failing["open"]
        return function.iommu_group in self._host.open_groups


class FakeMarks(Marks):
    """Real marks, whose every change is a step."""

    _host: FakeHost

    @classmethod
    def of(cls, host: FakeHost) -> FakeMarks:
        """Open the marks of a host."""
        marks = cls.prepare(host.path / "device_dir")
        assert isinstance(marks, FakeMarks)
        marks._host = host
        return marks

    def create(self, address: str, mark: Mark) -> None:
        """See Marks."""
        self._host.step("mark")
        super().create(address, mark)
        self._host.done()

    def discard(self, address: str) -> None:
        """See Marks."""
        self._host.step("unmark")
        super().discard(address)
        self._host.done()


class FakeNic:
    """See Nic."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def find_netdev(self, ifname: str) -> Netdev | None:
        """See Nic."""
        return self._host.netdevs.get(ifname)

    def has_addresses(self, ifindex: int) -> bool:
        """See Nic."""
        return ifindex in self._host.addressed

    def read_vf(self, pf: Netdev, vf_index: int) -> VfSettings:
        """See Nic."""
        return self._host.settings[pf.ifname, vf_index]

    def set_vf(self, pf: Netdev, vf_index: int, setting: Setting, settings: VfSettings) -> Reply:
        """See Nic."""
        self._host.step(f"set {setting}")
        if number := self._host.refused.get(setting, 0):
            return Reply(number, "no")
        if setting is Setting.MAC and settings.mac == NO_MAC and "no zeroes" in self._host.failing:
            return Reply(errno.EADDRNOTAVAIL, "no")
        if setting not in self._host.ignored:
            known, fields = self._host.settings[pf.ifname, vf_index], {name: getattr(settings, name) for name in _FIELDS[setting]}
            self._host.settings[pf.ifname, vf_index] = msgspec.structs.replace(known, **fields)
        self._host.done()
        return Reply(0)

    def set_up(self, netdev: Netdev) -> Reply:
        """See Nic."""
        return self._change(netdev, "up", up=True)

    def name(self, netdev: Netdev, ifname: str, alias: str) -> Reply:
        """See Nic."""
        self._host.step("name")
        address = (self._host.sysfs.root / "class/net" / netdev.ifname / "device").resolve().name
        self._host.rename(address, netdev._replace(ifname=ifname, alias=alias, up=False))
        self._host.done()
        return Reply(0)

    def configure(self, netdev: Netdev, mac: str, mtu_bytes: int, *, up: bool, silent: bool = False) -> Reply:
        """See Nic."""
        return self._change(netdev, "configure", mac=mac, mtu_bytes=mtu_bytes, up=up)

    def describe(self, netdev: Netdev) -> RepresentorMark:
        """See Nic."""
        return RepresentorMark(netdev.ifname, netdev.alias, netdev.mtu_bytes, 0)

    def mark(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """See Nic."""
        return self._change(netdev, "mark representor", alias=names.mark(endpoint_id))

    def detach(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """See Nic."""
        return self._change(netdev, "detach", up=False, master=0)

    def restore(self, netdev: Netdev, endpoint_id: str, before: RepresentorMark) -> Reply:
        """See Nic."""
        return self._change(netdev, "restore", alias=before.alias, mtu_bytes=before.mtu_bytes)

    def _change(self, netdev: Netdev, step: str, **fields: object) -> Reply:
        self._host.step(step)
        if step in self._host.refused_steps:
            return Reply(errno.EBUSY, "no")
        self._host.netdevs[netdev.ifname] = self._host.netdevs[netdev.ifname]._replace(**fields)
        self._host.done()
        return Reply(0)
