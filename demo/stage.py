"""What the demo is played on: a network namespace, a vifd in it, and an ordinary user. All of it goes when the stage is left."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.guest import unprivileged

NETWORK = "default"
HOST_ADDRESS = "10.77.0.1"
POOL = "10.77.0.10-10.77.0.99"
BRIDGE = "br-demo"

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_BIN = Path(sys.executable).parent
_CONFIGURATION = """\
[daemon]
socket = "{socket}"
socket_group = "{group}"
socket_mode = "0660"
fd_socket = "{home}/fd.sock"
state_dir = "{home}/state"
user = "daemon"
dhcp_user = "dnsmasq"
netns = "{namespace}"

[networks.{network}]
driver = "bridge"
bridge = "{bridge}"
addresses = ["{address}/24"]
pool = ["{pool}"]
dhcp = true
nat = true
"""


class StageError(Exception):
    """Something on the stage doesn't work; the message says what."""


@dataclass
class Stage:
    """A network namespace with a vifd in it, and an ordinary user.

    Args:
        namespace: The network namespace's name.
        home: A directory for vifd's sockets, state, configuration and log.
        user: The ordinary user.
    """

    namespace: str
    home: Path
    user: pwd.struct_passwd
    _processes: ExitStack = field(default_factory=ExitStack)

    @property
    def configuration(self) -> Path:
        """What vifd is told."""
        return self.home / "vifd.toml"

    @property
    def socket(self) -> Path:
        """Where vifd listens."""
        return self.home / "vifd.sock"

    @property
    def log(self) -> Path:
        """What vifd has logged."""
        return self.home / "vifd.log"

    def as_user(self, command: Sequence[str]) -> list[str]:
        """Say how to run a command as the ordinary user."""
        return unprivileged.command(command, user=unprivileged.User(self.user.pw_uid, self.user.pw_gid))

    def in_namespace(self, command: Sequence[str]) -> list[str]:
        """Say how to run a command in the network namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def vifctl(self, *arguments: str) -> list[str]:
        """Say how the ordinary user runs vifctl; it finds the socket by VIFD_SOCKET."""
        return self.as_user([str(_BIN / "vifctl"), *arguments])

    def start_vifd(self) -> subprocess.Popen[bytes]:
        """Start vifd and wait until it says that it is ready; the process is the one that clients talk to.

        Raises:
            StageError: It ended, or said nothing in time.
        """
        self.configuration.write_text(
            _CONFIGURATION.format(
                home=self.home,
                socket=self.socket,
                group=grp.getgrgid(self.user.pw_gid).gr_name,
                namespace=self.namespace,
                network=NETWORK,
                bridge=BRIDGE,
                address=HOST_ADDRESS,
                pool=POOL,
            )
        )
        command = unprivileged.command([str(_BIN / "vifd"), "--config", str(self.configuration)], user=None)
        notifications = self.home / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, self.log.open("ab") as log:
            listener.bind(str(notifications))
            notifications.chmod(0o666)
            environment = os.environ | {"NOTIFY_SOCKET": str(notifications)}
            process = self.start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            _wait_until_ready(listener, process)
        return process

    def start(self, command: Sequence[str], **pipes: Any) -> subprocess.Popen[bytes]:
        """Start a process that ends with the stage, if not before.

        Args:
            command: The program and its arguments.
            pipes: Further arguments of `subprocess.Popen`.
        """
        # in a session of its own, Ctrl-C reaches the demo alone, which then ends everything in order
        process: subprocess.Popen[bytes] = subprocess.Popen(command, start_new_session=True, **pipes)
        self._processes.callback(stop, process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and, if it doesn't end in time, everything that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@contextmanager
def prepare() -> Iterator[Stage]:
    """Make the namespace and the directory; take both away, with all that runs there."""
    namespace = f"vifd-demo-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix=f"{namespace}-") as directory, _network_namespace(namespace):
        home = Path(directory)
        home.chmod(0o755)  # the ordinary user has to pass through
        with Stage(namespace, home, find_ordinary_user()) as stage:
            yield stage


def find_ordinary_user() -> pwd.struct_passwd:
    """Find who called sudo, or take 'nobody'."""
    uid = int(os.environ.get("SUDO_UID", "0"))
    return pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")


@contextmanager
def _network_namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def _wait_until_ready(listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Wait for sd_notify's READY=1; look every now and then whether vifd is still there."""
    listener.settimeout(0.1)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if b"READY=1" in listener.recv(4096).split(b"\n"):
                return
        except TimeoutError:
            if process.poll() is not None:
                raise StageError(f"vifd ended with exit status {process.returncode}") from None
    raise StageError(f"vifd wasn't ready after {_START_TIMEOUT_S:.0f} s")
