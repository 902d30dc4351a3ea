"""The network namespace that vifd works in."""

from __future__ import annotations

from pathlib import Path

from pyroute2 import netns

from vifd.errors import StartError

_NAMED = Path("/run/netns")


def path_of(name_or_path: str) -> str:
    """Give the path of a namespace: of a name as `ip netns` has it, or the path itself. Empty stays empty."""
    return name_or_path if "/" in name_or_path or not name_or_path else str(_NAMED / name_or_path)


def enter(name_or_path: str) -> None:
    """Move this process into a network namespace (setns(2); needs CAP_SYS_ADMIN).

    Raises:
        StartError: there is none of that name, or the kernel refuses.
    """
    path = path_of(name_or_path)
    try:
        netns.setns(path, flags=0)
    except OSError as error:
        raise StartError(f"daemon.netns: can't enter {path}: {error.strerror or error}") from error


def inode() -> int:
    """Give the number that tells this process's network namespace from all others."""
    return Path("/proc/self/ns/net").stat().st_ino
