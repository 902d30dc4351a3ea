"""What others change of an endpoint's device: found, told and mended, or told alone; and what is none of vifd's business."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.support import guests, kernel
from tests.support.asking import make, new_id, release_all
from tests.support.daemon import Daemon, ip, running, taps, wait_for
from vifclient import Client
from vifclient.messages import (
    BridgePreference,
    DriftKind,
    Endpoint,
    EndpointPreference,
    GuardSpec,
    LimitsSpec,
    Owner,
    PortSpec,
    RateLimit,
    WatchEventKind,
)
from vifd.kernel import names
from vifd.model import Kind

#: Others may change the guard's table here.
DAEMON = "own_nftables = false\npatrol_seconds = {patrol}"
NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
repair = "{repair}"
"""
PORT = PortSpec(
    guard=GuardSpec(enabled=True),
    addresses=["10.91.0.10"],
    limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**8), to_vm=RateLimit(rate_bps=10**8)),
    isolated=True,
    tx_queue_length=300,
)
_TUNSETOWNER, _TUNSETGROUP, _SIOCSIFHWADDR, _ARPHRD_ETHER = 0x400454CC, 0x400454CE, 0x8924, 1


def run(vifd: Daemon, *argv: str) -> None:
    subprocess.run(["ip", "netns", "exec", vifd.netns, *argv], check=True)


@contextlib.contextmanager
def held(vifd: Daemon, endpoint: Endpoint) -> Iterator[int]:
    """Hold a tap's only queue for the time of a block."""
    fd = kernel.open_tap(vifd.netns, endpoint.tap.ifname)
    try:
        yield fd
    finally:
        os.close(fd)


def give_away(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's holder gives it to somebody else, which no event tells."""
    with held(vifd, endpoint) as fd:
        fcntl.ioctl(fd, _TUNSETOWNER, 4242)


def change_mac(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's holder changes the MAC of the host's side."""
    with held(vifd, endpoint) as fd:
        mac = bytes.fromhex("020000000077")
        fcntl.ioctl(fd, _SIOCSIFHWADDR, struct.pack("16sH14s", endpoint.tap.ifname.encode(), _ARPHRD_ETHER, mac))


def let_go(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's owner deletes it."""
    kernel.let_tap_go(kernel.open_tap(vifd.netns, endpoint.tap.ifname))


def using(command: str) -> Callable[[Daemon, Endpoint], None]:
    """Somebody who uses another tool."""
    return lambda vifd, one: run(vifd, *command.format(tap=one.tap.ifname, ifb=names.ifb_name(one.endpoint_id)).split())


def delete_ifb(vifd: Daemon, endpoint: Endpoint) -> None:
    """Somebody who deletes what the limit at the tap's ingress is kept with, where that is an ifb."""
    if not ip(vifd.netns, "link", "show", "type", "ifb"):
        pytest.skip("this kernel keeps limits without ifb")
    using("ip link delete {ifb}")(vifd, endpoint)


class Damage(NamedTuple):
    """What somebody does.

    Args:
        do: does it.
        kind: of the drift that shows it.
        is_heard: whether vifd hears of it; what it doesn't, its patrol finds, and who asks.
        of: of what it is: the tap ("tap", or its end, "end"), the guard's "table", or the "bridge".
    """

    do: Callable[[Daemon, Endpoint], None]
    kind: str
    is_heard: bool = True
    of: str = "tap"


DAMAGES = {
    "deleted": Damage(using("ip link delete {tap}"), "DEVICE_MISSING", of="end"),
    "let go by its owner": Damage(let_go, "DEVICE_MISSING", of="end"),
    "given away": Damage(give_away, "OWNER", is_heard=False),
    "another MAC by its holder": Damage(change_mac, "MAC"),
    "another MAC": Damage(using("ip link set {tap} address 02:00:00:00:00:78"), "MAC"),
    "another MTU": Damage(using("ip link set {tap} mtu 1400"), "MTU"),
    "on no bridge": Damage(using("ip link set {tap} nomaster"), "MASTER"),
    "on another bridge": Damage(using("ip link set {tap} master elsewhere"), "MASTER"),
    "renamed": Damage(using("ip link set {tap} name renamed0"), "NAME"),
    "down": Damage(using("ip link set {tap} down"), "LINK_STATE"),
    "not isolated": Damage(using("bridge link set dev {tap} isolated off"), "ISOLATION"),
    "not isolated by its device": Damage(using("ip link set {tap} type bridge_slave isolated off"), "ISOLATION"),
    "learning what the guard doesn't see": Damage(using("ip link set {tap} type bridge_slave group_fwd_mask 0"), "GUARD"),
    "another queue length": Damage(using("ip link set {tap} txqlen 77"), "TX_QUEUE_LENGTH"),
    "no limit at its egress": Damage(using("tc qdisc delete dev {tap} root"), "LIMITS"),
    "no limit at its ingress": Damage(using("tc qdisc delete dev {tap} ingress"), "LIMITS"),
    "another qdisc at its egress": Damage(using("tc qdisc replace dev {tap} root pfifo"), "LIMITS"),
    "no filter at its ingress": Damage(using("tc filter delete dev {tap} parent ffff:"), "LIMITS"),
    "a higher limit at its egress": Damage(
        using("tc qdisc change dev {tap} root tbf rate 1gbit burst 1mbit latency 50ms"), "LIMITS"
    ),
    "a router of multicast": Damage(using("bridge link set dev {tap} mcast_router 1"), "GUARD"),
    "no ifb": Damage(delete_ifb, "LIMITS", is_heard=False),
    "no guard": Damage(using("nft delete element bridge vifd ports {{ {tap} }}"), "GUARD", of="table"),
    "another MAC for the guard": Damage(
        using("nft add element bridge vifd macs {{ {tap} . 02:00:00:00:00:66 }}"), "GUARD", of="table"
    ),
    "another policy of the guard": Damage(using("nft chain bridge vifd prerouting {{ policy drop; }}"), "GUARD", of="table"),
    "no bridge": Damage(using("ip link delete br-blue"), "NETWORK_MISSING", of="bridge"),
}
HEARD = {name: damage for name, damage in DAMAGES.items() if damage.is_heard}
UNHEARD = {name: damage for name, damage in DAMAGES.items() if not damage.is_heard}
OF_TAPS = {name: damage for name, damage in DAMAGES.items() if damage.of == "tap"}


@contextlib.contextmanager
def host(repair: str, *, patrol: float = 3600) -> Iterator[Daemon]:
    with running(networks=NETWORKS.format(repair=repair), daemon=DAEMON.format(patrol=patrol)) as daemon:
        kernel.run(daemon.netns, "link", "add", "elsewhere", "type", "bridge")
        yield daemon
        assert "Traceback" not in daemon.log()


@pytest.fixture(scope="module")
def mending() -> Iterator[Daemon]:
    with host("auto") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def reporting() -> Iterator[Daemon]:
    with host("report") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def patrolling() -> Iterator[Daemon]:
    with host("auto", patrol=0.1) as daemon:
        yield daemon


@contextlib.contextmanager
def endpoint_of(vifd: Daemon, **fields: Any) -> Iterator[tuple[Client, Endpoint]]:
    with Client(vifd.socket) as client:
        try:
            yield client, make(client, port=PORT, **fields)
        finally:
            print(vifd.log()[-3000:])
            release_all(client)
            assert taps(vifd.netns) == []


def kinds(drifts: Any) -> set[str]:
    return {DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in drifts}


def named(damages: dict[str, Damage]) -> Any:
    return pytest.mark.parametrize("damage", [pytest.param(one, id=name.replace(" ", "_")) for name, one in damages.items()])


def tap_of(vifd: Daemon, endpoint: Endpoint) -> Any:
    return kernel.settings(vifd.netns, endpoint.tap.ifname)


def everything(vifd: Daemon, endpoint: Endpoint) -> tuple[Any, ...]:
    """Everything of the tap with an endpoint's index, or of its end."""
    (tap,) = [one for one in kernel.snapshot(vifd.netns) if one["ifindex"] == endpoint.tap.ifindex]
    shown = [one for one in kernel.bridge_ports(vifd.netns) if one["ifname"] == tap["ifname"]]
    ports = [{key: value for key, value in one.items() if key not in {"flags", "state"}} for one in shown]  # follow the carrier
    return tap, kernel.qdiscs(vifd.netns, tap["ifname"]), ports


def is_whole(vifd: Daemon, client: Client, endpoint: Endpoint) -> bool:
    """Whether everything is as it was made, read with other tools than vifd's."""
    now = client.get_endpoint(endpoint.endpoint_id)
    tap = next((one for one in taps(vifd.netns) if one["ifname"] == endpoint.tap.ifname), None)
    if tap is None or now.drifts:
        return False
    limited = {one["kind"] for one in kernel.qdiscs(vifd.netns, tap["ifname"])}
    filtered = [guests.listed(vifd.netns, of, tap["ifname"]) for of in ("ports", "macs", "ip4")]
    return (
        (tap["ifindex"], tap["mtu"], tap.get("master"), tap["txqlen"]) == (now.tap.ifindex, 1500, "br-blue", 300)
        and "UP" in tap["flags"]
        and tap["address"] == names.host_mac(endpoint.port.mac)
        and tap["linkinfo"]["info_data"].get("user") in (None, 0, "root")
        and bool(tap["linkinfo"]["info_slave_data"]["isolated"])
        and {"tbf", "ingress"} <= limited
        and filtered == [[tap["ifname"]], [endpoint.port.mac], ["10.91.0.10"]]
    )


@named(DAMAGES)
def test_it_is_found_and_repaired_by_a_check(reporting: Daemon, damage: Damage) -> None:
    with endpoint_of(reporting) as (client, endpoint):
        assert is_whole(reporting, client, endpoint)
        damage.do(reporting, endpoint)
        if damage.of == "table":  # a table that was changed is put back whatever the network says
            wait_for(lambda: is_whole(reporting, client, endpoint))
            return
        assert damage.kind in kinds(client.check_endpoint(endpoint.endpoint_id).drifts)
        assert damage.kind in kinds(client.get_endpoint(endpoint.endpoint_id).drifts)
        assert not is_whole(reporting, client, endpoint)
        answer = client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert damage.kind in kinds(answer.drifts)
        assert kinds(answer.endpoint.drifts) == set()
        assert is_whole(reporting, client, endpoint)
        assert client.get_endpoint(endpoint.endpoint_id).generation == endpoint.generation


@contextlib.contextmanager
def watched(client: Client, endpoint: Endpoint) -> Iterator[Any]:
    """A watch that has told all that is current."""
    with client.watch_endpoints() as watch:
        next(event for event in watch if event.kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED)
        yield (kinds(event.endpoint.drifts) for event in watch if event.endpoint.endpoint_id == endpoint.endpoint_id)


@named(HEARD)
def test_what_is_heard_is_told_and_mended(mending: Daemon, damage: Damage) -> None:
    with endpoint_of(mending) as (client, endpoint), watched(client, endpoint) as told:
        damage.do(mending, endpoint)
        assert any(damage.kind in drifts for drifts in told)
        assert any(not drifts for drifts in told)
        wait_for(lambda: is_whole(mending, client, endpoint))


@named(UNHEARD)
def test_what_no_event_tells_the_patrol_finds_and_mends(patrolling: Daemon, damage: Damage) -> None:
    with endpoint_of(patrolling) as (client, endpoint), watched(client, endpoint) as told:
        damage.do(patrolling, endpoint)
        assert any(damage.kind in drifts for drifts in told)
        assert any(not drifts for drifts in told)
        wait_for(lambda: is_whole(patrolling, client, endpoint))


@named({name: damage for name, damage in HEARD.items() if damage.of != "table"})
def test_it_is_told_and_left_where_the_network_says_so(reporting: Daemon, damage: Damage) -> None:
    with endpoint_of(reporting) as (client, endpoint), watched(client, endpoint) as told:
        damage.do(reporting, endpoint)
        assert any(damage.kind in drifts for drifts in told)
        assert not is_whole(reporting, client, endpoint)
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert is_whole(reporting, client, endpoint)


def test_a_tap_that_was_given_away_and_is_held_is_given_back_when_it_is_let_go(mending: Daemon) -> None:
    with endpoint_of(mending) as (client, endpoint):
        with held(mending, endpoint) as fd:
            fcntl.ioctl(fd, _TUNSETOWNER, 4242)
            kernel.run(mending.netns, "link", "set", endpoint.tap.ifname, "mtu", "1400")
            wait_for(lambda: tap_of(mending, endpoint)["mtu"] == 1500)  # what can be mended is
            (drift,) = client.check_endpoint(endpoint.endpoint_id, repair=True).endpoint.drifts
            assert drift.message == (
                "it belongs to uid 4242; it can't be mended: its only queue is held by somebody; "
                "it is given back when that is let go"
            )
        wait_for(lambda: is_whole(mending, client, endpoint))


def test_a_tap_that_is_held_is_found_by_the_patrol(patrolling: Daemon) -> None:
    with endpoint_of(patrolling) as (client, endpoint), watched(client, endpoint) as told:
        with held(patrolling, endpoint) as fd:
            fcntl.ioctl(fd, _TUNSETOWNER, 4242)
            assert any("OWNER" in drifts for drifts in told)
        assert any(not drifts for drifts in told)
        wait_for(lambda: is_whole(patrolling, client, endpoint))


@pytest.mark.parametrize("gid", [20003, None])
def test_a_tap_that_was_given_to_a_group(mending: Daemon, gid: int | None) -> None:
    owner = Owner(uid=20002, gid=gid) if gid else Owner(uid=20002)
    with endpoint_of(mending, owner=owner) as (client, endpoint):
        with held(mending, endpoint) as fd:
            fcntl.ioctl(fd, _TUNSETGROUP, 4242)
        left = client.check_endpoint(endpoint.endpoint_id, repair=True).endpoint.drifts
        assert [drift.message.partition("; it can't be mended: ")[2] for drift in left] == (
            []
            if gid
            else ["the kernel takes no group off a tap; delete the device when nobody needs it, and a repair makes it anew"]
        )
        kernel.run(mending.netns, "link", "delete", endpoint.tap.ifname)
        wait_for(lambda: not client.get_endpoint(endpoint.endpoint_id).drifts)
        assert tap_of(mending, endpoint)["linkinfo"]["info_data"].get("group") == gid


def test_a_bridge_that_is_deleted_is_made_again_for_endpoints_of_its_own_kind(mending: Daemon) -> None:
    bridge = EndpointPreference(bridge=BridgePreference())
    with Client(mending.socket) as client:
        endpoint = make(client, acceptable=[bridge], port=PortSpec(guard=GuardSpec(enabled=False)))
        with watched(client, endpoint) as told:
            kernel.run(mending.netns, "link", "delete", "br-blue")
            assert any(drifts == {"NETWORK_MISSING"} for drifts in told)
            assert any(not drifts for drifts in told)
        assert kernel.settings(mending.netns, "br-blue")["ifalias"] == "vifd:network:blue"
        release_all(client)


@named(OF_TAPS)
def test_a_device_with_another_endpoints_mark_is_left_as_it_is(mending: Daemon, damage: Damage) -> None:
    with endpoint_of(mending) as (client, endpoint):
        with mending.helper_stopped():
            kernel.run(mending.netns, "link", "set", endpoint.tap.ifname, "alias", f"vifd:{new_id()}")
            damage.do(mending, endpoint)
            before = everything(mending, endpoint)
        assert "DEVICE_MISSING" in kinds(client.check_endpoint(endpoint.endpoint_id, repair=True).drifts)
        wait_for(lambda: kinds(client.get_endpoint(endpoint.endpoint_id).drifts) == {"DEVICE_MISSING"})
        after = everything(mending, endpoint)
        kernel.run(mending.netns, "link", "delete", before[0]["ifname"])
        assert after == before


@pytest.mark.parametrize("alias", ["", "somebody's"])
def test_a_device_of_somebody_else_with_the_endpoints_name_is_left_alone(mending: Daemon, alias: str) -> None:
    with endpoint_of(mending) as (client, endpoint):
        with mending.helper_stopped():
            kernel.run(mending.netns, "link", "delete", endpoint.tap.ifname)
            kernel.make_tap(mending.netns, endpoint.tap.ifname, alias=alias)
            before = kernel.settings(mending.netns, endpoint.tap.ifname)
        answer = client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert kinds(answer.drifts) == {"DEVICE_MISSING"}
        assert kinds(answer.endpoint.drifts) == {"DEVICE_MISSING"}
        assert kernel.settings(mending.netns, endpoint.tap.ifname) == before
        client.release_endpoint(endpoint.endpoint_id)
        assert kernel.settings(mending.netns, endpoint.tap.ifname) == before
        kernel.run(mending.netns, "link", "delete", endpoint.tap.ifname)


def test_a_device_that_lost_its_mark_is_left_alone(mending: Daemon) -> None:
    with endpoint_of(mending) as (client, endpoint):
        with mending.helper_stopped():
            kernel.run(mending.netns, "link", "set", endpoint.tap.ifname, "alias", "", "mtu", "1400")
            before = kernel.settings(mending.netns, endpoint.tap.ifname)
        assert "DEVICE_MISSING" in kinds(client.check_endpoint(endpoint.endpoint_id, repair=True).drifts)
        assert kernel.settings(mending.netns, endpoint.tap.ifname) == before
        kernel.run(mending.netns, "link", "delete", endpoint.tap.ifname)


def test_a_device_with_no_record_and_somebody_elses_mark_is_never_looked_at(mending: Daemon) -> None:
    foreign = names.device_name(Kind.TAP, new_id())
    kernel.make_tap(mending.netns, foreign, alias="somebody's")
    before = kernel.settings(mending.netns, foreign)
    with endpoint_of_others(mending, foreign) as (client, endpoint):
        kernel.run(mending.netns, "link", "set", endpoint.tap.ifname, "mtu", "1400")
        wait_for(lambda: is_whole(mending, client, endpoint))
        assert kernel.settings(mending.netns, foreign) == before


@contextlib.contextmanager
def endpoint_of_others(vifd: Daemon, foreign: str) -> Iterator[tuple[Client, Endpoint]]:
    with Client(vifd.socket) as client:
        try:
            yield client, make(client, port=PORT)
        finally:
            release_all(client)
            kernel.run(vifd.netns, "link", "delete", foreign)
