"""A real vifd, started for a test: in a network namespace of its own, or `--fake` without any."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tests.support import forks
from tests.support.patience import patient

READY_SECONDS = patient(60.0)
BIN = Path(sys.executable).parent

#: One network on a bridge that vifd makes.
BLUE = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24"]
"""


#: The same, where vifd tells of what others change, and doesn't mend it.
REPORTING = f'{BLUE}repair = "report"\n'


@contextlib.contextmanager
def network_namespace() -> Iterator[str]:
    """Give the name of a fresh network namespace; it and all in it is gone afterwards."""
    name = f"vifd-test-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        namespace = Path("/run/netns", name).stat().st_ino
        Path(f"/run/vifd/netns-{namespace}.lock").unlink(missing_ok=True)
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Give a directory whose path leaves room for a socket's name (107 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="vifd-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Daemon:
    """A vifd with its own sockets and state.

    Args:
        directory: for sockets, state and log (`short_directory`).
        netns: the namespace that it works in; empty: none, and then `--fake` unless the configuration needs no root.
        networks: the configuration's networks and policy, TOML.
        daemon: more lines of [daemon].
        fake: start it with --fake.
        environment: more variables.
        warm: have it forked by a process that has its imports behind it (`tests.support.forks`); False: start it as everybody
            does, for a test of the start or of the process itself. What has a command or options of its own is started so anyway.
    """

    def __init__(
        self,
        directory: Path,
        *,
        netns: str = "",
        networks: str = BLUE,
        daemon: str = "",
        fake: bool = False,
        environment: dict[str, str] | None = None,
        warm: bool = True,
    ) -> None:
        self.directory, self.netns, self.fake = directory, netns, fake
        self.socket, self.fd_socket = str(directory / "vifd.sock"), str(directory / "fd.sock")
        self.config, self.state, self.log_path = directory / "vifd.toml", directory / "state", directory / "log"
        self.devices = directory / "devices"
        self._daemon, self._environment, self._warm = daemon, environment or {}, warm
        self.process: subprocess.Popen[bytes] | forks.Process | None = None
        self.write_config(networks)

    def write_config(self, networks: str) -> None:
        """Put other networks and policy in the configuration."""
        mode = "" if "socket_mode" in self._daemon else 'socket_mode = "0666"\n'
        self.config.write_text(
            f'[daemon]\nsocket = "{self.socket}"\nfd_socket = "{self.fd_socket}"\nstate_dir = "{self.state}"\n'
            f'user = "nobody"\nsocket_group = "nogroup"\ndhcp_user = "dnsmasq"\nnetns = "{self.netns}"\n'
            f'device_dir = "{self.devices}"\n{mode}{self._daemon}\n{networks}'
        )
        self.config.chmod(0o644)

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        if self.fake:
            return [str(BIN / "vifd"), "--fake", "--socket", self.socket, "--fd-socket", self.fd_socket]
        return [str(BIN / "vifd"), "--config", str(self.config)]

    def start(self, **options: Any) -> Daemon:
        """Start it and wait until it says that it serves (sd_notify)."""
        notify = str(self.directory / "notify")
        Path(notify).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(notify)
            Path(notify).chmod(0o666)
            listener.settimeout(1)
            environment = os.environ | self._environment | {"NOTIFY_SOCKET": notify}
            with self.log_path.open("ab") as log:
                self.process = self._launch(log, environment, options)
            for _ in range(int(READY_SECONDS)):
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in listener.recv(4096):
                        return self
                if self.process.poll() is not None:
                    break
        self.kill()
        raise AssertionError(f"vifd did not start:\n{self.log()}")

    def _launch(
        self, log: BinaryIO, environment: dict[str, str], options: dict[str, Any]
    ) -> subprocess.Popen[bytes] | forks.Process:
        argv = self.argv
        if self._warm and not options and argv[0] == str(BIN / "vifd"):
            return forks.start(argv, environment=environment, output=log.fileno())
        return subprocess.Popen(argv, stderr=log, stdout=log, env=environment, **options)

    def wait_dead(self, timeout: float = 30) -> int:
        """Wait for its end and give the exit status."""
        assert self.process is not None
        return self.process.wait(patient(timeout))

    def stop(self) -> int:
        """Stop it as systemd does, which waits for all of its processes, and give the exit status."""
        assert self.process is not None
        others = self._children() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        status = self.wait_dead()
        wait_for(lambda: not any(is_alive(pid) for pid, _ in others))
        return status

    def kill(self) -> None:
        """Kill the front process; its helper leaves by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def helper_pid(self) -> int:
        """The pid of the privileged helper."""
        return next(pid for pid, name in self._children() if name != "vifd-dhcp")

    @property
    def dhcp_pid(self) -> int:
        """The pid of the supervisor of DHCP servers."""
        return next(pid for pid, name in self._children() if name == "vifd-dhcp")

    def _children(self) -> list[tuple[int, str]]:
        assert self.process is not None
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [(int(pid), Path(f"/proc/{pid}/comm").read_text().strip()) for pid in pids]

    @contextlib.contextmanager
    def helper_stopped(self) -> Iterator[None]:
        """Keep the helper from doing anything for the time of a block, so that what is asked for stays in flight."""
        pid = self.helper_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""


@contextlib.contextmanager
def running(
    *, netns: str | None = None, networks: str = BLUE, daemon: str = "", fake: bool = False, **options: Any
) -> Iterator[Daemon]:
    """Run a vifd; without `netns` in a namespace of its own (unless `fake`)."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        if netns is None and not fake:
            netns = stack.enter_context(network_namespace())
        vifd = Daemon(directory, netns=netns or "", networks=networks, daemon=daemon, fake=fake, **options)
        stack.callback(vifd.kill)
        yield vifd.start()


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for doesn't."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def ip(netns: str, *arguments: str) -> Any:
    """Read the kernel back with `ip -j`."""
    done = subprocess.run(["ip", "-n", netns, "-d", "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def taps(netns: str) -> list[Any]:
    """Every tap of a namespace, as `ip -d -j link` shows it."""
    return [link for link in ip(netns, "link", "show") if link.get("linkinfo", {}).get("info_kind") == "tun"]


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Ask until a condition holds, and give what it gave."""
    end = time.monotonic() + patient(seconds)
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {patient(seconds):.0f} s: {condition}"
        time.sleep(0.01)
    return found
