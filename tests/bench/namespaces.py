"""Private network namespaces with random names, so that a run can neither see nor hurt the host's devices."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    """A network namespace that this run made."""

    name: str

    @property
    def path(self) -> Path:
        """Where its name is mounted (ip-netns(8))."""
        return Path("/run/netns", self.name)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Work in the namespace, with this thread and the processes that it starts."""
        with Path("/proc/thread-self/ns/net").open() as home:
            _enter(self.path)
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def ip(self, *arguments: str) -> str:
        """Run `ip` inside, for what isn't measured.

        Raises:
            subprocess.CalledProcessError: `ip` failed; it has printed why.
        """
        command = ["ip", "-n", self.name, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextlib.contextmanager
def private_namespace(purpose: str) -> Iterator[Namespace]:
    """Make a namespace, and delete it with everything in it."""
    namespace = Namespace(f"vifd-bench-{purpose}-{secrets.token_hex(4)}")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True)
    try:
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True)


def _enter(path: Path) -> None:
    with path.open() as namespace:
        _set_namespace(namespace.fileno())


def _set_namespace(descriptor: int) -> None:
    """setns(2): os.setns came with Python 3.12."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
