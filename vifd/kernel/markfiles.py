"""Whose a device is that holds no mark of its own: a file of root's for each one that vifd has taken or made.

It is there before anything of the device is touched, and goes when the device is as it was, or gone. The directory is on
devtmpfs: a new start of the host leaves neither marks nor devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import msgspec

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAXIMUM_BYTES = 4096


class MarksError(Exception):
    """Nothing can be marked here; its text says what the administrator has to do."""


class AnyMark(Protocol):
    """What every mark says."""

    @property
    def endpoint_id(self) -> str:
        """For whom."""


MarkT = TypeVar("MarkT", bound=AnyMark)
_encode = msgspec.json.Encoder().encode


class MarkFiles(Generic[MarkT]):
    """The marks in a directory; all that run on a host with the same directory share them.

    Args:
        path: the directory.
        directory: it, open.
    """

    #: Below the device directory.
    folder: ClassVar[str]
    #: What is marked, in a word, and what names it.
    what: ClassVar[str]
    named_by: ClassVar[str]
    mark_type: ClassVar[type]

    def __init__(self, path: Path, directory: int) -> None:
        self._path, self._directory = path, directory
        self._decode: Callable[[bytes], MarkT] = msgspec.json.Decoder(self.mark_type).decode

    @staticmethod
    def is_name(text: str) -> bool:
        """Tell whether a text can name a device of this sort."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, device_dir: Path) -> Self:
        """Make the directory if it is missing, and delete what a helper that died has left half made. Call it as root.

        Raises:
            MarksError: it is somebody else's, or no directory.
        """
        path = device_dir / cls.folder
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
            raise MarksError(f"daemon.device_dir: {path} can't be used for marks of {cls.what}s: {error.strerror}") from error

    @classmethod
    def has_any(cls, device_dir: Path) -> bool:
        """Tell whether a device is left that an earlier helper has marked."""
        try:
            return any(cls.is_name(path.name) for path in (device_dir / cls.folder).iterdir())
        except OSError:
            return False

    def close(self) -> None:
        """Close the directory."""
        os.close(self._directory)

    def create(self, name: str, mark: MarkT) -> None:
        """Mark a device.

        Raises:
            FileExistsError: it is marked.
            OSError: it can't be marked.
        """
        new, name = f".{secrets.token_hex(8)}", self._checked(name)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            try:
                os.write(fd, _encode(mark))
            finally:
                os.close(fd)
            # Not renamed: of two that want one device at once, the second has to fail.
            os.link(new, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        finally:
            os.unlink(new, dir_fd=self._directory)

    def find(self, name: str) -> MarkT | None:
        """Read a device's mark; None: it has none.

        Raises:
            OSError: it can't be read, or isn't vifd's.
        """
        try:
            fd = os.open(self._checked(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        try:
            return self._decode(os.read(fd, _MAXIMUM_BYTES))
        except msgspec.MsgspecError as error:
            raise OSError(errno.EINVAL, f"the mark of {self.what} {name} isn't vifd's: {error}") from error
        finally:
            os.close(fd)

    def find_of(self, name: str, endpoint_id: str) -> MarkT | None:
        """Read a device's mark; None: it has none, or another endpoint's.

        Raises:
            OSError: it can't be read.
        """
        mark = self.find(name)
        return mark if mark is not None and mark.endpoint_id == endpoint_id else None

    def discard(self, name: str) -> None:
        """Take a device's mark away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._checked(name), dir_fd=self._directory)

    def marked(self) -> list[str]:
        """List the devices that are marked."""
        return sorted(path.name for path in self._path.iterdir() if self.is_name(path.name))

    def find_all(self) -> dict[str, MarkT]:
        """Read the marks of all devices that are marked; what isn't vifd's is left out."""
        found = dict[str, MarkT]()
        for name in self.marked():
            with contextlib.suppress(OSError):
                if (mark := self.find(name)) is not None:
                    found[name] = mark
        return found

    def _checked(self, name: str) -> str:
        """Give a name that can name a file here and nothing else.

        Raises:
            OSError: it is none.
        """
        if not self.is_name(name):
            raise OSError(errno.EINVAL, f"{name!r} is no {self.named_by}")
        return name
