"""DHCP, router advertisements and DNS, by a real dnsmasq: what guests are given, and what keeps it so."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from tests.support import kernel
from tests.support.daemon import ip, is_alive, network_namespace, short_directory, wait_for
from tests.support.dhcp import (
    AAAA,
    ACK,
    DISCOVER,
    DNS,
    DOMAIN,
    HOSTNAME,
    MTU,
    ROUTER,
    SERVER,
    DhcpFront,
    Guest,
    children,
    guest,
)
from vifd.dhcp.network import DhcpNetwork

BLUE = DhcpNetwork("br-blue", ("10.91.0.1/24", "fd00:91::1/64"), mtu_bytes=1400, domain="vms.example.org")
ALICE_MAC, BOB_MAC = "52:54:00:00:00:0a", "52:54:00:00:00:0b"


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace with the network's bridge, as vifd makes it."""
    with network_namespace() as name:
        kernel.run(name, "link", "add", "br-blue", "mtu", "1400", "type", "bridge", "forward_delay", "0")
        kernel.run(name, "address", "add", "10.91.0.1/24", "dev", "br-blue")
        kernel.run(name, "address", "add", "fd00:91::1/64", "dev", "br-blue", "nodad")
        kernel.run(name, "link", "set", "br-blue", "up")
        yield name


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def front(netns: str, directory: Path) -> Iterator[DhcpFront]:
    """The network served, without a host."""
    with serving(netns, directory) as one:
        yield one


@contextlib.contextmanager
def serving(netns: str, directory: Path) -> Iterator[DhcpFront]:
    front = DhcpFront(netns, directory, {"blue": BLUE})
    try:
        yield front
    finally:
        if front.process.poll() is None:
            assert front.stop() == 0
        print(front.log())


@pytest.fixture
def alice(netns: str) -> Iterator[Guest]:
    with guest(netns, "br-blue", ALICE_MAC) as one:
        yield one


@pytest.fixture
def bob(netns: str) -> Iterator[Guest]:
    with guest(netns, "br-blue", BOB_MAC) as one:
        yield one


def test_a_guest_is_given_what_its_endpoint_has(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10", name="Web")
    front.tell(start=1)
    front.wait_running()
    answer = alice.configure()
    assert answer is not None
    assert (answer.address, answer.address_of(1)) == ("10.91.0.10", "255.255.255.0")
    assert [answer.address_of(option) for option in (ROUTER, DNS, SERVER)] == ["10.91.0.1"] * 3
    assert [answer.options[option] for option in (HOSTNAME, DOMAIN, MTU)] == [b"web", b"vms.example.org", b"\x05\x78"]
    answer6 = alice.configure6()
    assert answer6 is not None
    assert answer6.address == "fd00:91::10"
    assert answer6.options[23] == ipaddress.IPv6Address("fd00:91::1").packed
    assert answer6.options[24] == b"\3vms\7example\3org\0"


def test_a_guest_takes_its_route_from_router_advertisements(front: DhcpFront, alice: Guest) -> None:
    front.tell(start=1)
    front.wait_running()
    link_local = next(a["local"] for a in ip_addresses(front.netns, "br-blue") if a["scope"] == "link")
    wait_for(lambda: alice.default_routes6() == [link_local])
    # Its address is by DHCPv6: one of its own making would be none of its endpoint's.
    assert [a["scope"] for a in ip_addresses(alice.netns, "eth0")] == ["link"]


def test_names_are_answered_whether_the_guest_asked_by_dhcp_or_not(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10", name="web")
    front.set_host("blue", "2", BOB_MAC, "10.91.0.11", name="web")
    front.tell(start=1)
    front.wait_running()
    kernel.run(alice.netns, "address", "add", "10.91.0.10/24", "dev", "eth0")
    for name in ("web", "web.vms.example.org"):
        assert alice.resolve("10.91.0.1", name) == ["10.91.0.10"]
        assert alice.resolve("10.91.0.1", name, AAAA) == ["fd00:91::10"]
    assert alice.resolve("10.91.0.1", "none.vms.example.org") == []
    front.remove_host("blue", "1")
    wait_for(lambda: alice.resolve("10.91.0.1", "web") == ["10.91.0.11"])


def test_a_guest_gives_itself_no_name(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    front.wait_running()
    assert alice.configure(options=bytes([HOSTNAME, 4]) + b"bank") is not None
    kernel.run(alice.netns, "address", "add", "10.91.0.10/24", "dev", "eth0")
    assert alice.resolve("10.91.0.1", "bank") == []


def test_a_stranger_is_given_nothing(front: DhcpFront, alice: Guest, bob: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    front.wait_running()
    asked = bob.ask(DISCOVER)
    assert alice.configure() is not None
    assert bob.hear(asked, seconds=0.2) is None


def test_hosts_come_and_go_without_a_restart(front: DhcpFront, alice: Guest, bob: Guest) -> None:
    front.tell(start=1)
    pid = front.wait_running()
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    wait_for(alice.configure)
    front.set_host("blue", "2", BOB_MAC, "10.91.0.11")
    wait_for(bob.configure)
    front.remove_host("blue", "1")
    wait_for(lambda: alice.hear(alice.ask(DISCOVER), seconds=0.2) is None)
    assert front.server_pid("blue") == pid


def test_an_address_is_anothers_as_soon_as_it_was_given_back(front: DhcpFront, alice: Guest, bob: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10")
    front.tell(start=1)
    pid = front.wait_running()
    assert alice.configure() is not None
    assert alice.configure6() is not None
    front.remove_host("blue", "1")
    front.set_host("blue", "2", BOB_MAC, "10.91.0.10", "fd00:91::10")
    answer = wait_for(bob.configure)
    answer6 = wait_for(bob.configure6)
    assert (answer.address, answer6.address) == ("10.91.0.10", "fd00:91::10")
    assert front.server_pid("blue") == pid


def test_an_address_that_was_given_back_while_nobody_served_is_anothers_too(
    netns: str, directory: Path, alice: Guest, bob: Guest
) -> None:
    with serving(netns, directory) as front:
        front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10")
        front.tell(start=1)
        front.wait_running()
        assert alice.configure() is not None
        assert alice.configure6() is not None
        front.kill()
    with serving(netns, directory) as front:
        front.tell(start=1)
        front.wait_running()
        front.set_host("blue", "2", BOB_MAC, "10.91.0.10", "fd00:91::10")
        assert wait_for(bob.configure).address == "10.91.0.10"
        assert wait_for(bob.configure6).address == "fd00:91::10"


def test_a_guest_with_another_system_on_its_disk_is_the_same_guest(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    front.wait_running()
    for client_id in (b"", b"boot loader", b"system"):
        answer = alice.configure(options=bytes([61, len(client_id) + 1, 0]) + client_id if client_id else b"")
        assert answer is not None
        assert answer.address == "10.91.0.10"


def test_after_a_stop_the_next_system_has_the_guests_addresses(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10")
    front.tell(start=1)
    front.wait_running()
    assert alice.configure() is not None
    assert alice.configure6(b"\0\4" + b"A" * 16) is not None
    front.tell(stopped=["blue", "1"])
    assert wait_for(lambda: alice.configure6(b"\0\4" + b"B" * 16)).address == "fd00:91::10"
    assert wait_for(alice.configure).address == "10.91.0.10"


def test_a_server_that_dies_is_started_again_and_knows_its_guests(front: DhcpFront, alice: Guest) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    pid = front.wait_running()
    assert alice.configure() is not None
    os.kill(pid, signal.SIGKILL)
    assert front.wait_problem() == "dnsmasq was killed by signal 9"
    assert front.wait_running() != pid
    renewed = alice.renew("10.91.0.10")
    assert renewed is not None
    assert (renewed.type, renewed.address) == (ACK, "10.91.0.10")
    assert front.problems == {"blue": ""}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_guests_renew_when_vifd_was_restarted(netns: str, directory: Path, alice: Guest, number: signal.Signals) -> None:
    for _ in range(2):
        with serving(netns, directory) as front:
            front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10")
            front.tell(start=1)
            pid = front.wait_running()
            assert alice.configure() is not None
            front.kill() if number is signal.SIGKILL else front.stop()
            wait_for(lambda pid=pid: not is_alive(pid))
    with serving(netns, directory) as front:
        front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", "fd00:91::10")
        front.tell(start=1)
        front.wait_running()
        renewed = alice.renew("10.91.0.10")
        assert renewed is not None
        assert renewed.type == ACK


def test_a_guest_keeps_its_address_when_the_leases_are_lost(netns: str, directory: Path, alice: Guest) -> None:
    with serving(netns, directory) as front:
        front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
        front.tell(start=1)
        front.wait_running()
        assert alice.configure() is not None
    front.files.lease_file("blue").unlink()
    with serving(netns, directory) as front:
        front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
        front.tell(start=1)
        front.wait_running()
        renewed = alice.renew("10.91.0.10")
        assert renewed is not None
        assert renewed.type == ACK


def test_servers_end_when_their_supervisor_is_killed(front: DhcpFront) -> None:
    front.tell(start=1)
    pid = front.wait_running()
    os.kill(front.supervisor_pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    assert front.process.wait(30) == 3  # and so does vifd, to be started anew
    front.kill()


def test_each_process_has_what_it_needs_and_no_more(front: DhcpFront) -> None:
    front.tell(start=1)
    server, supervisor = status(front.wait_running()), status(front.supervisor_pid)
    uid = pwd.getpwnam("dnsmasq").pw_uid
    serves, keeps = 1 << 10 | 1 << 12 | 1 << 13, 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 12 | 1 << 13
    assert server["Uid"].split() == [str(uid)] * 4
    assert server["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(server[kind], 16) == serves
    assert supervisor["Uid"].split() == ["0"] * 4
    assert (int(supervisor["CapPrm"], 16), int(supervisor["CapEff"], 16)) == (keeps, keeps)
    for process in (server, supervisor):
        assert int(process["CapBnd"], 16) == keeps
        assert process["NoNewPrivs"] == "1"
    assert supervisor["Name"] == "vifd-dhcp"


def test_a_network_without_ipv6_is_served_without_a_raw_socket(front: DhcpFront, alice: Guest) -> None:
    front.write({"blue": msgspec.structs.replace(BLUE, addresses=("10.91.0.1/24",))})
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    front.tell(reload=1)
    pid = front.wait_running()
    wait_for(lambda: int(status(front.server_pid("blue") or pid)["CapPrm"], 16) == 1 << 10 | 1 << 12)
    assert wait_for(alice.configure).address == "10.91.0.10"


def test_no_descriptor_of_vifds_reaches_the_server(front: DhcpFront) -> None:
    front.tell(start=1)
    pid = front.wait_running()
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH115, PTH208  no path but links
    assert not {
        link for link in links if link.startswith("/") and link != "/dev/null" and "leases" not in link and "hosts" not in link
    }


def test_who_reads_and_writes_the_files_is_fixed(front: DhcpFront) -> None:
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10", name="web")
    front.tell(start=1)
    front.wait_running()
    nobody, dnsmasq = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("dnsmasq").pw_uid
    assert mode(front.files.hosts) == (nobody, 0o750)
    assert mode(front.files.leases) == (dnsmasq, 0o750)
    assert mode(front.files.dhcp_hosts("blue")) == mode(front.files.names("blue")) == (nobody, 0o644)
    assert mode(front.files.lease_file("blue")) == (dnsmasq, 0o644)


def test_a_reload_starts_replaces_and_ends(netns: str, front: DhcpFront, alice: Guest) -> None:
    kernel.run(netns, "link", "add", "br-red", "type", "bridge")
    kernel.run(netns, "address", "add", "10.92.0.1/24", "dev", "br-red")
    kernel.run(netns, "link", "set", "br-red", "up")
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    front.tell(start=1)
    blue = front.wait_running()
    red = DhcpNetwork("br-red", ("10.92.0.1/24",))
    front.write({"blue": BLUE, "red": red})
    front.tell(reload=1)
    first_red = front.wait_running("red")
    assert front.server_pid("blue") == blue
    front.write({"blue": msgspec.structs.replace(BLUE, dns=("192.0.2.53",)), "red": red})
    front.tell(reload=1)
    wait_for(lambda: front.server_pid("blue") not in (0, blue))
    front.wait_running()
    answer = wait_for(alice.configure)
    assert answer.address_of(DNS) == "192.0.2.53"
    assert front.server_pid("red") == first_red
    front.write({"red": red})
    front.tell(reload=1)
    wait_for(lambda: front.server_pid("blue") == 0)
    assert front.server_pid("red") == first_red


def test_a_wrong_configuration_changes_nothing(front: DhcpFront) -> None:
    front.tell(start=1)
    pid = front.wait_running()
    (front.files.hosts.parent / "networks.json").write_text("{")
    front.tell(raw=b"R".hex())
    wait_for(lambda: "stays as it was" in front.log())
    assert front.server_pid("blue") == pid


@contextlib.contextmanager
def other_server(netns: str, bridge: str, *, shares: bool) -> Iterator[None]:
    """Have somebody else's DHCP server on a bridge; on its device alone and shared, as dnsmasq has it, or everywhere."""

    def serve() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if shares:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        server.bind(("", 67))
        return server

    with kernel.inside(netns, serve):
        yield


@pytest.mark.parametrize("shares", [True, False])
def test_another_dhcp_server_on_the_bridge_is_told_and_waited_for(
    netns: str, front: DhcpFront, alice: Guest, *, shares: bool
) -> None:
    before = kernel.snapshot(netns)
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    with other_server(netns, "br-blue", shares=shares):
        front.tell(start=1)
        assert front.wait_problem().startswith("another DHCP server has the port on bridge br-blue")
    front.wait_running()
    assert kernel.snapshot(netns) == before
    assert wait_for(alice.configure).address == "10.91.0.10"


def test_another_networks_dhcp_server_is_none_of_ours(netns: str, front: DhcpFront) -> None:
    kernel.run(netns, "link", "add", "virbr0", "type", "bridge")
    with other_server(netns, "virbr0", shares=True):
        front.tell(start=1)
        front.wait_running()
        assert front.problems == {}


def test_another_dns_server_is_told(netns: str, front: DhcpFront) -> None:
    def serve() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("10.91.0.1", 53))
        return server

    with kernel.inside(netns, serve):
        front.tell(start=1)
        assert "port 53 of 10.91.0.1" in front.wait_problem()
    front.wait_running()


def test_a_bridge_without_the_networks_address_is_told(netns: str, front: DhcpFront) -> None:
    kernel.run(netns, "address", "del", "10.91.0.1/24", "dev", "br-blue")
    front.tell(start=1)
    assert "hasn't the address 10.91.0.1" in front.wait_problem()
    kernel.run(netns, "address", "add", "10.91.0.1/24", "dev", "br-blue")
    front.wait_running()


def test_a_missing_user_is_told(netns: str, directory: Path) -> None:
    front = DhcpFront(netns, directory, {"blue": BLUE}, user="vifd-nobody")
    front.tell(start=1)
    assert "no user that DHCP servers may run as" in front.wait_problem()
    assert front.stop() == 0


HOSTILE = [
    b"H",
    b"Hgreen",
    b"H../../etc/passwd",
    b"Hblue\0",
    b"Hblue\n--conf-file=/tmp/x",
    b"H" + b"b" * 4000,
    b"Hblue --user=root",
    b"K1",
    b"R\0",
    b"RH",
    b"\0" * 100,
    b'{"network": "blue", "argv": ["--user=root"]}',
]


def test_whoever_owns_the_front_process_gets_nothing_done(netns: str, front: DhcpFront) -> None:
    front.tell(start=1)
    pid = front.wait_running()
    argv = Path(f"/proc/{pid}/cmdline").read_bytes()
    before, random = kernel.snapshot(netns), Random(3)
    for packet in HOSTILE + [random.randbytes(random.randint(1, 200)) for _ in range(500)]:
        front.tell(raw=packet.hex())
    for _ in range(300):
        front.tell(raw=b"Hblue".hex())
    front.set_host("blue", "1", ALICE_MAC, "10.91.0.10")
    wait_for(lambda: ALICE_MAC in front.files.dhcp_hosts("blue").read_text())
    assert children(front.supervisor_pid) == [pid]
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == argv
    assert kernel.snapshot(netns) == before
    assert {path.name for path in front.files.hosts.iterdir()} == {"blue.hosts", "blue.names"}


def ip_addresses(netns: str, ifname: str) -> Any:
    return ip(netns, "address", "show", "dev", ifname)[0]["addr_info"]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_mode & 0o7777
