"""VFs of a card whose switch is in mode switchdev: their representors on a bridge, read back with `ip`, `bridge`, `tc` and `nft`.

The switch is netdevsim's (`tests/support/switchdev.py`).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import vfs
from tests.support.asking import refusal, release_all, state_of
from tests.support.daemon import BIN, wait_for
from tests.support.frames import ARP, REQUEST, arp
from tests.support.switchdev import (
    PF_ADDRESS,
    Card,
    CardDaemon,
    guarded,
    link,
    qdiscs,
    read,
    run,
    running_with,
    state,
    vf_address,
)
from tests.support.vfs import KERNEL
from vifclient import Client
from vifclient.messages import (
    DriftKind,
    Endpoint,
    EswitchMode,
    GuardSpec,
    LimitsSpec,
    PhysicalFunction,
    PortSpec,
    RateLimit,
    VlanSpec,
)
from vifclient.retry import NO_RETRY
from vifd.kernel import names

BRIDGE = "br-fast"
MAC, ADDRESS, FOREIGN_MAC, FOREIGN_ADDRESS = "52:54:00:12:34:56", "192.0.2.7", "52:54:00:00:00:99", "192.0.2.99"
NETWORKS = f"""
[networks.fast]
driver = "sriov"
pfs = ["{PF_ADDRESS}"]
vfs = ["{vf_address(0)}", "{vf_address(1)}"]
bridge = "{BRIDGE}"
repair = "report"

[networks.bare]
driver = "sriov"
pfs = ["{PF_ADDRESS}"]
exclude = ["{vf_address(0)}", "{vf_address(1)}"]
"""
LIMITS = LimitsSpec(from_vm=RateLimit(rate_bps=100_000_000), to_vm=RateLimit(rate_bps=200_000_000))
PORT = PortSpec(mac=MAC, addresses=[ADDRESS], guard=GuardSpec(enabled=True), vlan=VlanSpec(vid=7), limits=LIMITS, isolated=True)


@pytest.fixture(scope="module")
def host(card: Card) -> Iterator[CardDaemon]:
    """A daemon that sees the card, and a bridge that keeps VLANs apart."""
    run("link", "add", BRIDGE, "type", "bridge", "vlan_filtering", "1", "forward_delay", "0")
    run("link", "set", BRIDGE, "up")
    with running_with(card, NETWORKS) as daemon:
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
    run("link", "delete", BRIDGE)


@pytest.fixture
def vifd(host: CardDaemon, card: Card) -> Iterator[CardDaemon]:
    """The module's daemon, whose representors are as they were after each test."""
    before = [state(card, index) for index in range(card.vfs)]
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    card.renew()
    assert [state(card, index) for index in range(card.vfs)] == before
    assert list((host.devices / "functions").iterdir()) == []


@pytest.fixture
def client(vifd: CardDaemon) -> Iterator[Client]:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


def port_vlans(ifname: str) -> list[Any]:
    """The VLANs of a port."""
    return [vlan for one in read("bridge", "-j", "vlan", "show", "dev", ifname) for vlan in one["vlans"]]


def make_vf(client: Client, endpoint_id: str = "", port: PortSpec = PORT) -> Endpoint:
    return vfs.make_vf(client, endpoint_id, acceptable=KERNEL, port=port)


@contextlib.contextmanager
def vm_of(representor: str) -> Iterator[socket.socket]:
    """Stand for the VM behind a representor: what is sent here comes in there, as what the card's switch hands to the host."""
    run("link", "add", "vm0", "type", "veth", "peer", "name", "vm1")
    try:
        for ifname in ("vm0", "vm1"):
            run("link", "set", ifname, "addrgenmode", "none", "up")
        subprocess.run(["tc", "qdisc", "add", "dev", "vm1", "ingress"], check=True)
        redirect = ["matchall", "action", "mirred", "ingress", "redirect", "dev", representor]
        subprocess.run(["tc", "filter", "add", "dev", "vm1", "ingress", *redirect], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("vm0", 0))
            yield sender
    finally:
        run("link", "delete", "vm0")


@contextlib.contextmanager
def neighbour(vid: int) -> Iterator[socket.socket]:
    """A port of the bridge in a VLAN, and what leaves by it."""
    run("link", "add", "far0", "type", "veth", "peer", "name", "far1")
    try:
        for ifname in ("far0", "far1"):
            run("link", "set", ifname, "addrgenmode", "none", "up")
        run("link", "set", "far0", "master", BRIDGE)
        subprocess.run(["bridge", "vlan", "add", "dev", "far0", "vid", str(vid), "pvid", "untagged"], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP)) as receiver:
            receiver.bind(("far1", ARP))
            receiver.settimeout(30)
            yield receiver
    finally:
        run("link", "delete", "far0")


def announcement(mac: str, address: str) -> bytes:
    return arp(mac, REQUEST, (mac, address), ("00:00:00:00:00:00", address))


# --- attached


def test_a_vfs_representor_is_a_port_of_the_bridge_as_it_was_asked_for(vifd: CardDaemon, client: Client, card: Card) -> None:
    made = make_vf(client)
    representor = card.representor(made.pci.vf_index)
    assert made.pci.representor == representor
    found = link(representor)
    assert (found["master"], found["ifalias"], found["mtu"]) == (BRIDGE, names.mark(made.endpoint_id), made.port.mtu_bytes)
    assert {"UP", "LOWER_UP"} <= set(found["flags"])
    assert found["linkinfo"]["info_slave_data"]["isolated"]
    assert found["inet6_addr_gen_mode"] == "none"
    assert [(one["vlan"], one.get("flags")) for one in port_vlans(representor)] == [(7, ["PVID", "Egress Untagged"])]
    assert {"tbf", "ingress"} <= set(qdiscs(representor))
    police = subprocess.run(["tc", "filter", "show", "dev", representor, "ingress"], check=True, capture_output=True, text=True)
    assert "rate 100Mbit" in police.stdout
    assert guarded(representor)


def test_the_vf_itself_gets_the_mac_and_nothing_that_its_representor_keeps(vifd: CardDaemon, client: Client, card: Card) -> None:
    made = make_vf(client)
    told = vfs.told(card.pf, made.pci.vf_index)
    assert (told["address"], any(told.get("vlan_list", ())), told["rate"]["max_tx"]) == (MAC, False, 0)
    assert link(made.pci.ifname)["address"] == MAC
    assert made.pci.ifname == card.netdev(made.pci.vf_index)


def test_a_guarded_vm_pretends_to_be_nobody_and_is_heard_in_its_vlan(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client, port=PortSpec(mac=MAC, addresses=[ADDRESS], guard=GuardSpec(enabled=True), vlan=VlanSpec(vid=7)))
    own = announcement(MAC, ADDRESS)
    with vm_of(made.pci.representor) as vm, neighbour(7) as far:
        for spoofed in (announcement(FOREIGN_MAC, ADDRESS), announcement(MAC, FOREIGN_ADDRESS)):
            vm.send(spoofed)
        vm.send(own)
        assert far.recv(2048)[: len(own)] == own


def test_without_a_guard_it_may(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client, port=PortSpec(mac=MAC, guard=GuardSpec(enabled=False), vlan=VlanSpec(vid=7)))
    spoofed = announcement(FOREIGN_MAC, FOREIGN_ADDRESS)
    with vm_of(made.pci.representor) as vm, neighbour(7) as far:
        vm.send(spoofed)
        assert far.recv(2048)[: len(spoofed)] == spoofed


def test_isolated_vms_dont_hear_each_other(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client)
    with vm_of(made.pci.representor) as vm, neighbour(7) as far:
        subprocess.run(["bridge", "link", "set", "dev", "far0", "isolated", "on"], check=True)
        vm.send(announcement(MAC, ADDRESS))
        subprocess.run(["bridge", "link", "set", "dev", "far0", "isolated", "off"], check=True)
        last = announcement(MAC, ADDRESS) + b"last"
        vm.send(last)
        assert far.recv(2048)[: len(last)] == last


def test_its_first_frame_says_that_the_vm_runs(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client)
    assert state_of(client, made.endpoint_id) == "READY"
    with vm_of(made.pci.representor) as vm:
        vm.send(announcement(MAC, ADDRESS))
        wait_for(lambda: state_of(client, made.endpoint_id) == "ACTIVE")


# --- not attached


def test_a_representor_that_somebody_uses_stays_theirs(vifd: CardDaemon, client: Client, card: Card) -> None:
    ifname = card.representor(0)
    run("link", "add", "br-theirs", "type", "bridge")
    run("link", "set", ifname, "master", "br-theirs")
    before = state(card, 0)
    assert make_vf(client).pci.vf_index == 1
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        make_vf(client, port=PortSpec())
    assert state(card, 0) == before
    run("link", "delete", "br-theirs")


def test_a_network_without_a_bridge_says_what_it_lacks(vifd: CardDaemon, client: Client, card: Card) -> None:
    (bare, fast) = (next(n for n in client.get_host_info().networks if n.name == name) for name in ("bare", "fast"))
    assert "in mode switchdev: name the bridge" in bare.physical_functions[0].message
    assert (fast.physical_functions[0].message, fast.offers[0].message, fast.offers[0].available) == ("", "", True)


def test_a_switch_in_legacy_mode_is_told(vifd: CardDaemon, client: Client, card: Card) -> None:
    card.set_mode("legacy")
    try:
        with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
            make_vf(client)
        assert f"devlink dev eswitch set pci/{PF_ADDRESS} mode switchdev" in refused.value.message
        assert pf_told(client).eswitch_mode == EswitchMode.ESWITCH_MODE_LEGACY
    finally:
        card.set_mode("switchdev")


def pf_told(client: Client) -> PhysicalFunction:
    return next(network for network in client.get_host_info().networks if network.name == "fast").physical_functions[0]


def test_the_host_tells_of_the_mode(vifd: CardDaemon, client: Client) -> None:
    assert pf_told(client).eswitch_mode == EswitchMode.ESWITCH_MODE_SWITCHDEV
    shown = subprocess.run([BIN / "vifctl", "--socket", vifd.socket, "host"], check=True, capture_output=True, text=True)
    assert "switchdev" in shown.stdout


# --- living


def test_a_living_port_is_changed(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client)
    limits = LimitsSpec(to_vm=RateLimit(rate_bps=50_000_000))
    client.update_endpoint(made.endpoint_id, PortSpec(vlan=VlanSpec(vid=8), limits=limits), ["vlan", "limits"])
    assert [one["vlan"] for one in port_vlans(made.pci.representor)] == [8]
    found = qdiscs(made.pci.representor)
    assert found["tbf"]["options"]["rate"] * 8 == 50_000_000
    assert "ingress" not in found
    assert not client.check_endpoint(made.endpoint_id).drifts


def test_what_others_change_is_told_and_mended(vifd: CardDaemon, client: Client, card: Card) -> None:
    made = make_vf(client)
    representor, name = made.pci.representor, "renamed0"
    run("link", "set", representor, "nomaster")
    run("link", "set", representor, "down")
    run("link", "set", representor, "name", name)
    found = {drift.kind for drift in client.check_endpoint(made.endpoint_id, repair=True).drifts}
    assert found >= {DriftKind.DRIFT_KIND_MASTER, DriftKind.DRIFT_KIND_LINK_STATE, DriftKind.DRIFT_KIND_NAME}
    assert not client.check_endpoint(made.endpoint_id).drifts
    assert card.representor(made.pci.vf_index) == representor
    assert [one["vlan"] for one in port_vlans(representor)] == [7]
    assert client.get_endpoint(made.endpoint_id).pci.representor == representor


def test_events_tell_of_a_representor_too(vifd: CardDaemon, client: Client) -> None:
    made = make_vf(client)
    run("link", "set", made.pci.representor, "nomaster")
    wait_for(lambda: client.get_endpoint(made.endpoint_id).drifts)


def test_a_representor_that_the_driver_makes_anew_is_attached_again(vifd: CardDaemon, client: Client, card: Card) -> None:
    made = make_vf(client)
    card.set_mode("legacy")
    (drift,) = client.check_endpoint(made.endpoint_id).drifts
    assert (drift.kind, "has no representor" in drift.message) == (DriftKind.DRIFT_KIND_NETWORK_MISSING, True)
    card.set_mode("switchdev")
    client.check_endpoint(made.endpoint_id, repair=True)
    assert not client.check_endpoint(made.endpoint_id).drifts
    assert link(card.representor(made.pci.vf_index))["master"] == BRIDGE


# --- dying


def test_who_is_killed_finds_it_as_it_was_and_gives_it_back(vifd: CardDaemon, client: Client, card: Card) -> None:
    made = make_vf(client)
    before = state(card, made.pci.vf_index)
    vifd.kill()
    vifd.start()
    with Client(vifd.socket, retry=NO_RETRY) as again:
        found = again.get_endpoint(made.endpoint_id)
        assert (found.pci.representor, list(found.drifts)) == (made.pci.representor, [])
        assert not again.check_endpoint(made.endpoint_id).drifts
        assert state(card, made.pci.vf_index) == before


def test_what_no_record_knows_is_given_back_at_the_next_start(vifd: CardDaemon, client: Client, card: Card) -> None:
    before = [state(card, index) for index in range(card.vfs)]
    made = make_vf(client)
    assert state(card, made.pci.vf_index) != before[made.pci.vf_index]
    vifd.kill()
    shutil.rmtree(vifd.state)
    vifd.start()
    assert [state(card, index) for index in range(card.vfs)] == before
