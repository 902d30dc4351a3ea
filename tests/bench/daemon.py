"""The daemon under test: a real `vifd --config` in a private namespace, with a socket and a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.bench.namespaces import private_namespace
from tests.bench.process import Footprint, measure_footprint

NETWORK = "bench"
START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 60
_CONFIGURATION = """\
[daemon]
socket = "{home}/vifd.sock"
socket_mode = "0600"
fd_socket = "{home}/fd.sock"
state_dir = "{home}/state"
user = "nobody"
netns = "{namespace}"
log_level = "warning"

[networks.{network}]
driver = "bridge"
bridge = "br-bench"
mtu = 1500
"""


@dataclass(frozen=True)
class Daemon:
    """A running vifd."""

    pid: int
    home: Path

    @property
    def socket(self) -> Path:
        """Its public socket."""
        return self.home / "vifd.sock"

    def footprint(self) -> Footprint:
        """What both of its processes hold now."""
        return measure_footprint(self.pid, self.home / "state")


@contextmanager
def running_daemon() -> Iterator[Daemon]:
    """Start vifd and stop it again; what it logs goes to stderr."""
    with private_namespace("vifd") as namespace, tempfile.TemporaryDirectory(prefix="vifd-bench-") as directory:
        home = Path(directory)
        home.chmod(0o755)  # vifd's unprivileged process has to pass through
        configuration = home / "vifd.toml"
        configuration.write_text(_CONFIGURATION.format(home=home, namespace=namespace.name, network=NETWORK))
        program = Path(sys.executable).with_name("vifd")
        process = subprocess.Popen([program, "--config", configuration], env=os.environ | {"NOTIFY_SOCKET": ""})
        try:
            daemon = Daemon(process.pid, home)
            _wait_until_ready(daemon, process)
            yield daemon
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _wait_until_ready(daemon: Daemon, process: subprocess.Popen[bytes]) -> None:
    """Wait for the socket, then for an answer on it."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not daemon.socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"vifd did not start: exit code {process.returncode}")
        time.sleep(0.02)
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        grpc.channel_ready_future(channel).result(timeout=START_TIMEOUT_S)
