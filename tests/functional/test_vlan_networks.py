"""Networks that are a VLAN of an uplink: an 802.1Q device there, on the network's bridge."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import frames, kernel
from tests.support.asking import asked, make, refusal
from tests.support.daemon import Daemon, network_namespace, running, taps, wait_for
from tests.support.guests import Guest, arrived, connect, guest
from tests.support.restarts import restarted
from tests.support.uplinks import add_uplink, far_side, vlan_devices
from vifclient import Client
from vifclient.messages import (
    DriftKind,
    EndpointPreference,
    Feature,
    MacvtapPreference,
    PortSpec,
    VlanSpec,
)
from vifclient.retry import NO_RETRY
from vifd.kernel import names

BLUE = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\nuplink = "up0"\nvlan = 100\n'
RED = BLUE.replace("blue", "red").replace("100", "200")
LAN = '[networks.lan]\ndriver = "direct"\nuplink = "up0"\n'
DEVICE = names.vlan_name("up0", 100)
MACVTAP = [EndpointPreference(macvtap=MacvtapPreference())]
needs_8021q = pytest.mark.kernel("8021q")


@pytest.fixture
def netns() -> Iterator[str]:
    with network_namespace() as name:
        add_uplink(name)
        yield name


@contextlib.contextmanager
def vifd_with(netns: str, networks: str) -> Iterator[tuple[Daemon, Client]]:
    with running(netns=netns, networks=networks) as daemon, Client(daemon.socket, retry=NO_RETRY) as client:
        yield daemon, client
        print(daemon.log())
        assert "Traceback" not in daemon.log()


def own_settings(netns: str, ifname: str) -> Any:
    """A device's settings but for what the kernel turns on below a device that is on a bridge."""
    counted = ("promiscuity", "allmulti")
    return {key: value for key, value in kernel.settings(netns, ifname).items() if key not in counted}


def master_of(netns: str, ifname: str) -> str | None:
    found: str | None = kernel.settings(netns, ifname).get("master")
    return found


def has(receiver: Any, frame: bytes) -> bool:
    """Whether a frame waits somewhere, whatever else does. It is everywhere by when it has arrived somewhere."""
    return any(one.startswith(frame) for one in list(iter(lambda: _read(receiver), b"")))


def drifts(client: Client, endpoint_id: str, *, repair: bool = False) -> list[tuple[str, str]]:
    found = client.check_endpoint(endpoint_id, repair=repair).drifts
    return [(DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_"), drift.expected) for drift in found]


@needs_8021q
def test_the_vlans_device_is_made_on_the_uplink_and_put_on_the_bridge(netns: str) -> None:
    uplink = own_settings(netns, "up0")
    with vifd_with(netns, BLUE):
        (device,) = vlan_devices(netns)
        assert (device["ifname"], device["link"], device["master"]) == (DEVICE, "up0", "br-blue")
        assert (device["linkinfo"]["info_data"]["id"], device["linkinfo"]["info_data"]["protocol"]) == (100, "802.1Q")
        assert (device["ifalias"], device["mtu"], "UP" in device["flags"]) == ("vifd:vlan:up0:100", 1500, True)
        assert kernel.settings(netns, DEVICE)["addr_info"] == []
        assert own_settings(netns, "up0") == uplink


@needs_8021q
def test_the_host_takes_nothing_from_router_advertisements_of_the_vlan(netns: str) -> None:
    def read(setting: str) -> str:
        return kernel.inside(netns, Path(f"/proc/sys/net/ipv6/conf/{DEVICE}/{setting}").read_text).strip()

    with vifd_with(netns, BLUE):
        assert (read("accept_ra"), read("autoconf")) == ("0", "0")


@needs_8021q
def test_guests_talk_to_their_vlan_of_the_uplink_and_no_other(netns: str) -> None:
    with (
        vifd_with(netns, BLUE + RED) as (_, client),
        guest(client, make(client)) as blue,
        guest(client, make(client, network="red")) as red,
        far_side(netns, 100) as far,
        far_side(netns, 200) as other,
    ):
        connect(blue, [far])
        connect(red, [other])
        frame = frames.ethernet(blue.mac, 0x88B5, b"from the guest")
        (got,) = arrived(blue, [far], frame)
        assert frame in [one[: len(frame)] for one in got]
        assert not has(red, frame)
        assert not has(other, frame)
        answer = frames.ethernet(far.mac, 0x88B5, b"to the guest".ljust(50), blue.mac)
        far.send(answer)
        wait_for(lambda: has(blue, answer))
        assert not has(red, answer)
        assert not has(other, answer)


def _read(one: Guest) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return one.read()
    return b""


@needs_8021q
def test_the_hosts_way_out_carries_vlans_and_stays_the_hosts(netns: str) -> None:
    kernel.run(netns, "address", "add", "192.0.2.7/24", "dev", "up0")
    kernel.run(netns, "route", "add", "default", "via", "192.0.2.1")
    before = own_settings(netns, "up0")
    with vifd_with(netns, BLUE) as (_, client):
        make(client)
        assert own_settings(netns, "up0") == before


@needs_8021q
def test_an_uplink_that_is_down_is_set_up(netns: str) -> None:
    kernel.run(netns, "link", "set", "up0", "down")
    with vifd_with(netns, BLUE):
        assert "UP" in kernel.settings(netns, "up0")["flags"]


@needs_8021q
def test_a_restart_changes_nothing(netns: str) -> None:
    with vifd_with(netns, BLUE) as (daemon, client):
        make(client)
        before = kernel.snapshot(netns)
        daemon.kill()
        daemon.start()
        assert kernel.snapshot(netns) == before


@needs_8021q
def test_the_mtu_follows_the_configuration_and_the_uplink(netns: str) -> None:
    with vifd_with(netns, BLUE) as (daemon, _):
        daemon.stop()
        daemon.write_config(BLUE + "mtu = 9000\n")
        daemon.start()
        words = "uplink up0 has an MTU of 1500, less than the 9000 of bridge br-blue"
        assert words in daemon.log()
        assert kernel.settings(netns, "br-blue")["mtu"] == 1500
        kernel.run(netns, "link", "set", "up0", "mtu", "9000")
        restarted(daemon)
        with Client(daemon.socket, retry=NO_RETRY) as client:
            assert make(client).port.mtu_bytes == 9000
        assert [kernel.settings(netns, name)["mtu"] for name in (DEVICE, "br-blue")] == [9000, 9000]


@needs_8021q
def test_a_configuration_with_another_vlan_takes_the_first_off_its_bridge(netns: str) -> None:
    with vifd_with(netns, BLUE) as (daemon, _):
        daemon.stop()
        daemon.write_config(BLUE.replace("100", "300"))
        restarted_devices(daemon, {names.vlan_name("up0", 300): "br-blue"})
        daemon.stop()
        daemon.write_config(BLUE.replace('uplink = "up0"\nvlan = 100\n', ""))
        restarted_devices(daemon, {})


def restarted_devices(daemon: Daemon, expected: dict[str, str]) -> None:
    daemon.start()
    assert {device["ifname"]: device.get("master") for device in vlan_devices(daemon.netns)} == expected


@needs_8021q
def test_a_bridge_that_a_failed_request_made_takes_the_vlans_device_with_it(netns: str) -> None:
    before = kernel.snapshot(netns)
    with vifd_with(netns, BLUE) as (_, client):
        kernel.run(netns, "link", "delete", "br-blue")
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
            make(client, port=PortSpec(mtu_bytes=9000))
        assert kernel.snapshot(netns) == before


# --- what others do to it


def _delete(netns: str) -> None:
    kernel.run(netns, "link", "delete", DEVICE)


def _take_off(netns: str) -> None:
    kernel.run(netns, "link", "set", DEVICE, "nomaster")


def _set_down(netns: str) -> None:
    kernel.run(netns, "link", "set", DEVICE, "down")


def _put_elsewhere(netns: str) -> None:
    kernel.run(netns, "link", "add", "br-other", "type", "bridge")
    kernel.run(netns, "link", "set", DEVICE, "master", "br-other")


@needs_8021q
@pytest.mark.parametrize("damage", [_delete, _take_off, _set_down])
def test_damage_is_told_and_mended_by_a_repair(netns: str, damage: Any) -> None:
    with vifd_with(netns, BLUE + 'repair = "report"\n') as (_, client):
        tap, bridge = make(client), make(client, acceptable=[EndpointPreference(bridge={})])
        before = _essence(netns)
        for endpoint in (tap, bridge):
            damage(netns)
            assert drifts(client, endpoint.endpoint_id) == [("NETWORK_MISSING", DEVICE)]
            assert drifts(client, endpoint.endpoint_id, repair=True) == [("NETWORK_MISSING", DEVICE)]
            assert drifts(client, endpoint.endpoint_id) == []
            assert _essence(netns) == before


def _essence(netns: str) -> list[Any]:
    return [(device["ifname"], device.get("master"), "UP" in device["flags"]) for device in vlan_devices(netns)]


@needs_8021q
def test_damage_is_mended_without_being_asked(netns: str) -> None:
    with vifd_with(netns, BLUE) as (_, client):
        make(client)
        before = _essence(netns)
        _delete(netns)
        wait_for(lambda: _essence(netns) == before, seconds=120)


@needs_8021q
def test_a_device_that_is_elsewhere_is_told_and_not_taken_from_there(netns: str) -> None:
    with vifd_with(netns, BLUE + 'repair = "report"\n') as (_, client):
        endpoint = make(client)
        _put_elsewhere(netns)
        drifts(client, endpoint.endpoint_id, repair=True)
        assert drifts(client, endpoint.endpoint_id) == [("NETWORK_MISSING", DEVICE)]
        assert master_of(netns, DEVICE) == "br-other"


@needs_8021q
def test_a_device_that_was_deleted_is_made_again_by_the_next_request(netns: str) -> None:
    with vifd_with(netns, BLUE + 'repair = "report"\n') as (_, client):
        make(client)
        _delete(netns)
        make(client)
        assert master_of(netns, DEVICE) == "br-blue"


@needs_8021q
def test_an_uplink_that_went_away_and_came_back_has_its_vlan_again(netns: str) -> None:
    with vifd_with(netns, BLUE + 'repair = "report"\n') as (_, client):
        endpoint = make(client)
        kernel.run(netns, "link", "delete", "up0")
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            make(client)
        assert "uplink up0 of bridge br-blue isn't there" in caught.value.message
        assert drifts(client, endpoint.endpoint_id, repair=True) == [("NETWORK_MISSING", DEVICE)]
        add_uplink(netns)
        drifts(client, endpoint.endpoint_id, repair=True)
        assert drifts(client, endpoint.endpoint_id) == []


# --- what is refused


def refused(netns: str, client: Client, words: str, **fields: Any) -> None:
    """A request is refused, with these words, and changes nothing."""
    before = kernel.snapshot(netns)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
        client.request_endpoint(asked(**fields))
    assert words in caught.value.message
    assert kernel.snapshot(netns) == before


@pytest.mark.kernel_without("8021q")
def test_without_the_kernels_support_the_option_is_named_and_other_networks_work(netns: str) -> None:
    before = kernel.snapshot(netns)
    with vifd_with(netns, BLUE) as (daemon, client):
        assert "CONFIG_VLAN_8021Q" in daemon.log()
        refused(netns, client, "CONFIG_VLAN_8021Q")
        assert kernel.snapshot(netns) == before
    with vifd_with(netns, BLUE + '[networks.green]\ndriver = "bridge"\nbridge = "br-green"\n') as (_, client):
        assert make(client, network="green").HasField("tap")


@needs_8021q
def test_an_uplink_that_carries_no_vlans_is_refused(netns: str) -> None:
    with vifd_with(netns, BLUE.replace("up0", "lo")) as (_, client):
        refused(netns, client, "uplink lo carries no VLANs")


@needs_8021q
def test_somebody_elses_device_of_the_vlan_is_left_alone(netns: str) -> None:
    kernel.run(netns, "link", "add", "link", "up0", "name", "up0.100", "type", "vlan", "id", "100")
    before = kernel.snapshot(netns)
    with vifd_with(netns, BLUE) as (_, client):
        refused(netns, client, "VLAN 100 of uplink up0 has a device of somebody else's")
        assert kernel.snapshot(netns) == before


@needs_8021q
def test_somebody_elses_device_of_the_name_is_left_alone(netns: str) -> None:
    kernel.run(netns, "link", "add", "link", "up0", "name", DEVICE, "type", "vlan", "id", "101")
    kernel.run(netns, "link", "set", DEVICE, "alias", "the administrator's")
    before = kernel.snapshot(netns)
    with vifd_with(netns, BLUE) as (_, client):
        refused(netns, client, f"{DEVICE} is there and isn't VLAN 100 of uplink up0")
        assert kernel.snapshot(netns) == before


@needs_8021q
def test_an_uplink_that_carries_less_than_the_bridge_is_refused(netns: str) -> None:
    kernel.run(netns, "link", "set", "up0", "mtu", "1400")
    before = kernel.snapshot(netns)
    with vifd_with(netns, BLUE) as (_, client):
        refused(netns, client, "uplink up0 has an MTU of 1400, less than the 1500 of bridge br-blue")
        assert kernel.snapshot(netns) == before


@needs_8021q
def test_an_uplink_that_is_on_the_bridge_itself_is_refused(netns: str) -> None:
    kernel.run(netns, "link", "add", "br-blue", "type", "bridge")
    kernel.run(netns, "link", "set", "up0", "master", "br-blue")
    with vifd_with(netns, BLUE) as (_, client):
        refused(netns, client, "take it off: ip link set up0 nomaster")
        kernel.run(netns, "link", "set", "up0", "nomaster")
        make(client)


@pytest.mark.parametrize("vlan", [VlanSpec(vid=7), VlanSpec(vid=100), VlanSpec(trunk_vids=[7, 8], native_vid=9)])
@needs_8021q
def test_its_ports_are_in_no_other_vlan(netns: str, vlan: VlanSpec) -> None:
    with vifd_with(netns, BLUE) as (_, client):
        before = kernel.snapshot(netns)
        with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
            make(client, port=PortSpec(vlan=vlan))
        assert "network blue is VLAN 100 itself" in caught.value.message
        assert kernel.snapshot(netns) == before
        endpoint = make(client)
        with refusal("FAILED_PRECONDITION", "WRONG_STATE") as caught:
            client.update_endpoint(endpoint.endpoint_id, PortSpec(vlan=vlan), ["vlan"])
        assert "network blue is VLAN 100 itself" in caught.value.message
        (network,) = client.get_host_info().networks
        assert not any(Feature.FEATURE_VLAN in offer.features for offer in network.offers)


@needs_8021q
def test_macvtaps_of_another_network_use_other_vlans(netns: str) -> None:
    with vifd_with(netns, BLUE + LAN) as (_, client):
        refused(
            netns,
            client,
            "on the bridge of another network",
            network="lan",
            acceptable=MACVTAP,
            port=PortSpec(vlan=VlanSpec(vid=100)),
        )
        other = make(client, network="lan", acceptable=MACVTAP, port=PortSpec(vlan=VlanSpec(vid=101)))
        assert other.macvtap.lower_ifname == names.vlan_name("up0", 101)
        make(client, network="lan", acceptable=MACVTAP)
        client.release_endpoint(other.endpoint_id)
        assert [device["ifname"] for device in vlan_devices(netns)] == [DEVICE]


@needs_8021q
def test_a_vlan_that_carries_macvtaps_goes_on_no_bridge(netns: str) -> None:
    with vifd_with(netns, LAN) as (daemon, client):
        taken = make(client, network="lan", acceptable=MACVTAP, port=PortSpec(vlan=VlanSpec(vid=100)))
        daemon.stop()
        daemon.write_config(LAN + BLUE)
        daemon.start()
        with Client(daemon.socket, retry=NO_RETRY) as again:
            refused(netns, again, "VLAN 100 of uplink up0 carries macvtaps")
            again.release_endpoint(taken.endpoint_id)
            make(again)
        assert [tap["master"] for tap in taps(netns)] == ["br-blue"]
