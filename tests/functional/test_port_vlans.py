"""VLANs of ports, kept apart by a VLAN-aware bridge: access ports, trunks, live changes, and what others change of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import frames, kernel
from tests.support.asking import make, refusal
from tests.support.daemon import Daemon, network_namespace, running
from tests.support.guests import Guest, connect, guest
from tests.support.restarts import listed
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, PortSpec, VlanSpec
from vifclient.retry import NO_RETRY

pytestmark = pytest.mark.kernel("bridge-vlan-filtering")
NETWORKS = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\nrepair = "report"\n'
DOT1Q = 0x8100
TRUNK = VlanSpec(trunk_vids=[7, 8], native_vid=9)
#: What `bridge vlan show` says of ports.
IN_7, IN_8, IN_NONE = {7: {"PVID", "Egress Untagged"}}, {8: {"PVID", "Egress Untagged"}}, {1: {"PVID", "Egress Untagged"}}
IN_TRUNK: dict[int, set[str]] = {7: set(), 8: set(), 9: {"PVID", "Egress Untagged"}}


def aware(netns: str, *, on: int = 1) -> None:
    kernel.run(netns, "link", "set", "br-blue", "type", "bridge", "vlan_filtering", str(on))


@pytest.fixture(scope="module")
def host() -> Iterator[Daemon]:
    """A vifd on a VLAN-aware bridge of somebody else's."""
    with network_namespace() as netns:
        kernel.run(netns, "link", "add", "br-blue", "type", "bridge", "vlan_filtering", "1", "forward_delay", "0")
        kernel.run(netns, "link", "set", "br-blue", "addrgenmode", "none", "up")
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


def vids(vifd: Daemon, endpoint: Endpoint) -> dict[int, set[str]]:
    """The VLANs of a port, with their flags."""
    argv = ["bridge", "-n", vifd.netns, "-j", "vlan", "show", "dev", endpoint.tap.ifname]
    shown = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return {entry["vlan"]: set(entry.get("flags", [])) for port in shown for entry in port["vlans"]}


def bridge(vifd: Daemon, *arguments: str) -> None:
    subprocess.run(["bridge", "-n", vifd.netns, *arguments], check=True)


def access(client: Client, vid: int = 0, **fields: Any) -> Endpoint:
    return make(client, port=PortSpec(vlan=VlanSpec(vid=vid), **fields) if vid else PortSpec(**fields))


def update(client: Client, endpoint: Endpoint, vlan: VlanSpec | None) -> Endpoint:
    return client.update_endpoint(endpoint.endpoint_id, PortSpec(vlan=vlan), ["vlan"])


def drifts(client: Client, endpoint: Endpoint, *, repair: bool = False) -> list[str]:
    found = client.check_endpoint(endpoint.endpoint_id, repair=repair).drifts
    return [DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in found]


def drain(*receivers: Guest) -> list[list[bytes]]:
    """Take what waits: a frame is at all the ports that it goes to when its sender's write returns."""
    got: list[list[bytes]] = []
    for receiver in receivers:
        got.append([])
        with contextlib.suppress(BlockingIOError):
            while True:
                got[-1].append(receiver.read())
    return got


def sent(sender: Guest, frame: bytes, *receivers: Guest) -> list[list[bytes]]:
    """Send a frame and give what each receiver got."""
    drain(*receivers)
    sender.send(frame)
    return drain(*receivers)


@contextlib.contextmanager
def holding(client: Client, *endpoints: Endpoint) -> Iterator[list[Guest]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(guest(client, endpoint)) for endpoint in endpoints]


def frame_of(one: Guest) -> bytes:
    return frames.probe(one.mac, 1)


def test_access_ports_of_one_vlan_talk_and_hear_no_other(vifd: Daemon, client: Client) -> None:
    endpoints = [access(client, vid) for vid in (7, 7, 8, 8, 0, 0)]
    assert [vids(vifd, one) for one in endpoints] == [IN_7, IN_7, IN_8, IN_8, IN_NONE, IN_NONE]
    with holding(client, *endpoints) as guests:
        for pair in (guests[:2], guests[2:4], guests[4:]):
            connect(pair[0], [pair[1]])
        for i, sender in enumerate(guests):
            others = [one for one in guests if one is not sender]
            got = sent(sender, frame_of(sender), *others)
            partner = guests[i ^ 1]
            assert got == [[frame_of(sender)] if one is partner else [] for one in others]


def test_a_trunk_has_the_tags_of_its_vlans_and_its_native_one_without(vifd: Daemon, client: Client) -> None:
    trunk = make(client, port=PortSpec(vlan=TRUNK))
    assert trunk.port.vlan == TRUNK
    assert vids(vifd, trunk) == IN_TRUNK
    with holding(client, trunk, *(access(client, vid) for vid in (7, 8, 9, 10))) as (trunk_guest, seven, eight, nine, ten):
        connect(nine, [trunk_guest])
        for sender, expected in (
            (seven, [frames.tagged(frame_of(seven), (DOT1Q, 7))]),
            (eight, [frames.tagged(frame_of(eight), (DOT1Q, 8))]),
            (nine, [frame_of(nine)]),
            (ten, []),
        ):
            assert sent(sender, frame_of(sender), trunk_guest) == [expected]
        frame = frame_of(trunk_guest)
        receivers = (seven, eight, nine, ten)
        assert sent(trunk_guest, frames.tagged(frame, (DOT1Q, 7)), *receivers) == [[frame], [], [], []]
        assert sent(trunk_guest, frames.tagged(frame, (DOT1Q, 8)), *receivers) == [[], [frame], [], []]
        assert sent(trunk_guest, frame, *receivers) == [[], [], [frame], []]
        assert sent(trunk_guest, frames.tagged(frame, (DOT1Q, 10)), *receivers) == [[], [], [], []]


def test_a_trunk_without_a_native_vlan_drops_untagged_frames(vifd: Daemon, client: Client) -> None:
    trunk = make(client, port=PortSpec(vlan=VlanSpec(trunk_vids=[7])))
    assert vids(vifd, trunk) == {7: set()}
    with holding(client, trunk, access(client, 7), access(client)) as (trunk_guest, seven, plain):
        connect(seven, [])
        frame = frame_of(trunk_guest)
        assert sent(trunk_guest, frame, seven, plain) == [[], []]
        assert sent(trunk_guest, frames.tagged(frame, (DOT1Q, 7)), seven, plain) == [[frame], []]


def test_an_access_port_cant_choose_its_vlan_by_a_tag(client: Client) -> None:
    with holding(client, access(client, 7), access(client, 7), access(client, 8)) as (sender, seven, eight):
        connect(sender, [seven])
        for vid in (7, 8):
            assert sent(sender, frames.tagged(frame_of(sender), (DOT1Q, vid)), seven, eight) == [[], []]


@pytest.mark.parametrize(
    ("vlan", "expected"), [(VlanSpec(vid=8), IN_8), (TRUNK, IN_TRUNK), (VlanSpec(trunk_vids=[7]), {7: set()}), (None, IN_NONE)]
)
def test_a_vlan_changes_while_the_vm_runs_and_back(
    vifd: Daemon, client: Client, vlan: VlanSpec | None, expected: dict[int, set[str]]
) -> None:
    endpoint = access(client, 7)
    changed = update(client, endpoint, vlan)
    assert (changed.port.vlan if changed.port.HasField("vlan") else None) == vlan
    assert vids(vifd, endpoint) == expected
    assert drifts(client, endpoint) == []
    update(client, endpoint, VlanSpec(vid=7))
    assert vids(vifd, endpoint) == IN_7
    assert drifts(client, endpoint) == []


def test_a_changed_port_is_heard_in_its_new_vlan_alone(client: Client) -> None:
    moving = access(client, 7)
    with holding(client, moving, access(client, 7), access(client, 8)) as (sender, seven, eight):
        connect(sender, [seven])
        update(client, moving, VlanSpec(vid=8))
        connect(sender, [eight])
        assert sent(sender, frame_of(sender), seven, eight) == [[], [frame_of(sender)]]
        assert sent(seven, frame_of(seven), sender) == [[]]


def test_a_change_that_fails_leaves_the_old_vlan(vifd: Daemon, client: Client) -> None:
    endpoint = access(client, 7)
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
        client.update_endpoint(endpoint.endpoint_id, PortSpec(vlan=VlanSpec(vid=8), mtu_bytes=9000), ["vlan", "mtu_bytes"])
    assert vids(vifd, endpoint) == IN_7
    assert kernel.snapshot(vifd.netns) == before
    assert drifts(client, endpoint) == []


def test_addresses_are_one_endpoints_in_whatever_vlan(client: Client) -> None:
    access(client, 7, addresses=["10.91.0.7"])
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        access(client, 8, addresses=["10.91.0.7"])


# --- what others change of it


@pytest.mark.parametrize(
    "damage",
    [
        ("vlan", "add", "vid", "9", "dev"),
        ("vlan", "delete", "vid", "7", "dev"),
        ("vlan", "add", "vid", "8", "pvid", "untagged", "dev"),
        ("vlan", "add", "vid", "7", "dev"),
        ("vlan", "add", "vid", "7", "untagged", "dev"),
    ],
)
def test_a_changed_vlan_is_told_and_mended(vifd: Daemon, client: Client, damage: tuple[str, ...]) -> None:
    endpoint = access(client, 7)
    bridge(vifd, *damage, endpoint.tap.ifname)
    assert drifts(client, endpoint) == ["VLAN"]
    assert drifts(client, endpoint, repair=True) == ["VLAN"]
    assert vids(vifd, endpoint) == IN_7
    assert drifts(client, endpoint) == []


def test_what_else_is_changed_of_a_port_in_a_vlan_is_mended(vifd: Daemon, client: Client) -> None:
    for endpoint, expected in ((access(client, 7), IN_7), (make(client, port=PortSpec(vlan=TRUNK)), IN_TRUNK)):
        kernel.run(vifd.netns, "link", "set", endpoint.tap.ifname, "down")
        assert drifts(client, endpoint, repair=True) == ["LINK_STATE"]
        kernel.run(vifd.netns, "link", "set", endpoint.tap.ifname, "nomaster")
        assert drifts(client, endpoint, repair=True) == ["MASTER"]
        assert vids(vifd, endpoint) == expected
        assert drifts(client, endpoint) == []


def test_a_vlan_that_was_changed_can_be_changed_again(vifd: Daemon, client: Client) -> None:
    endpoint = access(client, 7)
    bridge(vifd, "vlan", "delete", "vid", "7", "dev", endpoint.tap.ifname)
    update(client, endpoint, VlanSpec(vid=8))
    assert vids(vifd, endpoint) == IN_8


def test_a_bridge_that_keeps_vlans_apart_no_more_is_told_and_takes_no_more(vifd: Daemon, client: Client) -> None:
    endpoint = access(client, 7)
    aware(vifd.netns, on=0)
    try:
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
            access(client, 8)
        assert "ip link set br-blue type bridge vlan_filtering 1" in caught.value.message
        assert drifts(client, endpoint) == ["VLAN"]
        assert access(client).HasField("tap")
    finally:
        aware(vifd.netns)
    assert drifts(client, endpoint) == []
    access(client, 8)


def test_a_vlan_outlives_vifd_and_is_mended_at_its_start(vifd: Daemon, client: Client) -> None:
    endpoint = access(client, 7)
    vifd.kill()
    bridge(vifd, "vlan", "add", "vid", "9", "dev", endpoint.tap.ifname)
    vifd.write_config(NETWORKS.replace("report", "auto"))
    vifd.start()
    assert listed(vifd)[endpoint.endpoint_id].port.vlan.vid == 7
    assert vids(vifd, endpoint) == IN_7
    vifd.write_config(NETWORKS)
    vifd.stop()
    vifd.start()
    with Client(vifd.socket, retry=NO_RETRY) as again:
        assert drifts(again, endpoint) == []
