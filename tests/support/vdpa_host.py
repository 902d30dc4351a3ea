"""A host with vDPA that does, on a fake sysfs, what the kernel does when somebody speaks netlink to it.

Every step that changes something has a name. Each can be made to fail, and the caller can be made to die at any of them.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.support.sriov_host import Killed
from vifd.kernel.sriov.hardware import Locks, Patience
from vifd.kernel.vdpa.inventory import BUS_DRIVER, VdpaInventory
from vifd.kernel.vdpa.marks import Mark, Marks
from vifd.kernel.vdpa.netlink import ManagementDevice, NetConfig
from vifd.kernel.vdpa.nodes import VdpaNodes
from vifd.kernel.vdpa.tools import Vdpa

FIRST, SECOND, ELSEWHERE = "vdpasim_net", "pci/0000:01:00.2", "pci/0000:02:00.2"
NETNS = 4026531840


def vdpa_sysfs(root: Path, *managers: str) -> Path:
    """Make a sysfs with the vDPA bus, its driver for VMs, and management devices."""
    (root / "bus/vdpa/devices").mkdir(parents=True)
    (root / "bus/vdpa/drivers" / BUS_DRIVER).mkdir(parents=True)
    for one in managers:
        bus, _, name = one.rpartition("/")
        (root / (f"bus/{bus}/devices" if bus else "devices") / name).mkdir(parents=True)
    return root


class FakeVdpaHost:
    """Three management devices, with one queue pair a device, and vhost-vdpa.

    Args:
        path: an empty directory.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.sysfs = path, vdpa_sysfs(path / "sys", FIRST, SECOND, ELSEWHERE)
        self.managers = {name: ManagementDevice(name, is_net=True, max_queues=1) for name in (FIRST, SECOND, ELSEWHERE)}
        self.steps: list[str] = []
        self.die_at = 0
        self.failing: dict[str, OSError] = {}
        #: By name, the management device and what a device tells its VM.
        self.devices: dict[str, tuple[str, NetConfig]] = {}
        #: By name, owner and mode of a device's node; and those that somebody has open.
        self.owners: dict[str, tuple[int, int]] = {}
        self.open: set[str] = set()
        #: Management devices that take no more, and the number that the next device's node gets.
        self.full: set[str] = set()
        self.numbers = 0
        #: What a new device is bound to, and what its driver makes of what it is told.
        self.binds_to = BUS_DRIVER
        self.ignores_mac = self.is_silent = False
        self._opened: list[Vdpa] = []
        Marks.prepare(path / "device_dir").close()

    def step(self, name: str) -> None:
        """Note a step, which may fail."""
        self.steps.append(name)
        if name in self.failing:
            raise self.failing[name]

    def done(self) -> None:
        """Note that a step is done; die after it, if it is the one to die at."""
        if self.die_at and len(self.steps) >= self.die_at:
            raise Killed

    def prepared(self) -> Vdpa:
        """Give what vifd works with, as a helper that begins has it."""
        inventory = VdpaInventory(self.sysfs)
        nodes, marks, patience = FakeNodes(self, inventory), FakeMarks.of(self), Patience(0.05, 0.05, 0.05, 0.05)
        one = Vdpa(FakeNetlink(self), inventory, nodes, marks, Locks(), NETNS, self.path / "udev", patience)
        self._opened.append(one)
        return one

    def close(self) -> None:
        """Close all that was opened here."""
        for one in self._opened:
            one.close()

    def marked(self) -> list[str]:
        """List the devices that are marked."""
        return sorted(path.name for path in (self.path / "device_dir/vdpa").iterdir() if path.name[0] != ".")

    def snapshot(self) -> object:
        """Give all that vifd could have changed."""
        drivers = {name: VdpaInventory(self.sysfs).driver(name) for name in self.devices}
        return self.marked(), dict(self.devices), dict(self.owners), drivers

    def add(self, name: str, manager: str, config: NetConfig) -> None:
        """Do what the kernel does for a new device."""
        self.devices[name] = (manager, config)
        (self.sysfs / "bus/vdpa/devices" / name).mkdir()
        self.bind(name, self.binds_to)

    def bind(self, name: str, driver: str) -> None:
        """Do what the kernel does for a device that a driver takes."""
        device = self.sysfs / "bus/vdpa/devices" / name
        (device / "driver").unlink(missing_ok=True)
        if driver:
            (device / "driver").symlink_to(f"../../drivers/{driver}")
        if driver == BUS_DRIVER:
            number, self.numbers = self.numbers, self.numbers + 1
            (device / f"vhost-vdpa-{number}").mkdir()
            (device / f"vhost-vdpa-{number}/dev").write_text(f"511:{number}\n")
            self.owners[name] = (0, 0o600)

    def delete(self, name: str) -> None:
        """Do what the kernel does for a device that is deleted."""
        if name in self.open:
            raise AssertionError(f"the kernel would wait for whoever has {name} open")
        del self.devices[name]
        self.owners.pop(name, None)
        (self.sysfs / "bus/vdpa/devices" / name).rename(self.path / f"gone-{len(self.steps)}-{name}")


class FakeNetlink:
    """See VdpaNetlink."""

    def __init__(self, host: FakeVdpaHost) -> None:
        self._host = host

    def close(self) -> None:
        """See VdpaNetlink."""

    def find_management_device(self, name: str) -> ManagementDevice | None:
        """See VdpaNetlink."""
        return self._host.managers.get(name)

    def find(self, name: str) -> str | None:
        """See VdpaNetlink."""
        if "find" in self._host.failing:
            raise self._host.failing["find"]
        found = self._host.devices.get(name)
        return None if found is None else found[0]

    def find_config(self, name: str) -> NetConfig | None:
        """See VdpaNetlink."""
        return None if self._host.is_silent else self._host.devices[name][1]

    def add(self, name: str, management_device: str, *, mac: str, mtu_bytes: int, queues: int) -> None:
        """See VdpaNetlink."""
        assert queues <= self._host.managers[management_device].max_queues
        self._host.step("add")
        if management_device in self._host.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if name in self._host.devices:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        mac = "00:00:00:00:00:00" if self._host.ignores_mac else mac
        self._host.add(name, management_device, NetConfig(mac, mtu_bytes or 1500))
        self._host.done()

    def delete(self, name: str) -> None:
        """See VdpaNetlink."""
        self._host.step("delete")
        self._host.delete(name)
        self._host.done()


class FakeNodes(VdpaNodes):
    """Nodes in memory."""

    def __init__(self, host: FakeVdpaHost, inventory: VdpaInventory) -> None:
        super().__init__(inventory)
        self._host = host

    def bind(self, name: str) -> None:
        """See VdpaNodes."""
        if self._inventory.driver(name) != BUS_DRIVER:
            self._host.step("bind")
            self._host.bind(name, BUS_DRIVER)
            self._host.done()

    def path(self, name: str) -> str:
        """See VdpaNodes."""
        found = self._inventory.node(name)
        return "" if found is None else f"/dev/{found[0]}"

    def give(self, name: str, uid: int) -> None:
        """See VdpaNodes."""
        self._host.step(f"give to {uid}")
        self._host.owners[name] = (uid, 0o600)
        self._host.done()

    def owner(self, name: str) -> tuple[int, int] | None:
        """See VdpaNodes."""
        return self._host.owners.get(name)

    def is_open(self, name: str) -> bool:
        """See VdpaNodes."""
        assert self._host.owners.get(name, (0, 0o600)) == (0, 0o600), "root without capabilities opens what is root's alone"
        return name in self._host.open


class FakeMarks(Marks):
    """Real marks, whose every change is a step."""

    _host: FakeVdpaHost

    @classmethod
    def of(cls, host: FakeVdpaHost) -> FakeMarks:
        """Open the marks of a host."""
        marks = cls.prepare(host.path / "device_dir")
        marks._host = host
        return marks

    def create(self, name: str, mark: Mark) -> None:
        """See Marks."""
        self._host.step("mark")
        super().create(name, mark)
        self._host.done()

    def discard(self, name: str) -> None:
        """See Marks."""
        self._host.step("unmark")
        super().discard(name)
        self._host.done()
