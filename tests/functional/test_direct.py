"""Direct networks: macvtaps on a real uplink, a veth whose other end sees what arrives there."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import TAP, asked, make, new_id, refusal, release_all, state_of
from tests.support.children import child
from tests.support.daemon import Daemon, ip, is_alive, network_namespace, running, short_directory, wait_for
from tests.support.restarts import listed, restarted
from tests.support.users import User
from tests.support.wires import MACVTAP_MODES, add_uplink, macvtap_preference
from vifclient import Client, VifError
from vifclient.messages import (
    DriftKind,
    Endpoint,
    EndpointPreference,
    GuardSpec,
    LimitsSpec,
    MacvtapMode,
    Owner,
    PortSpec,
    RateLimit,
    VlanSpec,
    WatchEventKind,
)
from vifclient.retry import NO_RETRY
from vifd.kernel import names
from vifd.model import Kind

ALICE = 20001
NETWORKS = """
[networks.lan]
driver = "direct"
uplink = "up0"
"""
VNET_HDR = bytes(10)
MAGIC = b"a frame of vifd's tests"
ETHER_TYPE = 0x88B5  # IEEE 802, local experiments

#: Opens a node as its owner does, sends what stdin has, and prints what arrives with the second argument in it.
OPENER = """
import os, sys
os.setgroups([int(group) for group in sys.argv[4].split(",") if group])
os.setresgid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"open")
os.write(fd, sys.stdin.buffer.read())
while sys.argv[5].encode() not in (frame := os.read(fd, 4096)):
    pass
os.write(1, frame)
"""


def macvtap(mode: str = "bridge", **options: Any) -> list[EndpointPreference]:
    return [macvtap_preference(mode, **options)]


def make_macvtap(client: Client, mode: str = "bridge", *, network: str = "lan", **fields: Any) -> Endpoint:
    queues = {"queues": fields.pop("queues")} if "queues" in fields else {}
    return make(client, network=network, acceptable=macvtap(mode, **queues), **fields)


def macvtaps(netns: str) -> list[Any]:
    return [link for link in ip(netns, "link", "show") if link.get("linkinfo", {}).get("info_kind") == "macvtap"]


def nodes(vifd: Daemon) -> list[Path]:
    return [path for path in vifd.devices.rglob("*") if not path.is_dir()]


def sysfs_number(netns: str, ifname: str) -> int:
    """The device number, from a sysfs of that namespace (`ip netns exec` mounts one)."""
    show = f"cat /sys/class/net/{ifname}/macvtap/tap*/dev"
    done = subprocess.run(["ip", "netns", "exec", netns, "sh", "-c", show], check=True, capture_output=True, text=True)
    major, minor = done.stdout.split(":")
    return os.makedev(int(major), int(minor))


def frame(destination: str, source: str, payload: bytes = MAGIC) -> bytes:
    addresses = bytes.fromhex((destination + source).replace(":", ""))
    return addresses + struct.pack("!H", ETHER_TYPE) + payload.ljust(46, b"\0")


@contextlib.contextmanager
def listening(netns: str, ifname: str = "far0", *, ether_type: int = ETHER_TYPE) -> Iterator[socket.socket]:
    """A socket on the other end of the uplink."""
    one = kernel.packet_socket(netns, ifname, ether_type)
    one.settimeout(20)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def lan() -> Iterator[Daemon]:
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


@pytest.fixture
def vifd(lan: Daemon) -> Iterator[Daemon]:
    """The module's daemon, for a test: without endpoints and nodes before and after it."""
    yield lan
    print(lan.log()[-5000:])
    with Client(lan.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert macvtaps(lan.netns) == []
    assert nodes(lan) == []


@pytest.fixture
def own() -> Iterator[Daemon]:
    """A daemon of the test's own, to be stopped and started, with an uplink of its own."""
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            print(daemon.log()[-5000:])


@pytest.fixture
def own_client(own: Daemon) -> Iterator[Client]:
    with Client(own.socket, retry=NO_RETRY) as client:
        yield client


# --- what is made


@pytest.mark.parametrize("mode", MACVTAP_MODES)
def test_a_macvtap_of_every_mode_is_what_the_kernel_shows(vifd: Daemon, as_alice: Client, mode: str) -> None:
    endpoint = make_macvtap(as_alice, mode)
    (link,) = macvtaps(vifd.netns)
    found = endpoint.macvtap
    assert (found.ifname, found.ifindex, found.lower_ifname) == (link["ifname"], link["ifindex"], link["link"])
    assert (link["link"], link["linkinfo"]["info_data"]["mode"]) == ("up0", mode)
    assert MacvtapMode.Name(found.mode) == f"MACVTAP_MODE_{mode.upper()}"
    assert (link["address"], link["mtu"]) == (endpoint.port.mac, endpoint.port.mtu_bytes)
    assert (link["ifalias"], link["altnames"]) == (f"vifd:{endpoint.endpoint_id}", [f"vifd-{endpoint.endpoint_id}"])
    assert "UP" in link["flags"]
    assert link["inet6_addr_gen_mode"] == "none"
    assert found.netns_path == f"/run/netns/{vifd.netns}"


def test_no_macvtap_gives_the_host_an_address(vifd: Daemon, client: Client) -> None:
    endpoint = make_macvtap(client)
    assert kernel.settings(vifd.netns, endpoint.macvtap.ifname)["addr_info"] == []


@pytest.mark.parametrize("gid", [None, 4242])
def test_the_node_is_the_devices_and_its_owners_alone(vifd: Daemon, client: Client, gid: int | None) -> None:
    owner = Owner(uid=ALICE) if gid is None else Owner(uid=ALICE, gid=gid)
    endpoint = make_macvtap(client, owner=owner)
    found = Path(endpoint.macvtap.device_path).lstat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == sysfs_number(vifd.netns, endpoint.macvtap.ifname)
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (ALICE, 0o600)
    assert nodes(vifd) == [Path(endpoint.macvtap.device_path)]
    directory = Path(endpoint.macvtap.device_path).parent.stat()
    expected = (0, 0, 0o711) if gid is None else (0, gid, 0o710)
    assert (directory.st_uid, directory.st_gid, stat.S_IMODE(directory.st_mode)) == expected


def test_a_release_takes_device_and_node(vifd: Daemon, client: Client) -> None:
    endpoints = [make_macvtap(client) for _ in range(3)]
    client.release_endpoint(endpoints[0].endpoint_id)
    assert {link["ifname"] for link in macvtaps(vifd.netns)} == {one.macvtap.ifname for one in endpoints[1:]}
    assert set(nodes(vifd)) == {Path(one.macvtap.device_path) for one in endpoints[1:]}
    release_all(client)
    assert (macvtaps(vifd.netns), nodes(vifd)) == ([], [])


def test_the_mode_passthru_lends_the_uplink_the_vms_mac(vifd: Daemon, client: Client) -> None:
    before = kernel.settings(vifd.netns, "up0")["address"]
    endpoint = make_macvtap(client, "passthru")
    assert kernel.settings(vifd.netns, "up0")["address"] == endpoint.port.mac
    client.release_endpoint(endpoint.endpoint_id)
    assert kernel.settings(vifd.netns, "up0")["address"] == before


def test_a_batch_is_made_all_or_none(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    mac = "52:54:00:00:00:99"
    wanted = [asked(network="lan", acceptable=macvtap(), port=PortSpec(mac=one)) for one in ("52:54:00:00:00:98", mac, mac)]
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        client.batch_request_endpoints(wanted)
    assert kernel.snapshot(vifd.netns) == before
    assert nodes(vifd) == []
    assert len(client.batch_request_endpoints(wanted[:2])) == 2


def test_the_endpoint_is_ready_and_not_attached_for_its_carrier_is_the_uplinks(vifd: Daemon, client: Client) -> None:
    endpoint = make_macvtap(client)
    wait_for(lambda: "LOWER_UP" in ip(vifd.netns, "link", "show", endpoint.macvtap.ifname)[0]["flags"])
    assert state_of(client, endpoint.endpoint_id) == "READY"


# --- who opens it


def open_as(path: str, uid: int, gid: int, groups: str, expected: bytes) -> AbstractContextManager[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-I", "-c", OPENER, path, str(uid), str(gid), groups, expected.decode()]
    return child(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_unprivileged_owner_sends_and_receives_through_the_node(vifd: Daemon, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice)
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    expected = MAGIC[::-1]
    with listening(vifd.netns) as far, open_as(endpoint.macvtap.device_path, ALICE, ALICE, "", expected) as opener:
        assert opener.stdin is not None
        assert opener.stdout is not None
        opener.stdin.write(VNET_HDR + frame(far_mac, endpoint.port.mac))
        opener.stdin.close()
        assert MAGIC in far.recv(4096)
        far.send(frame(endpoint.port.mac, far_mac, MAGIC[::-1]))
        assert MAGIC[::-1] in opener.stdout.read()
        assert opener.wait(20) == 0


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "opens"),
    [
        (ALICE, ALICE, "4242", True),
        (ALICE, 4242, "", True),
        (ALICE, ALICE, "", False),
        (20002, 4242, "", False),
        (20002, 20002, "4242", False),
    ],
)
def test_an_owner_with_a_group_needs_both(vifd: Daemon, client: Client, uid: int, gid: int, groups: str, *, opens: bool) -> None:
    endpoint = make_macvtap(client, owner=Owner(uid=ALICE, gid=4242))
    with open_as(endpoint.macvtap.device_path, uid, gid, groups, MAGIC) as opener:
        output, error = opener.communicate(VNET_HDR + b"\0" * 14, 20) if not opens else (_first(opener), b"")
    assert (output == b"open", b"PermissionError" in error) == (opens, not opens)


def _first(opener: subprocess.Popen[bytes]) -> bytes:
    assert opener.stdout is not None
    return opener.stdout.read(4)


def test_the_queues_are_handed_over_to_the_owner(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice, queues=4)
    assert endpoint.macvtap.queues == 4
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    with alice.acquire_fds(vifd, endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        assert (len(set(queues.fds)), queues.vnet_hdr) == (4, True)
        number = sysfs_number(vifd.netns, endpoint.macvtap.ifname)
        assert {os.fstat(fd).st_rdev for fd in queues} == {number}
        assert {kernel.tun_interface(fd)[0] for fd in queues} == {endpoint.macvtap.ifname}
        os.write(queues.fds[2], VNET_HDR + frame(far_mac, endpoint.port.mac))
        assert MAGIC in far.recv(4096)
        far.send(frame(endpoint.port.mac, far_mac, MAGIC[::-1]))
        readable, *_ = select.select(queues.fds, [], [], 20)
        assert MAGIC[::-1] in os.read(readable[0], 4096)
    assert len(nodes(vifd)) == 1


def test_a_macvtap_without_a_virtio_header_is_opened_without(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, network="lan", acceptable=macvtap(vnet_hdr=False))
    assert not endpoint.macvtap.vnet_hdr
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    with alice.acquire_fds(vifd, endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        assert not queues.vnet_hdr
        os.write(queues.fds[0], frame(far_mac, endpoint.port.mac))
        assert far.recv(4096).startswith(bytes.fromhex(far_mac.replace(":", "")))


def test_another_users_macvtap_is_not_handed_over(vifd: Daemon, bob: User, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice)
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        bob.acquire_fds(vifd, endpoint.endpoint_id)


@pytest.mark.parametrize(("mode", "reach"), [("bridge", True), ("private", False), ("vepa", False)])
def test_siblings_reach_each_other_as_the_mode_says(
    vifd: Daemon, alice: User, as_alice: Client, mode: str, *, reach: bool
) -> None:
    one, other = make_macvtap(as_alice, mode), make_macvtap(as_alice, mode)
    with alice.acquire_fds(vifd, one.endpoint_id) as sending, alice.acquire_fds(vifd, other.endpoint_id) as receiving:
        os.write(sending.fds[0], VNET_HDR + frame(other.port.mac, one.port.mac))
        arrived = select.select(receiving.fds, [], [], 5 if reach else 0.3)[0]
        assert bool(arrived) is reach


# --- namespaces


def test_two_namespaces_with_equal_indexes_and_ids_dont_mix_up() -> None:
    with contextlib.ExitStack() as stack:
        daemons = []
        for _ in range(2):
            netns = stack.enter_context(network_namespace())
            add_uplink(netns)
            daemons.append(Daemon(stack.enter_context(short_directory()), netns=netns, networks=NETWORKS))
        for daemon in daemons:  # both make their nodes in one directory, as two vifds of a host do
            daemon.devices = daemons[0].devices
            daemon.write_config(NETWORKS)
            stack.callback(daemon.kill)
            daemon.start()
        clients = [stack.enter_context(Client(daemon.socket, retry=NO_RETRY)) for daemon in daemons]
        endpoint_id = new_id()
        macs = ("52:54:00:00:00:01", "52:54:00:00:00:02")
        found = [make_macvtap(c, endpoint_id=endpoint_id, port=PortSpec(mac=mac)) for c, mac in zip(clients, macs, strict=True)]
        assert found[0].macvtap.ifindex == found[1].macvtap.ifindex
        assert found[0].macvtap.ifname == found[1].macvtap.ifname
        assert found[0].macvtap.device_path != found[1].macvtap.device_path
        for daemon, client, endpoint in zip(daemons, clients, found, strict=True):
            number = sysfs_number(daemon.netns, endpoint.macvtap.ifname)
            assert Path(endpoint.macvtap.device_path).stat().st_rdev == number
            with client.acquire_fds(endpoint_id) as queues, listening(daemon.netns) as far:
                assert os.fstat(queues.fds[0]).st_rdev == number
                os.write(queues.fds[0], VNET_HDR + frame("ff:ff:ff:ff:ff:ff", endpoint.port.mac))
                assert MAGIC in far.recv(4096)
        clients[0].release_endpoint(endpoint_id)
        assert nodes(daemons[0]) == [Path(found[1].macvtap.device_path)]
        assert daemons[0].stop() == 0
        daemons[0].start()
        assert nodes(daemons[0]) == [Path(found[1].macvtap.device_path)]


# --- guard and limits


@pytest.mark.parametrize("guarded", [True, False])
def test_only_frames_with_the_vms_mac_leave_a_guarded_macvtap(vifd: Daemon, client: Client, *, guarded: bool) -> None:
    endpoint = make_macvtap(client, port=PortSpec(guard=GuardSpec(enabled=guarded)))
    assert endpoint.port.guard.enabled is guarded
    with client.acquire_fds(endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        os.write(queues.fds[0], VNET_HDR + frame("ff:ff:ff:ff:ff:ff", "52:54:00:66:66:66", b"forged"))
        os.write(queues.fds[0], VNET_HDR + frame("ff:ff:ff:ff:ff:ff", endpoint.port.mac))
        first = far.recv(4096)
        assert (MAGIC in first, b"forged" in first) == (guarded, not guarded)


def test_a_guarded_macvtap_sends_from_its_addresses_alone(vifd: Daemon, as_alice: Client, alice: User) -> None:
    endpoint = make_macvtap(as_alice, port=PortSpec(addresses=["10.9.0.7"]))
    with alice.acquire_fds(vifd, endpoint.endpoint_id) as queues, listening(vifd.netns, ether_type=0x0800) as far:
        for source in ("10.9.0.8", "10.9.0.7"):
            addresses = bytes.fromhex("ffffffffffff" + endpoint.port.mac.replace(":", "")) + b"\x08\x00"
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 253, 0)
            os.write(queues.fds[0], VNET_HDR + addresses + header + socket.inet_aton(source) + socket.inet_aton("10.9.0.1"))
        assert far.recv(4096)[26:30] == socket.inet_aton("10.9.0.7")


def test_the_guard_is_in_before_the_link_is_up_and_gone_with_the_device(vifd: Daemon, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice)
    ifindex = endpoint.macvtap.ifindex
    assert f"out-{ifindex}" in kernel.nft(vifd.netns, "list", "table", "netdev", "vifd")
    as_alice.release_endpoint(endpoint.endpoint_id)
    left = kernel.nft(vifd.netns, "list", "table", "netdev", "vifd")
    assert f"out-{ifindex}" not in left
    assert endpoint.port.mac not in left


def test_a_guard_that_somebody_flushed_is_put_back() -> None:
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS, daemon="own_nftables = false\n") as daemon, Client(daemon.socket) as client:
            endpoint = make_macvtap(client)
            before = kernel.nft(netns, "list", "table", "netdev", "vifd")
            kernel.nft(netns, "flush", "ruleset")
            wait_for(lambda: "vifd" in kernel.nft(netns, "list", "tables"))
            wait_for(lambda: kernel.nft(netns, "list", "table", "netdev", "vifd") == before)
            restarted(daemon)
            assert kernel.nft(netns, "list", "table", "netdev", "vifd") == before
            assert f"out-{endpoint.macvtap.ifindex}" in before


def test_limits_are_kept_in_the_directions_of_the_vm(vifd: Daemon, client: Client) -> None:
    rate_bps, burst_bytes = 16_000_000, 150_000
    limits = LimitsSpec(
        from_vm=RateLimit(rate_bps=rate_bps, burst_bytes=burst_bytes),
        to_vm=RateLimit(rate_bps=2 * rate_bps, burst_bytes=burst_bytes),
    )
    endpoint = make_macvtap(client, port=PortSpec(limits=limits))
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    with client.acquire_fds(endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        os.set_blocking(queues.fds[0], False)
        far.setblocking(False)
        sent = frame(far_mac, endpoint.port.mac).ljust(1514, b"x")
        rate = measured(lambda: os.write(queues.fds[0], VNET_HDR + sent), lambda: far.recv(4096))
        assert 0.8 * rate_bps < rate < 1.2 * rate_bps
        back = frame(endpoint.port.mac, far_mac).ljust(1514, b"x")
        rate = measured(lambda: far.send(back), lambda: os.read(queues.fds[0], 4096))
        assert 0.8 * 2 * rate_bps < rate < 1.2 * 2 * rate_bps


def measured(send: Callable[[], object], receive: Callable[[], bytes]) -> float:
    """Send as much as goes, and give the bits a second that arrive once the burst is used up."""
    received, begin, end = 0, time.monotonic() + 0.5, time.monotonic() + 2.0
    while (now := time.monotonic()) < end:
        with contextlib.suppress(BlockingIOError, OSError):
            for _ in range(8):
                send()
        with contextlib.suppress(BlockingIOError):
            while data := receive():
                received += len(data) if now > begin else 0
    return received * 8 / 1.5


def test_a_living_macvtap_is_changed(vifd: Daemon, client: Client) -> None:
    endpoint = make_macvtap(client)
    changed = client.update_endpoint(
        endpoint.endpoint_id,
        PortSpec(mtu_bytes=1400, guard=GuardSpec(enabled=False), tx_queue_length=77),
        ["mtu_bytes", "guard", "tx_queue_length"],
    )
    (link,) = macvtaps(vifd.netns)
    assert (changed.port.mtu_bytes, link["mtu"], link["txqlen"], link["ifindex"]) == (1400, 1400, 77, endpoint.macvtap.ifindex)
    down = client.update_endpoint(endpoint.endpoint_id, PortSpec(link_up=False), ["link_up"])
    assert (down.port.link_up, "UP" in macvtaps(vifd.netns)[0]["flags"]) == (False, False)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
        client.update_endpoint(endpoint.endpoint_id, PortSpec(mtu_bytes=1501), ["mtu_bytes"])
    assert macvtaps(vifd.netns)[0]["mtu"] == 1400


@pytest.mark.parametrize("damage", [["address", "52:54:00:66:66:66"], ["mtu", "1300"]])
def test_what_somebody_else_changes_is_found_and_mended(vifd: Daemon, client: Client, damage: list[str]) -> None:
    endpoint = make_macvtap(client)
    before = kernel.settings(vifd.netns, endpoint.macvtap.ifname)
    kernel.run(vifd.netns, "link", "set", endpoint.macvtap.ifname, *damage)
    wait_for(lambda: kernel.settings(vifd.netns, endpoint.macvtap.ifname) == before)


def test_a_node_that_somebody_deletes_is_found_and_made_again(vifd: Daemon, client: Client) -> None:
    endpoint = make_macvtap(client)
    with client.watch_endpoints() as watch:
        next(event for event in watch if event.kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED)
        Path(endpoint.macvtap.device_path).unlink()
        checked(client, endpoint.endpoint_id)  # if nothing was heard of the device just now, so that it is mended already
        found = next(event.endpoint for event in watch if event.endpoint.drifts)
    assert [DriftKind.Name(drift.kind) for drift in found.drifts] == ["DRIFT_KIND_OWNER"]
    assert checked(client, endpoint.endpoint_id)[0] == []
    assert Path(endpoint.macvtap.device_path).stat().st_uid == 0


@pytest.mark.parametrize("mode", ["bridge", "passthru"])
def test_a_mac_that_who_holds_the_macvtap_changes_is_changed_back(vifd: Daemon, client: Client, mode: str) -> None:
    """It takes no capability, and in mode passthru the uplink follows."""
    endpoint = make_macvtap(client, mode)
    devices = [endpoint.macvtap.ifname, "up0"]
    before = [kernel.settings(vifd.netns, device)["address"] for device in devices]
    with client.acquire_fds(endpoint.endpoint_id) as queues:
        kernel.set_mac(queues.fds[0], "52:54:00:66:66:66")
        wait_for(lambda: [kernel.settings(vifd.netns, device)["address"] for device in devices] == before)


def checked(client: Client, endpoint_id: str) -> tuple[list[str], Endpoint]:
    answer = client.check_endpoint(endpoint_id, repair=True)
    return [DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in answer.drifts], answer.endpoint


@pytest.mark.parametrize("option", [{"isolated": True}])
def test_what_a_macvtap_cant_have_is_refused(vifd: Daemon, client: Client, option: dict[str, Any]) -> None:
    refused(vifd, client, "can't do", code="UNIMPLEMENTED", reason="UNSUPPORTED", port=PortSpec(**option))


@pytest.mark.kernel_without("8021q")
def test_a_vlan_without_the_kernels_support_is_refused_and_names_the_option(vifd: Daemon, client: Client) -> None:
    refused(vifd, client, "CONFIG_VLAN_8021Q", reason="HOST_NOT_READY", port=PortSpec(vlan=VlanSpec(vid=7)))


def test_a_macvtap_is_no_trunk(vifd: Daemon, client: Client) -> None:
    refused(vifd, client, "no trunks", reason="NO_ACCEPTABLE_KIND", port=PortSpec(vlan=VlanSpec(trunk_vids=[7, 8])))


# --- what goes wrong


def refused(vifd: Daemon, client: Client, words: str, *, code: str = "FAILED_PRECONDITION", reason: str, **fields: Any) -> None:
    """A request is refused, with these words, and changes nothing."""
    before, before_nodes = kernel.snapshot(vifd.netns), nodes(vifd)
    with refusal(code, reason) as caught:
        make_macvtap(client, **fields)
    assert words in caught.value.message
    assert (kernel.snapshot(vifd.netns), nodes(vifd)) == (before, before_nodes)


def test_an_mtu_that_the_uplink_cant_carry_is_refused(vifd: Daemon, client: Client) -> None:
    refused(vifd, client, "more than uplink up0's 1500", reason="HOST_NOT_READY", port=PortSpec(mtu_bytes=1501))
    endpoint = make_macvtap(client, port=PortSpec(mtu_bytes=1400))
    assert (endpoint.port.mtu_bytes, macvtaps(vifd.netns)[0]["mtu"]) == (1400, 1400)


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru"])
def test_an_uplink_taken_by_passthru_is_refused(vifd: Daemon, client: Client, mode: str) -> None:
    taker = make_macvtap(client, "passthru")
    refused(vifd, client, taker.macvtap.ifname, reason="HOST_NOT_READY", mode=mode)


def test_passthru_on_an_uplink_that_others_use_is_refused(vifd: Daemon, client: Client) -> None:
    other = make_macvtap(client)
    refused(vifd, client, other.macvtap.ifname, reason="HOST_NOT_READY", mode="passthru")


def test_a_mac_that_another_macvtap_has_is_refused(vifd: Daemon, client: Client) -> None:
    other = make_macvtap(client)
    refused(vifd, client, other.port.mac, reason="ADDRESS_IN_USE", port=PortSpec(mac=other.port.mac))


def test_the_uplinks_own_mac_is_refused(vifd: Daemon, client: Client) -> None:
    mac = kernel.settings(vifd.netns, "up0")["address"]
    refused(vifd, client, "the uplink itself", reason="ADDRESS_IN_USE", port=PortSpec(mac=mac))


def test_a_device_of_the_macvtaps_name_is_neither_taken_nor_changed(own: Daemon, own_client: Client) -> None:
    endpoint_id = new_id()
    ifname = names.device_name(Kind.MACVTAP, endpoint_id)
    kernel.run(own.netns, "link", "add", ifname, "type", "veth", "peer", "name", "peer0")
    refused(own, own_client, "there already", code="INTERNAL", reason="KERNEL", endpoint_id=endpoint_id)


def test_a_tap_isnt_to_be_had_on_a_direct_network(vifd: Daemon, client: Client) -> None:
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND"):
        client.request_endpoint(asked(network="lan", acceptable=[TAP]))


def test_an_uplink_that_is_missing_is_reported_and_refused_until_it_is_there(own: Daemon, own_client: Client) -> None:
    kernel.run(own.netns, "link", "delete", "up0")
    refused(own, own_client, "uplink up0 isn't there", reason="HOST_NOT_READY")
    assert own.stop() == 0
    own.start()
    assert "uplink up0 isn't there" in own.log()
    add_uplink(own.netns)
    with Client(own.socket, retry=NO_RETRY) as client:
        make_macvtap(client)


def test_an_uplink_of_a_bridge_is_refused(own: Daemon, own_client: Client) -> None:
    kernel.run(own.netns, "link", "add", "br9", "type", "bridge")
    kernel.run(own.netns, "link", "set", "up0", "master", "br9")
    refused(own, own_client, "belongs to a bridge", reason="HOST_NOT_READY")
    kernel.run(own.netns, "link", "set", "up0", "nomaster")
    make_macvtap(own_client)


def test_an_uplink_that_is_down_is_set_up_at_the_start(own: Daemon, own_client: Client) -> None:
    kernel.run(own.netns, "link", "set", "up0", "down")
    make_macvtap(own_client)  # it waits for the uplink's carrier, as the administrator wants it
    restarted(own)
    assert "UP" in kernel.settings(own.netns, "up0")["flags"]


@pytest.mark.parametrize("kind", ["tap", "macvtap", "macvlan", "lo"])
def test_what_is_no_uplink_is_reported_and_refused(own: Daemon, kind: str) -> None:
    assert own.stop() == 0
    name = {"lo": "lo"}.get(kind, "other0")
    if kind == "tap":
        kernel.make_tap(own.netns, name)
    elif kind != "lo":
        kernel.run(own.netns, "link", "add", "link", "up0", "name", name, "type", kind)
    own.write_config(NETWORKS.replace("up0", name))
    own.start()
    assert f"uplink {name} is" in own.log()
    with Client(own.socket, retry=NO_RETRY) as client:
        refused(own, client, f"uplink {name} is", reason="HOST_NOT_READY")


def test_a_network_whose_mtu_is_more_than_the_uplinks_is_reported(own: Daemon) -> None:
    assert own.stop() == 0
    own.write_config(NETWORKS + "mtu = 9000\n")
    own.start()
    assert "MTU 9000 of network lan is more than uplink up0's 1500" in own.log()


def test_a_first_direct_network_takes_a_restart() -> None:
    bridge = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\n'
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=bridge) as daemon, Client(daemon.socket, retry=NO_RETRY) as client:
            assert not daemon.devices.exists()
            daemon.write_config(bridge + NETWORKS)
            assert daemon.process is not None
            daemon.process.send_signal(1)
            wait_for(lambda: "is read again" in daemon.log())
            assert "takes a restart" in daemon.log()
            refused(daemon, client, "takes a restart", reason="HOST_NOT_READY")
            daemon.stop()
            daemon.start()
            make_macvtap(client)


def test_a_directory_of_somebody_elses_is_refused_for_nodes() -> None:
    with network_namespace() as netns, short_directory() as directory:
        add_uplink(netns)
        daemon = Daemon(directory, netns=netns, networks=NETWORKS)
        daemon.devices.mkdir()
        os.chown(daemon.devices, ALICE, ALICE)
        try:
            daemon.start()
            assert "has to be a directory of root's own" in daemon.log()
        finally:
            daemon.kill()


def test_an_uplink_that_goes_takes_the_macvtaps_and_that_is_seen(own: Daemon, own_client: Client) -> None:
    endpoint = make_macvtap(own_client)
    kernel.run(own.netns, "link", "delete", "up0")
    wait_for(lambda: own_client.get_endpoint(endpoint.endpoint_id).drifts)
    wait_for(lambda: nodes(own) == [])
    add_uplink(own.netns)
    checked(own_client, endpoint.endpoint_id)
    assert [link["address"] for link in macvtaps(own.netns)] == [endpoint.port.mac]
    moved = own_client.get_endpoint(endpoint.endpoint_id)
    assert (moved.macvtap.ifindex, list(moved.drifts)) == (macvtaps(own.netns)[0]["ifindex"], [])
    assert nodes(own) == [Path(moved.macvtap.device_path)]
    own_client.release_endpoint(endpoint.endpoint_id)
    assert nodes(own) == []


# --- restarts


def test_endpoints_outlive_a_restart(own: Daemon, own_client: Client) -> None:
    endpoints = {one.endpoint_id: one for one in (make_macvtap(own_client, mode) for mode in ("bridge", "vepa"))}
    before = kernel.snapshot(own.netns)
    assert restarted(own) == endpoints
    assert kernel.snapshot(own.netns) == before
    assert set(nodes(own)) == {Path(one.macvtap.device_path) for one in endpoints.values()}


def test_a_macvtap_that_went_away_meanwhile_is_made_again(own: Daemon, own_client: Client) -> None:
    endpoint, first = make_macvtap(own_client), make_macvtap(own_client)
    own_client.release_endpoint(first.endpoint_id)
    assert own.stop() == 0
    kernel.run(own.netns, "link", "delete", endpoint.macvtap.ifname)
    own.start()
    found = listed(own)[endpoint.endpoint_id]
    (link,) = macvtaps(own.netns)
    assert (found.macvtap.ifname, found.macvtap.ifindex) == (link["ifname"], link["ifindex"])
    assert Path(found.macvtap.device_path).stat().st_rdev == sysfs_number(own.netns, link["ifname"])
    assert nodes(own) == [Path(found.macvtap.device_path)]


def test_a_node_that_went_away_meanwhile_is_made_again(own: Daemon, own_client: Client) -> None:
    endpoint = make_macvtap(own_client, owner=Owner(uid=ALICE, gid=4242))
    Path(endpoint.macvtap.device_path).unlink()
    assert restarted(own) == {endpoint.endpoint_id: endpoint}
    found = Path(endpoint.macvtap.device_path).stat()
    assert (found.st_uid, found.st_rdev) == (ALICE, sysfs_number(own.netns, endpoint.macvtap.ifname))


def test_nodes_without_a_device_are_swept_up(own: Daemon) -> None:
    assert own.stop() == 0
    stale = own.devices / "macvtap1048575"
    os.mknod(stale, stat.S_IFCHR | 0o600, os.makedev(os.major(Path("/dev/null").stat().st_rdev), 1048575))
    own.start()
    assert not stale.exists()


def test_a_stale_node_makes_way_for_the_device_that_gets_its_number(own: Daemon, own_client: Client) -> None:
    first = make_macvtap(own_client, owner=Owner(uid=ALICE, gid=4242))
    kernel.run(own.netns, "link", "delete", first.macvtap.ifname)
    second = make_macvtap(own_client, owner=Owner(uid=20002))
    number = sysfs_number(own.netns, second.macvtap.ifname)
    open_to = [path.stat().st_uid for path in nodes(own) if path.stat().st_rdev == number]
    assert open_to == [20002]


KILLS, SEED = 10, 20_251_124


def churn(vifd: Daemon, seed: int) -> None:
    """Request and release, alone and in batches, until vifd is gone."""
    chance = random.Random(seed)
    with Client(vifd.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
        held: list[str] = []
        while True:
            if len(held) > 6 or (held and chance.random() < 0.4):
                release_all(client, held[:2])
                held = held[2:]
            else:
                wanted = [
                    asked(network="lan", acceptable=macvtap(chance.choice(MACVTAP_MODES[:3])))
                    for _ in range(chance.choice((1, 2, 4)))
                ]
                held += [answer.endpoint.endpoint_id for answer in client.batch_request_endpoints(wanted)]


def test_kills_at_random_moments_leave_no_stray_device_and_no_stray_node(own: Daemon) -> None:
    chance = random.Random(SEED)
    for _ in range(KILLS):
        callers = [threading.Thread(target=churn, args=(own, chance.getrandbits(32))) for _ in range(3)]
        for caller in callers:
            caller.start()
        helper = own.helper_pid
        threading.Event().wait(chance.uniform(0.05, 0.3))  # the moment is random
        assert own.process is not None
        os.kill(chance.choice((own.process.pid, helper)), signal.SIGKILL)
        own.wait_dead()
        for caller in callers:
            caller.join()
        wait_for(lambda helper=helper: not is_alive(helper))
        own.start()
        found = [endpoint.macvtap for endpoint in listed(own).values()]
        assert {(link["ifname"], link["ifindex"]) for link in macvtaps(own.netns)} == {(one.ifname, one.ifindex) for one in found}
        assert {(path, path.stat().st_rdev) for path in nodes(own)} == {
            (Path(one.device_path), sysfs_number(own.netns, one.ifname)) for one in found
        }
    with Client(own.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert (macvtaps(own.netns), nodes(own)) == ([], [])
