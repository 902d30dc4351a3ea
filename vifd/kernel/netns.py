"""The network namespace that vifd works in."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from vifd.errors import StartError

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000  # linux/sched.h


def path_of(name_or_path: str) -> str:
    """Give the path of a namespace: of a name as `ip netns` has it, or the path itself. Empty stays empty."""
    return name_or_path if "/" in name_or_path or not name_or_path else str(_NAMED / name_or_path)


def enter(name_or_path: str) -> None:
    """Move this process into a network namespace (setns(2); needs CAP_SYS_ADMIN).

    pyroute2's way would start a program, ldconfig, to find the C library that is here already.

    Raises:
        StartError: there is none of that name, or the kernel refuses.
    """
    path = path_of(name_or_path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"daemon.netns: can't enter {path}: {error.strerror}") from error


def inode() -> int:
    """Give the number that tells this process's network namespace from all others."""
    return Path("/proc/self/ns/net").stat().st_ino
