"""Two hosts on a switch, each a network namespace with its own vifd; a client on the switch; and eyes on its ports."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.host import ReachableDaemon
from tests.e2e.hypervisor import Guest, Hypervisor
from tests.guest import unprivileged
from tests.guest.image import Image
from tests.guest.machine import PROGRAM
from tests.support import frames, kernel
from tests.support.daemon import Daemon, network_namespace, short_directory, wait_for
from tests.support.outside import join
from vifclient import Client
from vifclient.hypervisors import qmp
from vifclient.messages import Endpoint

CLIENT_ADDRESS = "10.94.0.1"
HOST_ADDRESSES = ("10.94.0.2", "10.94.0.3")
SWITCH, CLIENT_PORT = "sw0", "client"
#: Both hosts hand out the same addresses, and both have a card for macvtaps beside that of the bridge.
NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
uplink = "up0"
addresses = ["{address}/24", "2001:db8:94::{number}/64"]
pool = ["10.94.0.16-10.94.0.31"]

[networks.cable]
driver = "direct"
uplink = "up1"
"""
_USER = unprivileged.User(20001, 20001)  # nobody's
_ETH_P_ALL, _SO_TIMESTAMPNS = 3, 35
_FRAME_BYTES, _PAUSE_S = 2048, 0.02
_DOWNTIME_MS = 20  # QEMU's default of 300 is what a busy machine then takes
_LIVE_SINCE = 10  # QEMU's major version
_TIMESPEC = struct.Struct("ll")


class Frame(NamedTuple):
    """A frame that came in at a port of the switch, and when, in seconds since the epoch."""

    time_s: float
    data: bytes


class Listener:
    """Notes what comes in at a port of the switch from one MAC.

    Args:
        netns: the switch's.
        port: the port's device.
        mac: the MAC.
    """

    def __init__(self, netns: str, port: str, mac: str) -> None:
        self._socket = kernel.packet_socket(netns, port, _ETH_P_ALL)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        self._mac, self._noted = frames.mac_bytes(mac), list[Frame]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def read(self) -> list[Frame]:
        """Give what has come since the last time."""
        with self._lock:
            self._take()
            noted, self._noted = self._noted, []
            return noted

    def close(self) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _keep_up(self) -> None:
        """Keep the socket's buffer from overflowing between two times that it is read."""
        while not self._over.wait(_PAUSE_S):
            with self._lock:
                self._take()

    def _take(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, control, _, address = self._socket.recvmsg(_FRAME_BYTES, 64)
                if address[2] != socket.PACKET_OUTGOING and data[6:12] == self._mac:
                    seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
                    self._noted.append(Frame(seconds + nanoseconds / 1e9, data))


@dataclass(frozen=True)
class Host:
    """A host.

    Args:
        daemon: its vifd.
        client: root's, to look with.
        hypervisor: its hypervisor driver, an ordinary user.
        number: which of the two, from 0.
        directory: where its QEMUs have their sockets.
    """

    daemon: Daemon
    client: Client
    hypervisor: Hypervisor
    number: int
    directory: Path

    def switch_port(self, network: str) -> str:
        """Name the switch's port that a network's uplink leads to."""
        return f"h{self.number}-{'up0' if network == 'blue' else 'up1'}"

    def fdb(self, mac: str) -> list[Any]:
        """Give what its bridge knows of a MAC."""
        return _fdb(self.daemon.netns, mac)


@dataclass(frozen=True)
class Machine:
    """A virtual machine, or a QEMU that waits for one.

    Args:
        guest: its console and process.
        monitor: its QEMU's.
        migration: where it waits.
    """

    guest: Guest
    monitor: qmp.Monitor
    migration: str


class Site:
    """The hosts and the switch between them.

    Args:
        hosts: the two.
        switch: the switch's namespace.
        client: the client's namespace.
    """

    def __init__(self, hosts: tuple[Host, Host], switch: str, client: str) -> None:
        self.hosts, self.switch, self.client = hosts, switch, client

    def port_of(self, mac: str) -> str:
        """Give the port behind which the switch has learned a MAC."""
        return next((str(one["ifname"]) for one in _fdb(self.switch, mac)), "")

    @contextmanager
    def listen(self, port: str, mac: str) -> Iterator[Listener]:
        """Listen at a port of the switch to a MAC for the time of a block."""
        with closing(Listener(self.switch, port, mac)) as one:
            yield one


def _fdb(netns: str, mac: str) -> list[Any]:
    done = subprocess.run(["bridge", "-n", netns, "-j", "fdb", "show"], check=True, capture_output=True, text=True)
    return [entry for entry in json.loads(done.stdout) if entry["mac"] == mac and entry.get("master")]


@contextmanager
def site(image: Image) -> Iterator[Site]:
    """Give two hosts that serve their networks."""
    with ExitStack() as stack:
        switch, client = (stack.enter_context(network_namespace()) for _ in range(2))
        kernel.run(switch, "link", "add", SWITCH, "type", "bridge", "forward_delay", "0")
        kernel.run(switch, "link", "set", SWITCH, "up")
        plug_in(switch, CLIENT_PORT, client, "eth0")
        kernel.run(client, "address", "add", f"{CLIENT_ADDRESS}/24", "dev", "eth0")
        hosts = [stack.enter_context(_host(number, switch, image)) for number in range(2)]
        yield Site((hosts[0], hosts[1]), switch, client)


@contextmanager
def _host(number: int, switch: str, image: Image) -> Iterator[Host]:
    with ExitStack() as stack:
        directory, sockets = (stack.enter_context(short_directory()) for _ in range(2))
        os.chown(sockets, _USER.uid, _USER.gid)
        netns = stack.enter_context(network_namespace())
        for uplink in ("up0", "up1"):
            plug_in(switch, f"h{number}-{uplink}", netns, uplink)
        networks = NETWORKS.format(address=HOST_ADDRESSES[number], number=number + 2)
        daemon = ReachableDaemon(directory, netns=netns, networks=networks)
        stack.callback(lambda: print(daemon.log()))  # pytest shows it when a test fails
        stack.callback(daemon.kill)
        client = stack.enter_context(Client(daemon.start().socket))
        hypervisor = Hypervisor(_USER, Path(daemon.socket), netns, image)
        yield Host(daemon, client, hypervisor, number, sockets)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()


def plug_in(switch: str, port: str, netns: str, ifname: str) -> None:
    """Lead a device of a namespace to a port of the switch."""
    join(switch, port, netns, ifname)
    kernel.run(switch, "link", "set", port, "master", SWITCH)


# --- machines


def address_of(endpoint: Endpoint) -> str:
    """Give the address that a guest gets as its only one."""
    return endpoint.port.addresses[0]


@contextmanager
def booted(host: Host, endpoint_id: str, address: str) -> Iterator[Machine]:
    """Boot a VM on an endpoint."""
    argv, path = _monitored(host)
    with host.hypervisor.boot(endpoint_id, f"{address}/24", qemu=argv) as guest, _monitor(guest, path) as monitor:
        yield Machine(guest, monitor, "")


@contextmanager
def waiting(host: Host, endpoint_id: str, address: str) -> Iterator[Machine]:
    """Start a QEMU on an endpoint that waits for the VM of another host."""
    argv, path = _monitored(host)
    migration = f"unix:{path.with_suffix('.migration')}"
    argv += ["-incoming", migration]
    with host.hypervisor.receive(endpoint_id, f"{address}/24", qemu=argv) as guest, _monitor(guest, path) as monitor:
        yield Machine(guest, monitor, migration)


def request_like(host: Host, other: Host, endpoint_id: str) -> Endpoint:
    """Request an endpoint that is here as it is on another host: what a driver does that takes a VM over.

    This is the whole of what a driver says to vifd; it names what the port has there, the address of the pool too.
    """
    there = other.client.get_endpoint(endpoint_id)
    host.hypervisor.request(there.network, endpoint_id=endpoint_id, port=there.port)
    return host.client.get_endpoint(endpoint_id)


def moves_live() -> bool:
    """Tell whether a VM may run while it moves, with the QEMU that is here.

    Under the tests' load, what an emulated CPU writes while its memory is copied gets lost now and then: with QEMU 7.2.22 in one
    migration of fifteen (the guest says "id 3 is not a head" of its virtio ring, and hangs), with 10.0.2 in none of 200.
    """
    shown = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)", shown)
    assert version, shown
    return int(version[1]) >= _LIVE_SINCE


def migrate(source: Machine, destination: Machine) -> None:
    """Move a VM, and wait until it runs again; it runs meanwhile, or is paused (`moves_live`)."""
    if not moves_live():
        source.monitor.execute("stop")
    start_migration(source, destination)
    wait_for_migration(source, "completed")
    running = "running" if moves_live() else "paused"
    wait_for(lambda: destination.monitor.execute("query-status")["status"] == running)
    if not moves_live():
        destination.monitor.execute("cont")


def start_migration(source: Machine, destination: Machine, *, bytes_a_second: int = 1 << 30) -> None:
    """Let a VM begin to move."""
    source.monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    parameters = {"max-bandwidth": bytes_a_second, "downtime-limit": _DOWNTIME_MS}
    source.monitor.run({"execute": "migrate-set-parameters", "arguments": parameters})
    source.monitor.execute("migrate", uri=destination.migration)


def wait_for_migration(source: Machine, status: str) -> None:
    """Wait until a VM has moved ("completed"), or has stayed ("cancelled", "failed")."""
    source.monitor.wait_for(lambda event: event["event"] == "MIGRATION" and event["data"]["status"] == status)


def time_of(machine: Machine, event: str) -> float:
    """Give when a QEMU said something, in seconds since the epoch."""
    stamp = machine.monitor.wait_for(lambda one: one["event"] == event)["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)


def _monitored(host: Host) -> tuple[list[str], Path]:
    path = host.directory / f"{time.monotonic_ns()}.qmp"
    return ["-qmp", f"unix:{path},server=on,wait=off"], path


@contextmanager
def _monitor(guest: Guest, path: Path) -> Iterator[qmp.Monitor]:
    def connect() -> qmp.Monitor | None:
        assert guest.process.poll() is None, "QEMU has ended"
        try:
            return qmp.Monitor.connect(str(path), timeout_s=60)
        except qmp.QemuEnded:
            return None

    with wait_for(connect, 60) as monitor:
        yield monitor
