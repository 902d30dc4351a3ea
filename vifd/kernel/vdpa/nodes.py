"""What vDPA devices are bound to, and whose their character devices are.

The nodes are the kernel's own, given to their owners, with none of vifd's beside them: the kernel takes its node away with the
device and gives the number to the next one at once (vhost_vdpa_ida), so a node that was left behind would open somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vifd.kernel.vdpa.inventory import BUS_DRIVER, VdpaInventory


class VdpaNodes:
    """The vDPA devices that vifd has made, for those who may change them.

    Args:
        inventory: what sysfs shows.
        sysfs: where it is mounted.
        devices: where devtmpfs is.
    """

    def __init__(self, inventory: VdpaInventory, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")) -> None:
        self._inventory, self._sysfs, self._devices = inventory, sysfs, devices

    def bind(self, name: str) -> None:
        """Bind a device to vhost-vdpa: where the kernel has other drivers for vDPA as well, it takes any of them.

        Raises:
            OSError: what the kernel says; EROFS: sysfs is mounted read-only.
        """
        bound, bus = self._inventory.driver(name), self._sysfs / "bus/vdpa"
        if bound == BUS_DRIVER:
            return
        (bus / "devices" / name / "driver_override").write_text(BUS_DRIVER)
        if bound:
            (bus / "devices" / name / "driver/unbind").write_text(name)
        (bus / "drivers_probe").write_text(name)

    def path(self, name: str) -> str:
        """Give the path of a device's node; empty: there is none."""
        with self._open(name) as node:
            return "" if node is None else node[1]

    def udev_name(self, name: str) -> str:
        """Give what udev calls a device's node; empty: there is none."""
        found = self._inventory.node(name)
        return "" if found is None else f"c{found[1]}"

    def give(self, name: str, uid: int) -> None:
        """Let a user open a device, and nobody else; 0: nobody but root.

        Raises:
            OSError: ENODEV where it has no node, or what the kernel says.
        """
        with self._open(name) as node:
            if node is None:
                raise OSError(errno.ENODEV, f"vDPA device {name} has no node")
            # This very node, whatever has its name by now. To change its mode takes its owner.
            path = f"/proc/self/fd/{node[0]}"
            os.chown(path, 0, 0)
            Path(path).chmod(0o600)
            os.chown(path, uid, 0)

    def owner(self, name: str) -> tuple[int, int] | None:
        """Give the owner and the mode of a device's node; None: there is none."""
        with self._open(name) as node:
            if node is None:
                return None
            found = os.fstat(node[0])
            return found.st_uid, stat.S_IMODE(found.st_mode)

    def is_open(self, name: str) -> bool:
        """Tell whether a program has a device open, whose node is root's: it can be opened once (vhost_vdpa_open).

        Raises:
            PermissionError: vifd may not open it (DeviceAllow=).
        """
        with self._open(name) as node:
            if node is None:
                return False
            try:
                os.close(os.open(f"/proc/self/fd/{node[0]}", os.O_RDWR | os.O_CLOEXEC))
            except PermissionError:
                raise
            except OSError as error:
                return error.errno == errno.EBUSY  # what else is wrong with it, nobody has it open
            return False

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, str] | None]:
        """Open a device's node as a place alone (O_PATH), and give its path too; None: there is none, or another device's.

        What it is is read after it is opened: a device that comes in its place has a node of its own.
        """
        found = self._inventory.node(name)
        if found is None:
            yield None
            return
        path = self._devices / found[0]
        try:
            node = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            is_its = self._is_node(node, found[1]) and found == self._inventory.node(name)
            yield (node, str(path)) if is_its else None
        finally:
            os.close(node)

    @staticmethod
    def _is_node(node: int, number: str) -> bool:
        found = os.fstat(node)
        return stat.S_ISCHR(found.st_mode) and f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" == number
