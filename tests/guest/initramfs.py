"""Write the archive that the kernel unpacks as its first file system.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst, "newc".
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_ALIGNMENT = 4


@dataclass(frozen=True)
class Entry:
    """One file, directory or symbolic link.

    Args:
        path: Where it goes, without a leading slash.
        mode: Type and permission bits, as in `stat.st_mode`.
        content: A file's bytes, a link's target, nothing for a directory.
    """

    path: str
    mode: int
    content: bytes = b""


def directory(path: str) -> Entry:
    """Describe a directory that everybody may enter."""
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, content: bytes) -> Entry:
    """Describe an executable file."""
    return Entry(path, stat.S_IFREG | 0o755, content)


def file(path: str, content: bytes) -> Entry:
    """Describe a plain file."""
    return Entry(path, stat.S_IFREG | 0o644, content)


def pack(entries: Iterable[Entry]) -> bytes:
    """Pack the entries, in order and all owned by root; a directory has to come before what is in it."""
    packed = [_pack_entry(inode, entry) for inode, entry in enumerate(entries, start=1)]
    return b"".join([*packed, _pack_entry(0, Entry("TRAILER!!!", 0))])


def _pack_entry(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
