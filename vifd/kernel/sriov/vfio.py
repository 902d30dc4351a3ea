"""The character devices through which a VF at vfio-pci is opened (Documentation/driver-api/vfio.rst): whose they are.

`/dev/vfio/N` is an IOMMU group's, `/dev/vfio/devices/vfioN` the VF's own, for iommufd, where the kernel has that.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vifd.kernel.sriov.inventory import Function


class VfioNodes:
    """The nodes of VFs. Others than the kernel's own are never touched: the number in sysfs decides.

    Args:
        sysfs: where it is mounted.
        devices: where devtmpfs is.
    """

    def __init__(self, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")) -> None:
        self._sysfs, self._devices = sysfs, devices

    def group_path(self, function: Function) -> str:
        """Give the node of a VF's IOMMU group; empty: there is none."""
        path = self._devices / "vfio" / str(function.iommu_group)
        return str(path) if self._is_node(path, self._sysfs / "class/vfio" / path.name / "dev") else ""

    def device_path(self, function: Function) -> str:
        """Give a VF's own node; empty: there is none."""
        folder = self._sysfs / "bus/pci/devices" / function.address / "vfio-dev"
        for name in _list(folder):
            path = self._devices / "vfio/devices" / name
            if self._is_node(path, folder / name / "dev"):
                return str(path)
        return ""

    def paths(self, function: Function) -> list[str]:
        """Give all nodes of a VF."""
        return [path for path in (self.group_path(function), self.device_path(function)) if path]

    def udev_names(self, function: Function) -> list[str]:
        """Give what udev calls the nodes of a VF."""
        numbers = [os.lstat(path).st_rdev for path in self.paths(function)]
        return [f"c{os.major(number)}:{os.minor(number)}" for number in numbers]

    def give(self, function: Function, uid: int) -> None:
        """Let a user open a VF, and nobody else.

        Raises:
            OSError: ENODEV where it has no node, or what the kernel says.
        """
        paths = self.paths(function)
        if not paths:
            raise OSError(errno.ENODEV, f"VF {function.address} has no VFIO node")
        for path in paths:
            os.chown(path, 0, 0, follow_symlinks=False)  # to change its mode takes its owner
            Path(path).chmod(0o600)
            os.chown(path, uid, 0, follow_symlinks=False)

    def take_back(self, function: Function) -> None:
        """Let nobody but root open a VF.

        Raises:
            OSError: what the kernel says.
        """
        for path in self.paths(function):
            os.chown(path, 0, 0, follow_symlinks=False)
            Path(path).chmod(0o600)

    def owners(self, function: Function) -> dict[str, tuple[int, int]]:
        """Give the owner and the mode of each node of a VF."""
        found = {path: os.lstat(path) for path in self.paths(function)}
        return {path: (one.st_uid, stat.S_IMODE(one.st_mode)) for path, one in found.items()}

    def is_open(self, function: Function) -> bool:
        """Tell whether a program has a VF open, whose nodes are root's: a group can be opened once, by either node of it
        (drivers/vfio/group.c).

        Raises:
            OSError: what the kernel says; EPERM: vifd may not open it (DeviceAllow=).
        """
        path = self.group_path(function)
        if not path:
            return False
        try:
            os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return True
        return False

    def neighbours(self, function: Function) -> list[str]:
        """Give the other functions of a VF's IOMMU group that aren't bridges: whoever has one has them all."""
        folder = self._sysfs / "kernel/iommu_groups" / str(function.iommu_group) / "devices"
        return [name for name in _list(folder) if name != function.address and not _is_bridge(folder / name)]

    def _is_node(self, path: Path, number: Path) -> bool:
        try:
            major, minor = number.read_text().split(":")
            found = path.lstat()
        except (OSError, ValueError):
            return False
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(int(major), int(minor))


def is_vfio(driver: str) -> bool:
    """Tell whether a driver hands functions to VMs: vfio-pci, or a vendor's own like mlx5_vfio_pci."""
    return driver.replace("_", "-").endswith("vfio-pci")


def _is_bridge(device: Path) -> bool:
    try:
        return device.joinpath("class").read_text().startswith("0x0604")  # linux/pci_ids.h, PCI_CLASS_BRIDGE_PCI
    except OSError:
        return False


def _list(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
