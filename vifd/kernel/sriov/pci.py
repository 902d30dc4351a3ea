"""What is written to sysfs of PCI functions (Documentation/ABI/testing/sysfs-bus-pci): nothing else of sysfs is ever opened.

Every path begins at an open sysfs and is made of a checked PCI address and a name of this module. Links on the way are the
kernel's own, which nobody can make or change; what is written to is never one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from vifd.kernel.sriov.inventory import is_address

VFIO = "vfio-pci"
_DRIVER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NONE = "(null)"  # lib/vsprintf.c, for a NULL pointer


class PciBus:
    """The PCI bus of this host, for those who may change it.

    Args:
        sysfs: where it is mounted.
    """

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = os.open(sysfs, _OPEN_DIRECTORY)

    def close(self) -> None:
        """Close sysfs."""
        os.close(self._sysfs)

    def unbind(self, address: str) -> None:
        """Take a function from its driver, if it has one. It returns when the driver has let go.

        Raises:
            OSError: what the kernel says.
        """
        try:
            self._write(address, ("driver", "unbind"), address)
        except FileNotFoundError:
            if self.driver(address):
                raise

    def probe(self, address: str, driver: str) -> None:
        """Bind a function that has no driver to this one, whatever others would take it; see `driver` for what came of it.

        Without an override a VF is bound to nothing where its PF says so (sriov_drivers_autoprobe).

        Raises:
            OSError: what the kernel says.
        """
        self.set_override(address, driver)
        self._write_probe(address)

    def driver(self, address: str) -> str:
        """Give what a function is bound to; empty: nothing.

        Raises:
            OSError: it isn't there.
        """
        device = self._open(address)
        try:
            return Path(os.readlink("driver", dir_fd=device)).name
        except FileNotFoundError:
            return ""
        finally:
            os.close(device)

    def has_driver(self, driver: str) -> bool:
        """Tell whether the kernel has a driver now, built in or as a loaded module."""
        return _DRIVER.fullmatch(driver) is not None and self._exists(f"bus/pci/drivers/{driver}")

    def override(self, address: str) -> str:
        """Give which driver alone may have a function; empty: any."""
        device = self._open(address)
        try:
            fd = os.open("driver_override", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=device)
        finally:
            os.close(device)
        try:
            text = os.read(fd, 256).decode(errors="replace").strip()
        finally:
            os.close(fd)
        return "" if text == _NONE else text

    def set_override(self, address: str, driver: str) -> None:
        """Say which driver alone may have a function; empty: any.

        Raises:
            OSError: what the kernel says.
        """
        if driver and _DRIVER.fullmatch(driver) is None:
            raise OSError(errno.EINVAL, f"{driver!r} can't name a driver")
        self._write(address, ("driver_override",), driver or "\n")  # an empty line: nothing at all would change nothing

    def reset(self, address: str) -> None:
        """Reset a function (FLR, or what else it can).

        Raises:
            OSError: what the kernel says; ENOENT: it can't be reset by itself.
        """
        self._write(address, ("reset",), "1")

    def set_vf_count(self, address: str, count: int) -> None:
        """Make a PF's VFs.

        Raises:
            OSError: what the kernel says.
        """
        self._write(address, ("sriov_numvfs",), str(count))

    def _open(self, address: str) -> int:
        """Open a function's directory."""
        if not is_address(address):
            raise OSError(errno.EINVAL, f"{address!r} is no PCI address")
        return os.open(f"bus/pci/devices/{address}", _OPEN_DIRECTORY, dir_fd=self._sysfs)

    def _write(self, address: str, path: tuple[str, ...], text: str) -> None:
        """Write an attribute of a function."""
        _write_to(self._open(address), path, text)

    def _write_probe(self, address: str) -> None:
        """Let the kernel look for a driver of a function."""
        _write_to(os.open("bus/pci", _OPEN_DIRECTORY, dir_fd=self._sysfs), ("drivers_probe",), address)

    def _exists(self, path: str) -> bool:
        try:
            os.stat(path, dir_fd=self._sysfs)
        except FileNotFoundError:
            return False
        return True


def _write_to(directory: int, path: tuple[str, ...], text: str) -> None:
    """Write an attribute below a directory, which is closed then."""
    *folders, name = path
    try:
        for folder in folders:
            inner = os.open(folder, _OPEN_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
