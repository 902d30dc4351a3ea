"""Guard, limits and changes of macvtaps."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import refusal
from tests.support.daemon import Daemon, network_namespace, running, wait_for
from tests.support.macvtaps import MAGIC, NETWORKS, VNET_HDR, checked, frame, listening, macvtaps, make_macvtap, refused
from tests.support.restarts import restarted
from tests.support.users import User
from tests.support.wires import add_uplink
from vifclient import Client
from vifclient.messages import DriftKind, GuardSpec, LimitsSpec, PortSpec, RateLimit, VlanSpec, WatchEventKind


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


@pytest.mark.parametrize("option", [{"isolated": True}])
def test_what_a_macvtap_cant_have_is_refused(vifd: Daemon, client: Client, option: dict[str, Any]) -> None:
    refused(vifd, client, "can't do", code="UNIMPLEMENTED", reason="UNSUPPORTED", port=PortSpec(**option))


@pytest.mark.kernel_without("8021q")
def test_a_vlan_without_the_kernels_support_is_refused_and_names_the_option(vifd: Daemon, client: Client) -> None:
    refused(vifd, client, "CONFIG_VLAN_8021Q", reason="HOST_NOT_READY", port=PortSpec(vlan=VlanSpec(vid=7)))


def test_a_macvtap_is_no_trunk(vifd: Daemon, client: Client) -> None:
    refused(vifd, client, "no trunks", reason="NO_ACCEPTABLE_KIND", port=PortSpec(vlan=VlanSpec(trunk_vids=[7, 8])))
