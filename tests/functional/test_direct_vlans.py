"""Macvtaps in VLANs: on an 802.1Q device of the uplink, one for each VLAN, shared by all and gone with the last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import frames, kernel
from tests.support.asking import make, refusal, release_all
from tests.support.daemon import Daemon, network_namespace, running, wait_for
from tests.support.restarts import restarted
from tests.support.uplinks import add_uplink, far_side, vlan_devices
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, EndpointPreference, MacvtapMode, MacvtapPreference, PortSpec, VlanSpec
from vifclient.retry import NO_RETRY
from vifd.kernel import names

pytestmark = pytest.mark.kernel("8021q")
NETWORKS = '[networks.lan]\ndriver = "direct"\nuplink = "up0"\nrepair = "report"\n'
NETWORKS += NETWORKS.replace("lan", "wan")
VNET_HDR = bytes(10)


@pytest.fixture(scope="module")
def host() -> Iterator[Daemon]:
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


@pytest.fixture
def vifd(host: Daemon) -> Iterator[Daemon]:
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert vlan_devices(host.netns) == []


def macvtap(client: Client, vid: int = 7, *, network: str = "lan", mode: str = "BRIDGE", **port: Any) -> Endpoint:
    acceptable = [EndpointPreference(macvtap=MacvtapPreference(mode=MacvtapMode.Value(f"MACVTAP_MODE_{mode}")))]
    return make(client, network=network, acceptable=acceptable, port=PortSpec(vlan=VlanSpec(vid=vid), **port))


def drifts(client: Client, endpoint: Endpoint, *, repair: bool = False) -> list[str]:
    found = client.check_endpoint(endpoint.endpoint_id, repair=repair).drifts
    return [DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in found]


def test_macvtaps_of_a_vlan_share_a_device_that_goes_with_the_last(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    one, other = macvtap(client), macvtap(client)
    (device,) = vlan_devices(vifd.netns)
    assert {one.macvtap.lower_ifname, other.macvtap.lower_ifname} == {device["ifname"]}
    assert (device["ifname"], device["link"], device["linkinfo"]["info_data"]["id"]) == (names.vlan_name("up0", 7), "up0", 7)
    assert (device["ifalias"], "UP" in device["flags"]) == ("vifd:vlan:up0:7", True)
    client.release_endpoint(one.endpoint_id)
    assert len(vlan_devices(vifd.netns)) == 1
    client.release_endpoint(other.endpoint_id)
    assert kernel.snapshot(vifd.netns) == before


def test_two_networks_of_an_uplink_share_it_too(vifd: Daemon, client: Client) -> None:
    one, other = macvtap(client), macvtap(client, network="wan")
    assert one.macvtap.lower_ifname == other.macvtap.lower_ifname
    client.release_endpoint(one.endpoint_id)
    assert len(vlan_devices(vifd.netns)) == 1
    assert drifts(client, other) == []


def test_frames_leave_with_the_tag_and_arrive_without(vifd: Daemon, client: Client) -> None:
    endpoint = macvtap(client)
    with far_side(vifd.netns, 7) as far, far_side(vifd.netns, 8) as other, client.acquire_fds(endpoint.endpoint_id) as queues:
        fd = queues.fds[0]
        os.set_blocking(fd, False)
        frame = frames.probe(endpoint.port.mac, 1)

        def gets_out() -> bytes:
            os.write(fd, VNET_HDR + frame)
            return _read(far)

        assert wait_for(gets_out)[: len(frame)] == frame
        answer = frames.ethernet(far.mac, 0x88B5, bytes(50), endpoint.port.mac)
        other.send(frames.ethernet(other.mac, 0x88B5, bytes(50), endpoint.port.mac))
        far.send(answer)
        assert wait_for(lambda: _read_queue(fd))[len(VNET_HDR) :] == answer
        assert _read(other) == b""


def _read(far: Any) -> bytes:
    try:
        found: bytes = far.read()
    except BlockingIOError:
        return b""
    return found


def _read_queue(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def test_a_device_with_its_macvtaps_is_made_again(vifd: Daemon, client: Client) -> None:
    one, other = macvtap(client), macvtap(client)
    kernel.run(vifd.netns, "link", "delete", one.macvtap.lower_ifname)
    for endpoint in (one, other):
        assert drifts(client, endpoint, repair=True) == ["DEVICE_MISSING"]
        assert drifts(client, endpoint) == []
    assert len(vlan_devices(vifd.netns)) == 1


def test_a_release_after_the_device_went_away_leaves_nothing(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    one, other = macvtap(client), macvtap(client, vid=8)
    kernel.run(vifd.netns, "link", "delete", one.macvtap.lower_ifname)
    kernel.run(vifd.netns, "link", "delete", other.macvtap.ifname)
    release_all(client)
    assert kernel.snapshot(vifd.netns) == before


def test_a_device_that_was_set_down_is_told_and_mended(vifd: Daemon, client: Client) -> None:
    endpoint = macvtap(client)
    kernel.run(vifd.netns, "link", "set", endpoint.macvtap.lower_ifname, "down")
    assert "VLAN" in drifts(client, endpoint)
    assert "VLAN" in drifts(client, endpoint, repair=True)
    assert drifts(client, endpoint) == []
    assert "UP" in kernel.settings(vifd.netns, endpoint.macvtap.lower_ifname)["flags"]


def test_other_drifts_are_mended_in_a_vlan(vifd: Daemon, client: Client) -> None:
    endpoint = macvtap(client)
    kernel.run(vifd.netns, "link", "set", endpoint.macvtap.ifname, "mtu", "1300")
    assert drifts(client, endpoint, repair=True) == ["MTU"]
    assert drifts(client, endpoint) == []


def test_a_larger_mtu_of_the_uplink_is_the_vlans_from_the_next_request_on(vifd: Daemon, client: Client) -> None:
    first = macvtap(client)
    for ifname in ("up0", "far0"):
        kernel.run(vifd.netns, "link", "set", ifname, "mtu", "9000")
    try:
        assert drifts(client, first) == []
        assert macvtap(client).port.mtu_bytes == 9000
        assert drifts(client, first, repair=True) == ["MTU"]
        assert kernel.settings(vifd.netns, first.macvtap.ifname)["mtu"] == 9000
        assert drifts(client, first) == []
    finally:
        for ifname in ("up0", "far0"):
            kernel.run(vifd.netns, "link", "set", ifname, "mtu", "1500")


def test_a_failed_request_leaves_no_device(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
        macvtap(client, mtu_bytes=9000)
    assert kernel.snapshot(vifd.netns) == before


def test_somebody_elses_device_of_the_vlan_is_left_alone(vifd: Daemon, client: Client) -> None:
    kernel.run(vifd.netns, "link", "add", "link", "up0", "name", "mine", "type", "vlan", "id", "9")
    try:
        before = kernel.snapshot(vifd.netns)
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            macvtap(client, vid=9)
        assert "somebody else's" in caught.value.message
        assert kernel.snapshot(vifd.netns) == before
        macvtap(client)
    finally:
        kernel.run(vifd.netns, "link", "delete", "mine")


def test_a_macvtap_moves_to_no_other_vlan(vifd: Daemon, client: Client) -> None:
    for endpoint in (macvtap(client), make(client, network="lan", acceptable=[EndpointPreference(macvtap=MacvtapPreference())])):
        before = kernel.snapshot(vifd.netns)
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            client.update_endpoint(endpoint.endpoint_id, PortSpec(vlan=VlanSpec(vid=8)), ["vlan"])
        assert "can't move to another VLAN" in caught.value.message
        assert kernel.snapshot(vifd.netns) == before
        client.update_endpoint(endpoint.endpoint_id, PortSpec(link_up=False), ["link_up"])


def test_a_restart_keeps_what_is_used_and_sweeps_the_rest_up(vifd: Daemon, client: Client) -> None:
    endpoint = macvtap(client)
    stray = names.vlan_name("up0", 11)
    kernel.run(vifd.netns, "link", "add", "link", "up0", "name", stray, "type", "vlan", "id", "11")
    kernel.run(vifd.netns, "link", "add", "link", "up0", "name", "mine", "type", "vlan", "id", "12")
    before = kernel.settings(vifd.netns, endpoint.macvtap.lower_ifname)
    try:
        assert endpoint.endpoint_id in restarted(vifd)
        assert {device["ifname"] for device in vlan_devices(vifd.netns)} == {endpoint.macvtap.lower_ifname, "mine"}
        assert kernel.settings(vifd.netns, endpoint.macvtap.lower_ifname) == before
    finally:
        kernel.run(vifd.netns, "link", "delete", "mine")
