"""What goes wrong on a direct network, and what is told of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import TAP, asked, new_id, refusal
from tests.support.daemon import Daemon, network_namespace, running, short_directory, wait_for
from tests.support.macvtaps import ALICE, NETWORKS, checked, macvtaps, make_macvtap, nodes, refused
from tests.support.restarts import restarted
from tests.support.wires import add_uplink
from vifclient import Client
from vifclient.messages import PortSpec
from vifclient.retry import NO_RETRY
from vifd.kernel import names
from vifd.model import Kind


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
