"""systemd's protocols: sockets that it passes, and what it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.asking import make
from tests.support.daemon import Daemon, network_namespace, short_directory
from vifclient import Client

# Gives the descriptors the numbers that systemd would, and the pid.
ACTIVATE = """
import fcntl, os, sys
moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in os.environ["FDS"].split()]
for number, fd in enumerate(moved, start=3):
    os.dup2(fd, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(moved))}
os.execv(sys.argv[1], sys.argv[1:])
"""


class Activated(Daemon):
    """A vifd that gets listeners passed."""

    listeners: tuple[socket.socket, ...] = ()

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", ACTIVATE, *super().argv]

    def activate(self, *listeners: socket.socket) -> None:
        """Start it with listeners."""
        self.listeners = listeners
        numbers = [listener.fileno() for listener in listeners]
        self._environment = {"FDS": " ".join(map(str, numbers))}
        self.start(pass_fds=numbers)


@pytest.fixture
def activated() -> Iterator[Activated]:
    with short_directory() as directory, network_namespace() as netns:
        daemon = Activated(directory, netns=netns)
        yield daemon
        daemon.kill()
        print(daemon.log())


def listen(path: str, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    listener.listen()
    return listener


@pytest.mark.parametrize("order", [1, -1])
def test_both_sockets_are_taken_from_systemd_in_any_order(activated: Activated, order: int) -> None:
    with (
        listen(activated.socket, socket.SOCK_STREAM) as rpc,
        listen(activated.fd_socket, socket.SOCK_SEQPACKET) as fds,
        Client(activated.socket) as client,
    ):
        inodes = [Path(path).stat().st_ino for path in (activated.socket, activated.fd_socket)]
        activated.activate(*[rpc, fds][::order])
        endpoint = make(client)
        with client.acquire_fds(endpoint.endpoint_id) as queues:
            assert len(queues) == 1
        assert [Path(path).stat().st_ino for path in (activated.socket, activated.fd_socket)] == inodes


def test_the_socket_that_systemd_does_not_pass_is_made(activated: Activated) -> None:
    with listen(activated.socket, socket.SOCK_STREAM) as rpc, Client(activated.socket) as client:
        activated.activate(rpc)
        with client.acquire_fds(make(client).endpoint_id) as queues:
            assert len(queues) == 1


def test_a_caller_may_wait_before_vifd_is_there(activated: Activated) -> None:
    with listen(activated.socket, socket.SOCK_STREAM) as rpc, socket.socket(socket.AF_UNIX) as early:
        early.connect(activated.socket)
        activated.activate(rpc)
        with Client(activated.socket) as client:
            assert client.get_host_info().networks


def test_a_descriptor_that_is_no_listener_is_refused(activated: Activated) -> None:
    with socket.socket(socket.AF_UNIX) as connection, pytest.raises(AssertionError, match="no listening Unix socket"):
        activated.activate(connection)


def test_listeners_meant_for_another_process_are_left_alone(activated: Activated) -> None:
    activated._environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2"}
    activated.__class__ = Daemon
    activated.start()
    with Client(activated.socket) as client:
        assert client.get_host_info().networks


class Notified:
    """A vifd, and the socket on which it tells systemd how it is."""

    def __init__(self, daemon: Daemon, listener: socket.socket) -> None:
        self.daemon, self._listener = daemon, listener

    def start(self, **environment: str) -> None:
        variables = os.environ | {"NOTIFY_SOCKET": str(self._listener.getsockname())} | environment
        with self.daemon.log_path.open("ab") as log:
            self.daemon.process = subprocess.Popen(self.daemon.argv, stderr=log, stdout=log, env=variables)

    def signal(self, number: signal.Signals) -> None:
        assert self.daemon.process is not None
        self.daemon.process.send_signal(number)

    def told(self) -> dict[str, str]:
        """The next message."""
        self._listener.settimeout(30)
        return dict(line.split("=", 1) for line in self._listener.recv(4096).decode().splitlines())

    def told_until_silence(self, seconds: float) -> int:
        """How many messages come until none comes for some seconds."""
        self._listener.settimeout(seconds)
        count = 0
        with contextlib.suppress(TimeoutError):
            while self._listener.recv(4096):
                count += 1
        return count


@pytest.fixture
def notified() -> Iterator[Notified]:
    with contextlib.ExitStack() as stack:
        directory, netns = stack.enter_context(short_directory()), stack.enter_context(network_namespace())
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        listener.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o666)
        daemon = Daemon(directory, netns=netns)
        stack.callback(daemon.kill)
        yield Notified(daemon, listener)
        print(daemon.log())


def test_ready_is_told_when_calls_are_served(notified: Notified) -> None:
    notified.start()
    assert notified.told() == {"READY": "1", "STATUS": "0 endpoints"}
    with Client(notified.daemon.socket) as client:
        make(client)


def test_stopping_is_told_before_the_end(notified: Notified) -> None:
    notified.start()
    assert notified.told()["READY"] == "1"
    notified.signal(signal.SIGTERM)
    assert notified.told() == {"STOPPING": "1"}
    assert notified.daemon.wait_dead() == 0


def test_a_reload_is_told_from_its_begin_to_its_end(notified: Notified) -> None:
    notified.start()
    assert notified.told()["READY"] == "1"
    notified.signal(signal.SIGHUP)
    reloading = notified.told()
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert notified.told()["READY"] == "1"


def test_a_reload_that_fails_is_told_to_be_over_as_well(notified: Notified) -> None:
    notified.start()
    assert notified.told()["READY"] == "1"
    notified.daemon.write_config("nonsense")
    notified.signal(signal.SIGHUP)
    assert notified.told()["RELOADING"] == "1"
    assert notified.told()["READY"] == "1"


def test_signs_of_life_come_while_the_helper_answers_and_no_longer(notified: Notified) -> None:
    notified.start(WATCHDOG_USEC="100000")
    assert notified.told()["READY"] == "1"
    for _ in range(3):
        assert notified.told() == {"WATCHDOG": "1"}
    with notified.daemon.helper_stopped():
        assert notified.told_until_silence(0.5) <= 2  # what was on its way; ten would be due
    assert notified.told() == {"WATCHDOG": "1"}


def test_a_watchdog_of_another_process_is_none(notified: Notified) -> None:
    notified.start(WATCHDOG_USEC="1000", WATCHDOG_PID="1")
    assert notified.told()["READY"] == "1"
    assert notified.told_until_silence(0.2) == 0
