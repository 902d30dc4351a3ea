"""No forged frame passes while anything happens to an endpoint: it is made, changed, mended, released, or vifd dies.

A process sends forged and legal frames through the guest's side of a tap or macvtap all the time. At another VM's device and at
the host's, the kernel counts both by a mark in them. Of the forged ones there must be none, and a bridge must have learned
nothing from them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import guests, kernel, wires
from tests.support.asking import asked, release_all
from tests.support.children import child
from tests.support.daemon import Daemon, is_alive, wait_for
from tests.support.frames import REPLY, arp
from tests.support.guests import Guest
from tests.support.marked import FORGED, LEGAL, Count, forgeries, legals
from tests.support.spoofs import FOREIGN_MAC, NO_MAC
from tests.support.wires import Wire
from vifclient import Client
from vifclient.errors import ServerError
from vifclient.messages import (
    DriftKind,
    Endpoint,
    EndpointPreference,
    GuardSpec,
    LimitsSpec,
    PortSpec,
    RateLimit,
    RequestEndpointRequest,
    TapPreference,
    WatchEventKind,
)
from vifd.kernel import names
from vifd.model import Kind

GUARDED, UNGUARDED = PortSpec(guard=GuardSpec(enabled=True)), PortSpec(guard=GuardSpec(enabled=False))
ADDRESS, OTHER_ADDRESS, FOREIGN = "10.91.0.10", "10.91.0.20", "10.91.0.66"
_FLOOD = Path(__file__).parents[1] / "support" / "flood.py"
UPDATES, OTHERS, LIVES = 50, 200, 20
#: A batch is made stage by stage, so that its first device waits for the others, and whoever lurks for it has time to open it.
A_BATCH = 16


class Scene:
    """A guest that floods, and who counts.

    Args:
        wire: what it is on the network by.
        vifd: the daemon.
        netns: its namespace.
        guest: who floods.
        forged: what must not arrive.
        legal: what must.
    """

    def __init__(self, wire: Wire, vifd: Daemon, guest: Guest, forged: Count, legal: Count) -> None:
        self.wire, self.vifd, self.guest, self.forged, self.legal = wire, vifd, guest, forged, legal

    def pass_legal(self, count: int = 20) -> None:
        """Wait until so many legal frames have passed from now on."""
        self.legal.take()
        passed = 0

        def enough() -> bool:
            nonlocal passed
            passed += self.legal.take()
            return passed >= count

        wait_for(enough)

    def check(self) -> None:
        """Nothing forged has come, nothing was learned from it, and what is legal comes."""
        self.pass_legal()
        assert self.forged.take() == 0
        assert guests.learned(self.vifd.netns, self.guest.ifname) <= {self.guest.mac}


@contextlib.contextmanager
def flooding(target: str, sent: list[bytes], *, netns: str = "", fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Flood through a tap for the time of a block; see the script."""
    enter = ["ip", "netns", "exec", netns] if netns else []
    argv = [*enter, sys.executable, "-I", "-S", str(_FLOOD), target, *(one.hex() for one in sent)]
    with child(argv, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.communicate(timeout=30)
        assert process.returncode == 0


@contextlib.contextmanager
def scene(wire: Wire, vifd: Daemon, port: PortSpec = GUARDED, *, extra: tuple[bytes, ...] = ()) -> Iterator[Scene]:
    """Let a guest flood for the time of a block, and check in the end."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(vifd.socket, fd_socket_path=vifd.fd_socket))
        guest, far = (stack.enter_context(guests.guest(client, wire.make(client, port=one))) for one in (port, UNGUARDED))
        guests.connect(guest, [far])
        forged, legal = (Count(vifd.netns, mark, far.ifname, wire.far_device) for mark in (FORGED, LEGAL))
        for count in (forged, legal):
            stack.callback(count.close)
        sent = [*forgeries(guest.mac), *extra, *legals(guest.mac)]
        stack.enter_context(flooding(str(guest.fd), sent, fds=(guest.fd,)))
        made = Scene(wire, vifd, guest, forged, legal)
        made.check()
        yield made
        made.check()


@pytest.fixture(params=[wires.TAP, wires.MACVTAP], ids=lambda wire: wire.name)
def wire(request: Any) -> Wire:
    made: Wire = request.param
    return made


@pytest.fixture
def vifd(wire: Wire) -> Iterator[Daemon]:
    with wire.running() as daemon:
        yield daemon


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    with Client(vifd.socket) as one:
        yield one


def test_what_a_vm_without_a_guard_sends_is_counted(wire: Wire, vifd: Daemon) -> None:
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as client, contextlib.ExitStack() as stack:
        guest, far = (stack.enter_context(guests.guest(client, wire.make(client, port=UNGUARDED))) for _ in range(2))
        guests.connect(guest, [far])
        forged = Count(vifd.netns, FORGED, far.ifname)
        for frame in forgeries(guest.mac):
            guest.send(frame)
        wait_for(lambda: forged.take() >= 1)
        forged.close()


def changes(turn: int) -> tuple[PortSpec, list[str]]:
    """One of several changes of a port, by turns."""
    rate = RateLimit(rate_bps=10**9 + turn)
    ports = (
        (PortSpec(addresses=[ADDRESS, "10.95.0.0/24"]), ["addresses"]),
        (PortSpec(limits=LimitsSpec(from_vm=rate, to_vm=rate)), ["limits"]),
        (PortSpec(link_up=False), ["link_up"]),
        (PortSpec(link_up=True, addresses=[OTHER_ADDRESS]), ["link_up", "addresses"]),
        (PortSpec(), ["limits", "addresses"]),
        (PortSpec(tx_queue_length=100 + turn, guard=GuardSpec(enabled=True)), ["tx_queue_length", "guard"]),
    )
    return ports[turn % len(ports)]


def test_none_passes_while_a_port_is_changed(wire: Wire, vifd: Daemon, client: Client) -> None:
    with scene(wire, vifd) as flood:
        for turn in range(UPDATES):
            port, mask = changes(turn)
            client.update_endpoint(flood.guest.endpoint_id, port, mask)
            assert flood.forged.take() == 0
        client.update_endpoint(flood.guest.endpoint_id, PortSpec(link_up=True), ["link_up"])


def test_a_foreign_address_passes_at_no_moment_of_its_loss(wire: Wire, vifd: Daemon, client: Client) -> None:
    mine = arp("02:00:00:00:00:01", REPLY, ("02:00:00:00:00:01", FOREIGN), (NO_MAC, FORGED))
    port = PortSpec(mac="02:00:00:00:00:01", guard=GuardSpec(enabled=True), addresses=[ADDRESS])
    with scene(wire, vifd, port, extra=(mine,)) as flood:
        for turn in range(UPDATES):
            addresses = [[ADDRESS, OTHER_ADDRESS], [OTHER_ADDRESS], ["10.95.0.0/24", ADDRESS], [ADDRESS]][turn % 4]
            client.update_endpoint(flood.guest.endpoint_id, PortSpec(addresses=addresses), ["addresses"])
            assert flood.forged.take() == 0


#: What is done to a device; the last two only to a bridge's port.
DAMAGES = ("mtu 1400", "down", "address 02:00:00:00:00:77", "master elsewhere", "nomaster")


def test_none_passes_while_a_port_is_mended(wire: Wire, vifd: Daemon, client: Client) -> None:
    kernel.run(vifd.netns, "link", "add", "elsewhere", "type", "bridge")
    with scene(wire, vifd) as flood:
        for damage in (DAMAGES[:3] if wire.mode else DAMAGES) * 4:
            kernel.run(vifd.netns, "link", "set", flood.guest.ifname, *damage.split())
            client.check_endpoint(flood.guest.endpoint_id, repair=True)
            flood.check()


def test_none_passes_while_who_holds_the_device_changes_its_mac(wire: Wire, vifd: Daemon, client: Client) -> None:
    """It takes no capability."""
    with scene(wire, vifd) as flood:
        before = kernel.settings(vifd.netns, flood.guest.ifname)["address"]
        for _ in range(10):
            kernel.set_mac(flood.guest.fd, FOREIGN_MAC)
            flood.check()
            client.check_endpoint(flood.guest.endpoint_id, repair=True)
            assert kernel.settings(vifd.netns, flood.guest.ifname)["address"] == before
            flood.check()


def test_none_passes_while_others_flush_what_vifd_owns(wire: Wire, vifd: Daemon) -> None:
    with scene(wire, vifd) as flood:
        for _ in range(10):
            kernel.nft(vifd.netns, "flush", "ruleset")
            flood.check()


@pytest.mark.parametrize("victim", ["front", "helper", "none"])
def test_none_passes_while_vifd_ends_and_starts(wire: Wire, vifd: Daemon, victim: str) -> None:
    with scene(wire, vifd) as flood:
        for _ in range(3):
            assert vifd.process is not None
            helper = vifd.helper_pid
            if victim == "none":
                vifd.stop()
            else:
                os.kill(vifd.process.pid if victim == "front" else helper, signal.SIGKILL)
                vifd.wait_dead()
            wait_for(lambda helper=helper: not is_alive(helper))
            flood.check()
            vifd.start()
            flood.check()


def test_none_passes_while_others_come_and_go(wire: Wire, vifd: Daemon, client: Client) -> None:
    with scene(wire, vifd) as flood:
        rate = RateLimit(rate_pps=1000)
        for start in range(0, OTHERS, 50):
            ports = [
                PortSpec(
                    guard=GuardSpec(enabled=True),
                    addresses=[f"10.94.0.{start + n}", f"10.{start + n}.95.0/24"] if n % 2 else [],
                    limits=LimitsSpec(from_vm=rate) if n % 5 == 0 else None,
                )
                for n in range(50)
            ]
            answers = client.batch_request_endpoints([asked(acceptable=[wire.acceptable], port=port) for port in ports])
            release_all(client, [answer.endpoint.endpoint_id for answer in answers])
            flood.check()


def test_none_passes_while_a_device_is_made_and_released(wire: Wire, vifd: Daemon, client: Client) -> None:
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as root, contextlib.ExitStack() as stack:
        far = stack.enter_context(guests.guest(root, wire.make(root, port=UNGUARDED)))
        forged, legal = (Count(vifd.netns, mark, far.ifname, wire.far_device) for mark in (FORGED, LEGAL))
        stack.callback(forged.close)
        stack.callback(legal.close)
        sent = 0
        for turn in range(LIVES):
            wanted = [with_queues(wire, f"02:00:00:00:{turn:02x}:{number:02x}") for number in range(A_BATCH)]
            mac = wanted[0].port.mac
            target = names.device_name(Kind.MACVTAP if wire.mode else Kind.TAP, wanted[0].endpoint_id)
            with flooding(target, [*forgeries(mac), *legals(mac)], netns=vifd.netns) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                try:
                    client.batch_request_endpoints(wanted)
                except ServerError as error:  # of several queues, one was open before the tap had an owner: it isn't made
                    if "before it had an owner" not in error.message:
                        raise
                    continue
                legal.take()
                wait_for(lambda: legal.take() > 0)
                learned = guests.learned(vifd.netns, target)
                release_all(client, [request.endpoint_id for request in wanted])
                sent += int(process.communicate(timeout=30)[0])
            assert learned <= {mac}
            assert forged.take() == 0
        assert sent > LIVES


def with_queues(wire: Wire, mac: str) -> RequestEndpointRequest:
    """Ask for a device that two programs can open."""
    acceptable = wires.macvtap_preference(wire.mode, queues=2) if wire.mode else EndpointPreference(tap=TapPreference(queues=2))
    return asked(acceptable=[acceptable], port=PortSpec(mac=mac, guard=GuardSpec(enabled=True)))


@pytest.fixture
def shared(wire: Wire) -> Iterator[Daemon]:
    """A daemon whose table others may change."""
    with wire.running(daemon="own_nftables = false") as daemon:
        yield daemon


def tells_of_guard(endpoint: Endpoint, guest: Guest) -> bool:
    kinds = {drift.kind for drift in endpoint.drifts}
    return endpoint.endpoint_id == guest.endpoint_id and DriftKind.DRIFT_KIND_GUARD in kinds


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table FAMILY vifd",
        "flush chain FAMILY vifd sender",
        "flush set FAMILY vifd macs",
        "flush map FAMILY vifd ports",
        "flush chain FAMILY vifd FIRST",
    ],
)
def test_a_table_that_others_changed_is_put_back_and_told(wire: Wire, shared: Daemon, damage: str) -> None:
    with scene(wire, shared) as flood, Client(shared.socket) as client:
        with client.watch_endpoints() as watch:
            next(event for event in watch if event.kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED)
            begin = time.monotonic()
            first = f"out-{flood.guest.ifindex}" if wire.mode else "prerouting"
            kernel.nft(shared.netns, *damage.replace("FAMILY", wire.family).replace("FIRST", first).split())
            next(event for event in watch if tells_of_guard(event.endpoint, flood.guest))
        print(f"put back and told after {(time.monotonic() - begin) * 1000:.1f} ms")
        flood.pass_legal(100)
        flood.forged.take()
        flood.pass_legal(100)
        assert flood.forged.take() == 0
        kernel.run(shared.netns, "link", "set", flood.guest.ifname, "down")
        kernel.run(shared.netns, "link", "set", flood.guest.ifname, "up")  # what the bridge has learned meanwhile goes
        flood.check()
