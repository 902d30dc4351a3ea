"""The daemon under test: a real `vifd --config` in a private namespace, with a socket and a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.process import Footprint, measure_footprint
from tests.support import daemon as support
from tests.support import kernel

NETWORK, DIRECT = "bench", "direct"
_NETWORKS = f"""
[networks.{NETWORK}]
driver = "bridge"
bridge = "br-bench"
mtu = 1500
"""
_DIRECT = f"""
[networks.{DIRECT}]
driver = "direct"
uplink = "up0"
"""


@dataclass(frozen=True)
class Daemon:
    """A running vifd."""

    pid: int
    socket: str
    fd_socket: str
    state: Path

    def footprint(self) -> Footprint:
        """What both of its processes hold now."""
        return measure_footprint(self.pid, self.state)


@contextmanager
def running_daemon(*, direct: bool = False) -> Iterator[Daemon]:
    """Start vifd, and stop it again.

    Args:
        direct: whether it has a network of macvtaps, too.
    """
    with support.network_namespace() as netns:
        if direct:
            kernel.run(netns, "link", "add", "up0", "up", "type", "veth", "peer", "name", "far0")
            kernel.run(netns, "link", "set", "far0", "up")
        networks = _NETWORKS + (_DIRECT if direct else "")
        with support.running(netns=netns, networks=networks, daemon='log_level = "warning"', warm=False) as vifd:
            assert vifd.process is not None
            yield Daemon(vifd.process.pid, vifd.socket, vifd.fd_socket, vifd.state)
            vifd.stop()
