"""A vifd in a network namespace of its own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guest import unprivileged

NETWORK = "blue"
ADDRESS = "10.78.0.1"
GUESTS = ("10.78.0.2", "10.78.0.3")

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0
_CONFIGURATION = """\
[daemon]
socket = "{home}/vifd.sock"
socket_group = "root"
socket_mode = "0666"
fd_socket = "{home}/fd.sock"
state_dir = "{home}/state"
user = "daemon"
netns = "{namespace}"

[networks.{network}]
driver = "bridge"
bridge = "br-{network}"
addresses = ["{address}/24"]
"""


@dataclass(frozen=True)
class Host:
    """A running vifd.

    Args:
        namespace: The network namespace that it works in.
        home: The directory of its sockets and state.
    """

    namespace: str
    home: Path

    @property
    def socket(self) -> Path:
        """Its public socket."""
        return self.home / "vifd.sock"


@contextmanager
def running_host() -> Iterator[Host]:
    """Start vifd in a new namespace; stop it and delete the namespace. What it logs goes to stderr, which pytest shows."""
    namespace = f"vifd-e2e-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix=f"{namespace}-") as directory, _network_namespace(namespace):
        home = Path(directory)
        home.chmod(0o755)  # everybody has to pass through
        configuration = home / "vifd.toml"
        configuration.write_text(_CONFIGURATION.format(home=home, namespace=namespace, network=NETWORK, address=ADDRESS))
        program = [str(Path(sys.executable).with_name("vifd")), "--config", str(configuration)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(home / "notify.sock"))
            (home / "notify.sock").chmod(0o666)
            environment = os.environ | {"NOTIFY_SOCKET": str(home / "notify.sock")}
            with subprocess.Popen(unprivileged.command(program, user=None), env=environment) as process:
                try:
                    _wait_until_ready(listener, process)
                    yield Host(namespace, home)
                finally:
                    process.terminate()
                    process.wait(_STOP_TIMEOUT_S)


@contextmanager
def _network_namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def _wait_until_ready(listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
    listener.settimeout(0.1)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if b"READY=1" in listener.recv(4096).split(b"\n"):
                return
        except TimeoutError:
            assert process.poll() is None, f"vifd ended with exit status {process.returncode}"
    raise AssertionError("vifd wasn't ready in time")
