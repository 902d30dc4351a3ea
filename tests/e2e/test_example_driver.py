"""The example driver runs real VMs as an ordinary user, who has vifd's socket and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import FIRST_UID
from tests.e2e.test_virtual_machine import links, ping
from tests.guest import machine, unprivileged
from tests.guest.image import Image
from tests.support.daemon import BLUE, Daemon, short_directory
from vifclient import Client
from vifclient.hypervisors import qmp
from vifclient.messages import EndpointState

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).resolve().parents[2] / "client" / "examples" / "qemu_driver.py"
RED = """
[networks.red]
driver = "bridge"
bridge = "br-red"
addresses = ["10.92.0.1/24"]
"""
READY = EndpointState.ENDPOINT_STATE_READY
PAUSED = ("--", "-accel", "tcg", "-S")  # a machine that never starts is enough for much
WAIT_FOR_ETH1 = "n=0; while [ {}-e /sys/class/net/eth1 ] && [ $n -lt 400 ]; do usleep 50000; n=$((n+1)); done"
SEEN, GONE = WAIT_FOR_ETH1.format("! "), WAIT_FOR_ETH1.format("")


@pytest.fixture
def networks() -> str:
    return BLUE + RED


class ExampleError(Exception):
    """The example ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Example:
    """The example, as an ordinary user runs it."""

    socket: str
    directory: Path

    def run(self, *arguments: str) -> list[str]:
        """Run a command and give the lines that it printed.

        Raises:
            ExampleError: it failed.
        """
        program = [sys.executable, str(EXAMPLE), "--socket", self.socket, "--directory", str(self.directory), *arguments]
        command = unprivileged.command(program, user=unprivileged.User(FIRST_UID, FIRST_UID))
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise ExampleError(done.stderr)
        return done.stdout.splitlines()

    def pids(self) -> list[int]:
        """Give the process of every machine that runs."""
        pids = []
        for path in self.directory.glob("*.qmp"):
            try:
                with qmp.Monitor.connect(str(path)) as monitor:
                    pids.append(monitor.pid)
            except qmp.QemuEnded:
                continue
        return pids


@pytest.fixture
def example(host: Daemon) -> Iterator[Example]:
    with short_directory() as directory:
        os.chown(directory, FIRST_UID, FIRST_UID)
        one = Example(host.socket, directory)
        yield one
        for pid in one.pids():  # a test that failed
            os.kill(pid, signal.SIGKILL)


@contextmanager
def open_console(path: Path) -> Iterator[machine.Console]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        stream = os.fdopen(connection.detach(), "r+b", buffering=0)
    with stream:
        yield machine.Console(machine.Streams(stream, stream))


def test_a_machine_is_started_hot_plugged_and_stopped(host: Daemon, client: Client, example: Example, guest_image: Image) -> None:
    before = links(host)
    console_path = example.directory / "console"
    qemu = machine.argv(guest_image, addresses={"eth0": "10.91.0.2/24"})[1:]
    qemu[qemu.index("stdio")] = f"unix:{console_path},server=on,wait=off"
    (first,) = example.run("start", "web", "--network", "blue", "--", *qemu)
    with open_console(console_path) as console:
        console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
        ping(host, "10.91.0.2")

        (second,) = example.run("hot-plug", "web", "--network", "red")
        assert console.run(SEEN)[0] == 0
        assert console.run("ip link set eth1 up && ip address add 10.92.0.2/24 dev eth1")[0] == 0
        ping(host, "10.92.0.2")
        assert [line.split("\t")[:5] for line in sorted(example.run("list"))] == [
            ["web", *one, "tap", "attached"] for one in sorted([[first, "blue"], [second, "red"]])
        ]

        example.run("hot-unplug", "web", second)
        assert console.run(GONE)[0] == 0
        assert console.run("ls /sys/class/net/eth1")[0] != 0
        assert [one.endpoint_id for one in client.list_endpoints()] == [first]
        ping(host, "10.91.0.2")

        example.run("stop", "web")
        assert (example.run("list"), list(client.list_endpoints()), example.pids()) == ([], [], [])
    assert links(host).keys() == before.keys()


def test_a_killed_machine_is_recovered_and_a_running_one_kept(host: Daemon, client: Client, example: Example) -> None:
    (kept,) = example.run("start", "db", "--network", "blue", *PAUSED)
    running = example.pids()
    (lost,) = example.run("start", "web", "--network", "blue", *PAUSED)
    (killed,) = set(example.pids()) - set(running)
    process = os.pidfd_open(killed)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    with client.watch_endpoints(timeout_s=60) as watch:  # its tap has no carrier any more
        next(event for event in watch if (event.endpoint.endpoint_id, event.endpoint.state) == (lost, READY))
    os.close(process)
    assert example.run("recover") == [lost]
    assert example.run("recover") == []
    assert [one.endpoint_id for one in client.list_endpoints()] == [kept]
    example.run("stop", "db")


def test_what_does_not_start_leaves_nothing(host: Daemon, client: Client, example: Example) -> None:
    before = links(host)
    with pytest.raises(ExampleError, match="no-such-option"):
        example.run("start", "web", "--network", "blue", "--", "-no-such-option")
    with pytest.raises(ExampleError, match="green"):
        example.run("start", "web", "--network", "blue", "--network", "green", *PAUSED)
    assert list(client.list_endpoints()) == []
    assert links(host).keys() == before.keys()


def test_a_machine_that_runs_is_not_started_again(host: Daemon, client: Client, example: Example) -> None:
    (first,) = example.run("start", "web", "--network", "blue", *PAUSED)
    with pytest.raises(ExampleError, match="web runs already"):
        example.run("start", "web", "--network", "blue", *PAUSED)
    assert [one.endpoint_id for one in client.list_endpoints()] == [first]
    example.run("stop", "web")


def test_several_queues_are_plugged_until_the_ports_are_full(host: Daemon, client: Client, example: Example) -> None:
    started = example.run("start", "web", "--queues", "2", *("--network", "blue") * 7, *PAUSED)
    (plugged,) = example.run("hot-plug", "web", "--queues", "2", "--network", "red")
    assert client.get_endpoint(plugged).tap.queues == 2
    device = links(host)[client.get_endpoint(plugged).tap.ifname]
    assert "LOWER_UP" in device["flags"]
    with pytest.raises(ExampleError, match="8 interfaces already"):
        example.run("hot-plug", "web", "--network", "red")
    assert {one.endpoint_id for one in client.list_endpoints()} == {*started, plugged}
    example.run("stop", "web")
    assert list(client.list_endpoints()) == []
