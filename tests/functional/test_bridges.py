"""The networks' bridges: made when they are missing, left alone when they are somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import guests, kernel
from tests.support.asking import BRIDGE, TAP, make, refusal
from tests.support.daemon import Daemon, ip, network_namespace, running, taps, wait_for
from tests.support.frames import ICMPV6, SOLICITATION
from vifclient import Client
from vifclient.messages import DriftKind, EndpointPreference, PortSpec
from vifclient.retry import NO_RETRY


def network(name: str = "blue", **keys: Any) -> str:
    lines = [f'[networks.{name}]\ndriver = "bridge"\nbridge = "br-{name}"']
    return "\n".join([*lines, *(f"{key} = {value!r}".replace("'", '"') for key, value in keys.items())]) + "\n"


@pytest.fixture
def netns() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@contextlib.contextmanager
def vifd_with(netns: str, networks: str) -> Iterator[tuple[Daemon, Client]]:
    with running(netns=netns, networks=networks) as daemon, Client(daemon.socket, retry=NO_RETRY) as client:
        yield daemon, client
        print(daemon.log())


def addresses(link: Any) -> set[str]:
    return {f"{address['local']}/{address['prefixlen']}" for address in link["addr_info"]}


def test_a_missing_bridge_is_made_with_its_mtu_and_addresses(netns: str) -> None:
    with vifd_with(netns, network(mtu=1400, addresses=["10.91.0.1/24", "fd00:91::1/64"])):
        bridge = kernel.settings(netns, "br-blue")
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert (bridge["mtu"], "UP" in bridge["flags"]) == (1400, True)
    assert {"10.91.0.1/24", "fd00:91::1/64"} <= addresses(bridge)
    assert bridge["ifalias"] == "vifd:network:blue"
    assert bridge["linkinfo"]["info_data"]["forward_delay"] == 0


def test_a_bridge_without_ipv6_addresses_of_the_configurations_has_none_at_all(netns: str) -> None:
    with vifd_with(netns, network(addresses=["10.91.0.1/24"])) as (_, client):
        make(client)
        assert addresses(kernel.settings(netns, "br-blue")) == {"10.91.0.1/24"}


def test_a_bridge_of_vifds_keeps_its_mac_and_mtu_whatever_ports_come_and_go(netns: str) -> None:
    with vifd_with(netns, network()) as (_, client):
        before = kernel.settings(netns, "br-blue")
        small = make(client, port=PortSpec(mac="02:00:00:00:00:01", mtu_bytes=1000))
        assert kernel.settings(netns, "br-blue") == before
        assert make(client).port.mtu_bytes == 1500
        client.release_endpoint(small.endpoint_id)
        assert kernel.settings(netns, "br-blue") == before


def test_a_bridge_of_vifds_outlives_it_and_is_taken_up_again(netns: str) -> None:
    with vifd_with(netns, network(addresses=["10.91.0.1/24"])):
        before = kernel.settings(netns, "br-blue")
    with vifd_with(netns, network(addresses=["10.91.0.1/24"])):
        assert kernel.settings(netns, "br-blue") == before


def test_a_bridge_of_vifds_follows_the_configuration_at_the_next_start(netns: str) -> None:
    with vifd_with(netns, network(addresses=["10.91.0.1/24", "10.92.0.1/24"])):
        before = kernel.settings(netns, "br-blue")
    with vifd_with(netns, network(addresses=["10.91.0.1/24", "10.93.0.1/24"], mtu=1450)):
        after = kernel.settings(netns, "br-blue")
    assert addresses(after) == {"10.91.0.1/24", "10.93.0.1/24"}
    assert (after["mtu"], after["ifindex"], after["address"]) == (1450, before["ifindex"], before["address"])


@pytest.fixture
def foreign(netns: str) -> Any:
    """Somebody else's bridge, with a port and with settings that vifd would not give it."""
    options = ["forward_delay", "1700", "ageing_time", "12345", "mcast_snooping", "0", "priority", "4096"]
    kernel.run(netns, "link", "add", "br-blue", "mtu", "1400", "address", "52:54:00:00:00:01", "type", "bridge", *options)
    kernel.run(netns, "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "eth1")
    for ifname in ("br-blue", "eth0", "eth1"):
        kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")
    kernel.run(netns, "link", "set", "eth0", "master", "br-blue")
    kernel.run(netns, "address", "add", "192.0.2.7/24", "dev", "br-blue")
    kernel.run(netns, "link", "set", "br-blue", "alias", "the administrator's")
    return kernel.settings(netns, "br-blue")


def test_a_foreign_bridge_keeps_every_setting(netns: str, foreign: Any) -> None:
    with vifd_with(netns, network(addresses=["10.91.0.1/24"], mtu=1400)) as (daemon, client):
        endpoints = [make(client) for _ in range(3)]
        assert {tap["master"] for tap in taps(netns)} == {"br-blue"}
        assert kernel.settings(netns, "br-blue") == foreign
        client.release_endpoint(endpoints[0].endpoint_id)
        daemon.stop()
        daemon.start()
        make(client)
        assert kernel.settings(netns, "br-blue") == foreign
    assert kernel.settings(netns, "eth0")["master"] == "br-blue"


def test_a_foreign_bridge_that_is_down_stays_down(netns: str, foreign: Any) -> None:
    kernel.run(netns, "link", "set", "br-blue", "down")
    with vifd_with(netns, network()) as (_, client):
        make(client)
        assert "UP" not in kernel.settings(netns, "br-blue")["flags"]


def test_a_port_has_the_mtu_of_a_foreign_bridge(netns: str, foreign: Any) -> None:
    with vifd_with(netns, network()) as (_, client):
        assert make(client).port.mtu_bytes == 1400
        assert taps(netns)[0]["mtu"] == 1400


@pytest.mark.parametrize("mtu_bytes", [1399, 1401, 9000])
def test_a_port_that_would_change_a_foreign_bridges_mtu_is_refused(netns: str, foreign: Any, mtu_bytes: int) -> None:
    with vifd_with(netns, network()) as (_, client):
        before = kernel.snapshot(netns)
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            make(client, port=PortSpec(mtu_bytes=mtu_bytes))
        assert str(mtu_bytes) in caught.value.message
        assert kernel.snapshot(netns) == before
        make(client, port=PortSpec(mtu_bytes=1400))


def test_a_port_larger_than_the_networks_mtu_is_refused_by_negotiation(netns: str) -> None:
    with vifd_with(netns, network(mtu=1400)) as (_, client):
        with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
            make(client, port=PortSpec(mtu_bytes=1401))
        assert "1401 is more than the 1400" in caught.value.message


def test_the_uplink_is_put_on_a_bridge_of_vifds_and_set_up(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0")) as (_, client):
        uplink = kernel.settings(netns, "up0")
        assert (uplink["master"], "UP" in uplink["flags"]) == ("br-blue", True)
        make(client)
        assert kernel.settings(netns, "up1").get("master") is None


def is_search_for_duplicates(frame: bytes) -> bool:
    """Tell a neighbour solicitation from no address (RFC 4862, 5.4.2)."""
    return frame[12:14] == b"\x86\xdd" and frame[22:38] == bytes(16) and frame[20] == ICMPV6 and frame[54] == SOLICITATION


def test_the_gateways_ipv6_is_there_for_the_first_guest_at_once(netns: str) -> None:
    """A search for duplicates would begin with the bridge's carrier: with the first guest."""

    def settled() -> dict[str, bool]:
        found = ip(netns, "address", "show", "br-blue")[0]["addr_info"]
        return {a["scope"]: not a.get("tentative", False) for a in found if a["family"] == "inet6"}

    with running(netns=netns, networks=network(addresses=["fd00:91::1/64"])) as vifd:
        assert settled() == {"global": True}
        with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as client, guests.guest(client, make(client)) as guest:
            # The link-local address comes with the carrier; router advertisements come from it.
            wait_for(lambda: settled() == {"global": True, "link": True})
            with contextlib.suppress(BlockingIOError):
                while frame := guest.read():
                    assert not is_search_for_duplicates(frame)


@pytest.mark.parametrize("uplink", ["", "up0"])
def test_duplicates_of_the_hosts_ipv6_are_searched_where_others_are(netns: str, uplink: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(addresses=["fd00:91::1/64"], uplink=uplink)):
        found = kernel.inside(netns, Path("/proc/sys/net/ipv6/conf/br-blue/accept_dad").read_text)
    assert found.strip() == ("1" if uplink else "0")


def test_the_uplink_is_put_on_a_foreign_bridge_and_nothing_else_of_it_changes(netns: str, foreign: Any) -> None:
    kernel.run(netns, "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0")):
        assert kernel.settings(netns, "up0")["master"] == "br-blue"
        assert kernel.settings(netns, "br-blue") == foreign


def test_an_uplink_of_somebody_elses_bridge_stays_there_and_is_reported(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    kernel.run(netns, "link", "add", "br-other", "type", "bridge")
    kernel.run(netns, "link", "set", "up0", "master", "br-other")
    with vifd_with(netns, network(uplink="up0")) as (daemon, client):
        assert kernel.settings(netns, "up0")["master"] == "br-other"
        assert "belongs to another bridge" in daemon.log()
        assert "belongs to another bridge" in client.get_host_info().networks[0].offers[0].message


def test_a_missing_uplink_is_reported_and_other_networks_work(netns: str) -> None:
    with vifd_with(netns, network(uplink="up0") + network("red")) as (daemon, client):
        assert "uplink up0 of bridge br-blue isn't there" in daemon.log()
        blue, red = client.get_host_info().networks
        assert [offer.available for offer in blue.offers] == [False, False]
        assert "up0" in blue.offers[0].message
        assert [offer.available for offer in red.offers] == [True, True]
        assert make(client, network="red").HasField("tap")


def test_a_bridge_that_is_none_is_refused_and_left_alone(netns: str) -> None:
    kernel.run(netns, "link", "add", "br-blue", "type", "veth", "peer", "name", "peer0")
    with vifd_with(netns, network()) as (_, client):
        before = kernel.snapshot(netns)
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            make(client)
        assert "br-blue is a veth, not a bridge" in caught.value.message
        assert kernel.snapshot(netns) == before
        assert not client.get_host_info().networks[0].offers[0].available


def test_a_network_is_ready_as_soon_as_what_was_in_its_way_is_gone(netns: str) -> None:
    kernel.run(netns, "link", "add", "br-blue", "type", "veth", "peer", "name", "peer0")
    with vifd_with(netns, network()) as (_, client):
        kernel.run(netns, "link", "delete", "br-blue")
        assert make(client).HasField("tap")
        assert client.get_host_info().networks[0].offers[0].available


def test_a_bridge_that_was_deleted_is_made_again_at_the_next_request(netns: str) -> None:
    with vifd_with(netns, network(addresses=["10.91.0.1/24"], repair="report")) as (_, client):
        old = make(client)
        kernel.run(netns, "link", "delete", "br-blue")
        new = make(client)
        assert addresses(kernel.settings(netns, "br-blue")) == {"10.91.0.1/24"}
        masters = {tap["ifname"]: tap.get("master") for tap in taps(netns)}
        assert masters == {old.tap.ifname: None, new.tap.ifname: "br-blue"}


def test_a_bridge_that_a_failed_request_made_is_gone_with_it(netns: str) -> None:
    with vifd_with(netns, network()) as (_, client):
        kernel.run(netns, "link", "delete", "br-blue")
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
            make(client, port=PortSpec(mtu_bytes=9000))
        assert [link["ifname"] for link in kernel.snapshot(netns)] == ["lo"]


def test_a_port_stays_silent_to_the_hosts_ipv6(netns: str) -> None:
    """A VM's router advertisements must not reach into the host's routes."""
    with vifd_with(netns, network()) as (_, client):
        make(client)
        wait_for(lambda: kernel.bridge_ports(netns))
        for ifname in ("br-blue", taps(netns)[0]["ifname"]):
            assert kernel.settings(netns, ifname)["addr_info"] == []


@pytest.mark.parametrize("kind", [TAP, BRIDGE])
def test_an_uplink_that_was_taken_off_is_told_and_put_back_by_a_repair(netns: str, kind: EndpointPreference) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0", repair="report")) as (_, client):
        endpoint = make(client, acceptable=[kind])
        kernel.run(netns, "link", "set", "up0", "nomaster")
        (drift,) = client.check_endpoint(endpoint.endpoint_id).drifts
        assert (drift.kind, drift.expected) == (DriftKind.DRIFT_KIND_NETWORK_MISSING, "up0")
        assert "uplink up0 isn't on bridge br-blue" in drift.message
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert kernel.settings(netns, "up0")["master"] == "br-blue"
        assert not client.check_endpoint(endpoint.endpoint_id).drifts


def test_an_uplink_that_is_gone_is_told_until_it_is_back(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0", repair="report")) as (_, client):
        endpoint = make(client)
        kernel.run(netns, "link", "delete", "up0")
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        (drift,) = client.get_endpoint(endpoint.endpoint_id).drifts
        assert "it can't be mended: uplink up0 of bridge br-blue isn't there" in drift.message
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
            make(client)
        kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert not client.check_endpoint(endpoint.endpoint_id).drifts


def test_an_mtu_of_the_configurations_that_the_uplink_does_not_carry_is_refused(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0")) as (daemon, _):
        daemon.stop()
        daemon.write_config(network(uplink="up0", mtu=9000))
        daemon.start()
        assert "uplink up0 has an MTU of 1500, less than the 9000 of bridge br-blue" in daemon.log()
        assert kernel.settings(netns, "br-blue")["mtu"] == 1500


@pytest.fixture
def way_out(netns: str) -> str:
    """The host's only way out."""
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for ifname in ("up0", "up1"):
        kernel.run(netns, "link", "set", ifname, "addrgenmode", "none", "up")
    kernel.run(netns, "address", "add", "192.0.2.7/24", "dev", "up0")
    kernel.run(netns, "route", "add", "default", "via", "192.0.2.1")
    return "up0"


def test_the_hosts_only_way_out_is_not_put_on_a_bridge(netns: str, way_out: str) -> None:
    before = kernel.snapshot(netns)
    with vifd_with(netns, network(uplink=way_out)) as (daemon, client):
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            make(client)
        assert "uplink up0 is the host's own way out" in caught.value.message
        assert "uplink_force" in daemon.log()
        assert kernel.snapshot(netns) == before


def test_a_way_out_beside_others_is_not_put_on_a_bridge(netns: str, way_out: str) -> None:
    kernel.run(netns, "route", "replace", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "192.0.2.2")
    with vifd_with(netns, network(uplink=way_out)) as (daemon, _):
        assert "uplink up0 is the host's own way out" in daemon.log()
        assert kernel.settings(netns, "up0").get("master") is None


def test_the_hosts_only_way_out_is_put_on_a_bridge_by_force(netns: str, way_out: str) -> None:
    with vifd_with(netns, network(uplink=way_out) + "uplink_force = true\n") as (daemon, client):
        make(client)
        assert kernel.settings(netns, way_out)["master"] == "br-blue"
        daemon.stop()
        daemon.start()
        make(client)


def test_an_uplink_that_carries_less_than_the_bridge_is_refused(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
    before = kernel.snapshot(netns)
    with vifd_with(netns, network(uplink="up0")) as (_, client):
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            make(client)
        assert "uplink up0 has an MTU of 1400, less than the 1500 of bridge br-blue" in caught.value.message
        assert kernel.snapshot(netns) == before


def test_a_bridge_that_is_made_again_has_its_uplink(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0")) as (_, client):
        kernel.run(netns, "link", "delete", "br-blue")
        make(client)
        assert kernel.settings(netns, "up0")["master"] == "br-blue"


def test_a_bridge_that_a_failed_request_made_lets_its_uplink_go(netns: str) -> None:
    kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    with vifd_with(netns, network(uplink="up0")) as (_, client):
        kernel.run(netns, "link", "delete", "br-blue")
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
            make(client, port=PortSpec(mtu_bytes=9000))
        assert {link["ifname"] for link in kernel.snapshot(netns)} == {"lo", "up0", "up1"}
