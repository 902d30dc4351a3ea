"""What a macvtap is, with its node, and how it ends."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import asked, new_id, refusal, release_all, state_of
from tests.support.daemon import Daemon, ip, network_namespace, short_directory, wait_for
from tests.support.macvtaps import (
    ALICE,
    MAGIC,
    NETWORKS,
    VNET_HDR,
    frame,
    listening,
    macvtap,
    macvtaps,
    make_macvtap,
    nodes,
    sysfs_number,
)
from tests.support.wires import MACVTAP_MODES, add_uplink
from vifclient import Client
from vifclient.messages import MacvtapMode, Owner, PortSpec
from vifclient.retry import NO_RETRY


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
