"""vifd on a host whose cards are made up: all of vifd is real, both processes, but PFs and VFs are a sysfs of plain files, where
each step sleeps for as long as a kernel takes.

In the emulated machine all is real but the time: Python needs twenty times as long as it should, and drivers as long as ever.
Here it is the other way round, so this shows what waits for what.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support import daemon as support
from tests.support.sriov_host import FakeHost, FakeNic
from vifd import command
from vifd.kernel.sriov.hardware import Hardware
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.sriov.vfio import is_vfio

VFS_A_PF = 7
#: What the emulated 82576 and its drivers take.
_UNBIND_S, _UNBIND_VFIO_S, _BIND_S, _BIND_VFIO_S, _RESET_S = 0.06, 0.005, 0.04, 0.005, 0.11


class SlowHost(FakeHost):
    """Two PFs, eth0 and eth1, whose VFs take their time."""

    def bind(self, address: str, driver: str) -> None:
        """See FakeHost."""
        time.sleep(_BIND_VFIO_S if is_vfio(driver) else _BIND_S)
        super().bind(address, driver)

    def unbind(self, address: str) -> None:
        """See FakeHost."""
        time.sleep(_UNBIND_VFIO_S if is_vfio(self.driver(address)) else _UNBIND_S)
        super().unbind(address)

    def step(self, name: str) -> None:
        """See FakeHost."""
        if name == "reset":
            time.sleep(_RESET_S)


class _Daemon(support.Daemon):
    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", __name__, str(self.directory / "host"), *super().argv[1:]]


@contextlib.contextmanager
def running_daemon(networks: str) -> Iterator[str]:
    """Start vifd with such cards; give its socket.

    Args:
        networks: the networks that it has, as TOML.
    """
    with support.short_directory() as directory, support.network_namespace() as netns:
        daemon = _Daemon(directory, netns=netns, networks=networks, daemon='log_level = "warning"')
        try:
            yield daemon.start().socket
            daemon.stop()
        finally:
            daemon.kill()


def main(arguments: Sequence[str]) -> int:
    """Be vifd.

    Args:
        arguments: an empty directory for the cards, then vifd's own.
    """
    path, *rest = arguments
    host = SlowHost(Path(path), vfs=VFS_A_PF)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("vifd.drivers.sriov", "vifd.drivers.catalog", "vifd.kernel.room"):
            patch.setattr(f"{module}.Inventory", partial(Inventory, host.sysfs.root))
        patch.setattr(Hardware, "prepare", lambda _: host.open())
        patch.setattr("vifd.kernel.executor.RtnlNic", lambda _: FakeNic(host))
        return command.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
