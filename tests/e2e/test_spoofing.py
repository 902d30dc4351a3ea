"""A real virtual machine on a guarded tap or macvtap, that pretends to be another in every way it can."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.host import hosting
from tests.e2e.hypervisor import Hypervisor
from tests.e2e.raw import RawSender
from tests.guest import unprivileged
from tests.guest.image import Image
from tests.support import frames, guests, kernel, spoofs, wires
from tests.support.daemon import Daemon, ip, wait_for
from tests.support.frames import REPLY, REQUEST, UDP, ip4, udp
from tests.support.guests import Guest, Host
from tests.support.marked import FORGED, LEGAL, Count, forgeries, legals
from tests.support.spoofs import FOREIGN_MAC, IP4, IP4_OTHER, IP6, PREFIX4, PREFIX6
from tests.support.wires import Wire
from vifclient import Client
from vifclient.messages import Endpoint, GuardSpec, LimitsSpec, PortSpec, RateLimit

# generous: the machine is emulated, and whoever runs this may have a slow and busy CPU
pytestmark = pytest.mark.timeout(300)

NETWORK, HOST_ADDRESS = "blue", "10.91.0.1"
UID, UPDATES = 20001, 12
CHANGES = (
    (PortSpec(addresses=[IP4_OTHER, "10.95.0.0/24"]), ["addresses"]),
    (PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**9))), ["limits"]),
    (PortSpec(link_up=False), ["link_up"]),
    (PortSpec(link_up=True, addresses=[IP4]), ["link_up", "addresses"]),
    (PortSpec(), ["limits", "addresses"]),
)


class Stage(NamedTuple):
    """A machine, and who sees what it sends.

    Args:
        wire: what it is on the network by.
        host: the daemon.
        client: root's.
        hypervisor: the machine's owner.
        endpoint: the machine's.
        sender: what it sends raw frames by.
        far: another port's holder, without a guard, and the host.
        host_macs: the host's own.
    """

    wire: Wire
    host: Daemon
    client: Client
    hypervisor: Hypervisor
    endpoint: Endpoint
    sender: RawSender
    far: list[Guest | Host]
    host_macs: set[bytes]

    @property
    def ifname(self) -> str:
        """The name of the machine's device."""
        return (self.endpoint.macvtap if self.wire.mode else self.endpoint.tap).ifname

    def arrived(self, *sent: bytes) -> list[list[bytes]]:
        """What each far end gets of these frames, and has got since the last call."""
        got = guests.arrived(self.sender, self.far, *sent)
        return [[one for one in part if one[6:12] not in self.host_macs] for part in got]

    def strange(self, *sent: bytes) -> list[list[bytes]]:
        """The same without what the machine's own kernel may say by ARP at any time."""
        mac = frames.mac_bytes(self.sender.mac)
        may_say = [mac + bytes.fromhex(f"0806000108000604{n:04x}") + mac + frames.ip_bytes(IP4) for n in (REQUEST, REPLY)]
        return [[one for one in part if one[6:32] not in may_say] for part in self.arrived(*sent)]

    def try_ping(self, *options: str) -> bool:
        """Whether the machine hears an answer of the host's."""
        return self.sender.run(f"ping -c 1 -W 1 {' '.join(options)} {HOST_ADDRESS} >/dev/null; echo $?") == "0\n"

    @contextlib.contextmanager
    def changed(self, change: str, back: str) -> Iterator[None]:
        """Change something in the machine for the time of a block."""
        self.sender.run(change)
        try:
            yield
        finally:
            self.sender.run(back)

    def dropped(self, why: str) -> int:
        """How many frames the guard has dropped for a reason."""
        return self.counters()[why]

    def counters(self) -> dict[str, int]:
        """How many frames the guard has dropped, by why."""
        return guests.counters(self.host.netns, self.wire.family)

    def drops(self) -> int:
        """How many frames of the machine's the guard has dropped."""
        return guests.drops_of(self.host.netns, self.ifname, self.wire.family)


@pytest.fixture(scope="module", params=[wires.TAP, wires.MACVTAP], ids=lambda wire: wire.name)
def stage(request: Any, guest_image: Image) -> Iterator[Stage]:
    """One for all tests: a machine's start takes longer than any of them."""
    wire: Wire = request.param
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(hosting(wire.networks, uplink=bool(wire.mode)))
        client = stack.enter_context(Client(host.socket, fd_socket_path=host.fd_socket))
        hypervisor = Hypervisor(unprivileged.User(UID, UID), Path(host.socket), host.netns, guest_image)
        endpoint_id = hypervisor.request(NETWORK)
        endpoint = client.update_endpoint(endpoint_id, PortSpec(addresses=[IP4, PREFIX4, IP6, PREFIX6]), ["addresses"])
        assert endpoint.port.guard.enabled  # an ordinary user's is, without asking
        unguarded = wire.make(client, port=PortSpec(guard=GuardSpec(enabled=False)))
        far: list[Guest | Host] = [
            stack.enter_context(guests.guest(client, unguarded)),
            stack.enter_context(guests.host_side(host.netns, wire.far_device)),
        ]
        kernel.run(host.netns, "address", "add", f"{HOST_ADDRESS}/24", "dev", wire.far_device)
        if wire.mode:  # as a VM's kernel that listens to every group; the host's doesn't know which those are
            kernel.run(host.netns, "link", "set", unguarded.macvtap.ifname, "allmulticast", "on")
        machine = stack.enter_context(hypervisor.boot(endpoint_id, f"{IP4}/24"))
        sender = RawSender(machine.console, endpoint.port.mac)
        guests.connect(sender, far)
        yield Stage(wire, host, client, hypervisor, endpoint, sender, far, wire.host_macs(host.netns))


@pytest.fixture(autouse=True)
def _apart(stage: Stage) -> Iterator[None]:
    """What one test sent, the next one doesn't see; and whatever it was, the bridge has learned the machine's own MAC at most."""
    stage.arrived()
    yield
    assert guests.learned(stage.host.netns, stage.ifname) <= {stage.sender.mac}


def test_it_talks_to_the_host(stage: Stage) -> None:
    assert stage.try_ping()


def test_it_sends_no_forged_frame_and_every_legal_one(stage: Stage) -> None:
    you = stage.far[0]
    assert isinstance(you, Guest)
    expected = stage.counters()
    for why, _ in (*spoofs.NEVER, *spoofs.FOREIGN, *(spoofs.AT_THE_BRIDGE if stage.wire.mode else ())):
        expected[why] += 1
    forged = [frame(stage.sender, you) for frame in (spoofs.NEVER | spoofs.FOREIGN | spoofs.AT_THE_BRIDGE).values()]
    assert stage.strange(*forged) == [[], []]
    assert stage.counters() == expected
    legal = [frame(stage.sender, you) for frame in spoofs.ALWAYS.values()]
    assert [one for one in stage.arrived(*legal)[0] if one in legal] == legal


def test_with_another_mac_it_is_alone(stage: Stage) -> None:
    before = stage.dropped("mac")
    with stage.changed(change_mac(FOREIGN_MAC), change_mac(stage.sender.mac)):
        assert not stage.try_ping()
        assert stage.strange() == [[], []]
        assert stage.dropped("mac") > before
    wait_for(stage.try_ping)


def change_mac(mac: str) -> str:
    return f"ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up"


def test_with_anothers_address_it_neither_sends_nor_answers(stage: Stage) -> None:
    with stage.changed(*(f"ip address {verb} {IP4_OTHER}/24 dev eth0" for verb in ("add", "del"))):
        assert stage.try_ping()  # the host's MAC is known
        before = stage.counters()
        assert not stage.try_ping("-I", IP4_OTHER)
        stage.sender.run(f"arping -U -c 2 -I eth0 {IP4_OTHER} || true")
        ask = ["ip", "netns", "exec", stage.host.netns, "ping", "-c", "1", "-W", "1", IP4_OTHER]
        assert subprocess.run(ask, check=False, capture_output=True).returncode == 1
        got = stage.arrived()
        assert [one for part in got for one in part if frames.ip_bytes(IP4_OTHER) in (one[26:30], one[28:32])] == []
        after = stage.counters()
        # two announcements and at least one answer
        assert (after["address"] > before["address"], after["arp"] > before["arp"] + 2) == (True, True)
    assert stage.try_ping()


def test_its_dhcp_server_answers_nobody(stage: Stage) -> None:
    options = "start 10.91.0.200\\nend 10.91.0.210\\ninterface eth0\\nlease_file /tmp/leases\\n"
    stage.sender.run(f"printf '{options}' >/tmp/udhcpd.conf; touch /tmp/leases")
    client, before = stage.far[0], stage.dropped("dhcp_server")
    assert isinstance(client, Guest)

    def is_answered() -> bool:
        client.send(ip4(client.mac, "0.0.0.0", "255.255.255.255", UDP, udp(68, 67, discover(client.mac))))
        return stage.dropped("dhcp_server") > before

    with stage.changed("udhcpd -f -a 1 /tmp/udhcpd.conf >/dev/null 2>&1 & echo $!", "kill $(pidof udhcpd)"):
        wait_for(is_answered)
        mac = frames.mac_bytes(stage.sender.mac)
        assert [one for part in stage.strange() for one in part if one[6:12] == mac] == []


def discover(mac: str) -> bytes:
    """A DHCP client's first message (RFC 2131), answered by broadcast."""
    fixed = bytes([1, 1, 6, 0]) + b"vifd" + struct.pack(">HH", 0, 0x8000) + bytes(16) + frames.mac_bytes(mac) + bytes(10 + 192)
    return fixed + bytes([99, 130, 83, 99, 53, 1, 1, 255])


def test_none_passes_while_its_port_is_changed_mended_and_released(stage: Stage) -> None:
    """The last one: the machine has no network any more."""
    endpoint_id, far = stage.endpoint.endpoint_id, stage.far[0]
    assert isinstance(far, Guest)
    with contextlib.ExitStack() as stack:
        forged, legal = (
            stack.enter_context(contextlib.closing(Count(stage.host.netns, mark, far.ifname, stage.wire.far_device)))
            for mark in (FORGED, LEGAL)
        )
        stack.enter_context(stage.sender.flooding([*forgeries(stage.sender.mac), *legals(stage.sender.mac)]))
        before = stage.drops()

        def check() -> None:
            legal.take()
            wait_for(legal.take)
            assert forged.take() == 0

        stage.client.update_endpoint(endpoint_id, PortSpec(guard=GuardSpec(enabled=False)), ["guard"])
        wait_for(forged.take)  # so it does send them
        stage.client.update_endpoint(endpoint_id, PortSpec(guard=GuardSpec(enabled=True)), ["guard"])
        forged.take()
        check()
        for turn in range(UPDATES):
            port, mask = CHANGES[turn % len(CHANGES)]
            stage.client.update_endpoint(endpoint_id, port, mask)
            assert forged.take() == 0
        check()
        for damage in ("mtu 1400", "down") if stage.wire.mode else ("mtu 1400", "down", "nomaster"):
            kernel.run(stage.host.netns, "link", "set", stage.ifname, *damage.split())
            stage.client.check_endpoint(endpoint_id, repair=True)
            check()
        assert stage.host.stop() == 0
        check()
        stage.host.start()
        check()
        dropped = stage.drops() - before
        assert dropped > UPDATES
        print(f"{dropped} forged frames were dropped meanwhile")
        stage.hypervisor.release(endpoint_id)
        assert stage.ifname not in {link["ifname"] for link in ip(stage.host.netns, "link", "show")}
        assert forged.take() == 0
