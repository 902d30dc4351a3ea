"""Whose a VF is: a file of root's for each VF that vifd has taken, for a VF that a VM has holds no mark of its own.

It is there before anything of the VF is touched, and goes when all of it is as it was. It says how the VF was found, so that
whoever comes after a helper that died knows how to put it back. The directory is on devtmpfs: a new start of the host leaves
neither marks nor VFs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

import msgspec
from msgspec import Struct

from vifd.kernel.sriov.inventory import is_address
from vifd.kernel.sriov.settings import VfSettings

#: Below the device directory.
FOLDER = "functions"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAXIMUM_BYTES = 4096


class RepresentorMark(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a VF's representor as it was found.

    Args:
        ifname: its name, which it keeps.
        alias: its ifalias.
        mtu_bytes: its MTU.
        ipv6_mode: how it makes its IPv6 link-local address (linux/if_link.h, IN6_ADDR_GEN_MODE_*).
    """

    ifname: str
    alias: str
    mtu_bytes: int
    ipv6_mode: int


class Mark(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a VF that vifd has taken.

    Args:
        endpoint_id: for whom.
        pf_address: the PF that it is of.
        driver: what it was bound to; empty: nothing.
        driver_override: which driver alone might have it; empty: any.
        settings: what its PF had been told of it.
        representor: what its endpoint is attached through; None: the VF alone.
    """

    endpoint_id: str
    pf_address: str
    driver: str
    driver_override: str
    settings: VfSettings
    representor: RepresentorMark | None = None


class MarksError(Exception):
    """No VF can be marked here; its text says what the administrator has to do."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Mark).decode


class Marks:
    """The marks in a directory; all that run on a host with the same directory share them.

    Args:
        path: the directory.
        directory: it, open.
    """

    def __init__(self, path: Path, directory: int) -> None:
        self._path, self._directory = path, directory

    @classmethod
    def prepare(cls, device_dir: Path) -> Marks:
        """Make the directory if it is missing, and delete what a helper that died has left half made. Call it as root.

        Raises:
            MarksError: it is somebody else's, or no directory.
        """
        path = device_dir / FOLDER
        try:
            for one in (device_dir, path):
                one.mkdir(mode=0o711, parents=True, exist_ok=True)
                found = one.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    rule = "has to be a directory that root alone may change; move it away, or chown it"
                    raise MarksError(f"daemon.device_dir: {one} {rule}")
            for left in path.glob(".*"):
                left.unlink()
            return cls(path, os.open(path, _OPEN_DIRECTORY))
        except OSError as error:
            raise MarksError(f"daemon.device_dir: {path} can't be used for marks of VFs: {error.strerror}") from error

    def close(self) -> None:
        """Close the directory."""
        os.close(self._directory)

    def create(self, address: str, mark: Mark) -> None:
        """Mark a VF.

        Raises:
            FileExistsError: it is marked.
            OSError: it can't be marked.
        """
        new, address = f".{secrets.token_hex(8)}", _checked(address)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            try:
                os.write(fd, _encode(mark))
            finally:
                os.close(fd)
            # Not renamed: of two that want one VF at once, the second has to fail.
            os.link(new, address, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        finally:
            os.unlink(new, dir_fd=self._directory)

    def find(self, address: str) -> Mark | None:
        """Read a VF's mark; None: it has none.

        Raises:
            OSError: it can't be read, or isn't vifd's.
        """
        try:
            fd = os.open(_checked(address), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        try:
            return _decode(os.read(fd, _MAXIMUM_BYTES))
        except msgspec.MsgspecError as error:
            raise OSError(errno.EINVAL, f"the mark of VF {address} isn't vifd's: {error}") from error
        finally:
            os.close(fd)

    def find_of(self, address: str, endpoint_id: str) -> Mark | None:
        """Read a VF's mark; None: it has none, or another endpoint's.

        Raises:
            OSError: it can't be read.
        """
        mark = self.find(address)
        return mark if mark is not None and mark.endpoint_id == endpoint_id else None

    def discard(self, address: str) -> None:
        """Take a VF's mark away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_checked(address), dir_fd=self._directory)

    def addresses(self) -> list[str]:
        """List the VFs that are marked."""
        return sorted(path.name for path in self._path.iterdir() if is_address(path.name))

    def find_all(self) -> dict[str, Mark]:
        """Read the marks of all VFs that are marked; what isn't vifd's is left out."""
        found = dict[str, Mark]()
        for address in self.addresses():
            with contextlib.suppress(OSError):
                if (mark := self.find(address)) is not None:
                    found[address] = mark
        return found


def _checked(address: str) -> str:
    """Give an address that can name a file here and nothing else.

    Raises:
        OSError: it is none.
    """
    if not is_address(address):
        raise OSError(errno.EINVAL, f"{address!r} is no PCI address")
    return address
