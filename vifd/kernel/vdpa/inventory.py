"""vDPA as sysfs shows it (drivers/vdpa/vdpa.c, drivers/vhost/vdpa.c). It only reads, so it runs in both processes.

This part of sysfs is the same in all network namespaces, other than the netlink by which devices are made.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from vifd.kernel import names

BUS_DRIVER = "vhost_vdpa"
_NODE = "vhost-vdpa-"


class VdpaInventory:
    """The vDPA bus of this host.

    Args:
        sysfs: where it is mounted.
    """

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs

    def has_bus(self) -> bool:
        """Tell whether this kernel has vDPA now, built in or as a loaded module."""
        return (self._sysfs / "bus/vdpa").is_dir()

    def find_problem(self) -> str:
        """Say why this kernel hands no vDPA device to a VM; empty: it does."""
        if not self.has_bus():
            return "this kernel has no vDPA now: load its module (modprobe vdpa), and at each start"
        if not (self._sysfs / "bus/vdpa/drivers" / BUS_DRIVER).is_dir():
            return f"this kernel hands no vDPA device to a VM now: load its module (modprobe {BUS_DRIVER}), and at each start"
        return ""

    def has(self, management_device: str) -> bool:
        """Tell whether there is a device of a management device's name; whether it is one, only netlink says."""
        return names.is_management_device(management_device) and self._parent(management_device).exists()

    def numa_node(self, management_device: str) -> int:
        """Give a management device's NUMA node, which that or the card that it is a part of has; -1: the host doesn't say."""
        device = self._parent(management_device).resolve()
        for one in (device, *device.parents):
            with contextlib.suppress(OSError, ValueError):
                return int((one / "numa_node").read_text())
        return -1

    def driver(self, name: str) -> str:
        """Give what a vDPA device is bound to; empty: nothing, or there is no such device."""
        try:
            return (self._device(name) / "driver").readlink().name
        except OSError:
            return ""

    def node(self, name: str) -> tuple[str, str] | None:
        """Give what the character device of a vDPA device is called, and its number as sysfs writes it; None: there is none."""
        try:
            found = next(iter(sorted(self._device(name).glob(f"{_NODE}*"))), None)
            return None if found is None else (found.name, (found / "dev").read_text().strip())
        except OSError:
            return None

    def _parent(self, management_device: str) -> Path:
        bus, _, name = management_device.rpartition("/")
        return (self._sysfs / "bus" / bus / "devices" if bus else self._sysfs / "devices") / name

    def _device(self, name: str) -> Path:
        if not names.is_device_name(name):
            raise ValueError(f"{name!r} is no name of vifd's")
        return self._sysfs / "bus/vdpa/devices" / name
