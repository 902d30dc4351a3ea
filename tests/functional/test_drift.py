"""What others change of an endpoint's device: found, told and mended, or told alone; and what is none of vifd's business."""

from __future__ import annotations

import contextlib
import fcntl
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.support import guests, kernel
from tests.support.asking import make, new_id, release_all
from tests.support.daemon import Daemon, ip, running, taps, wait_for
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, GuardSpec, LimitsSpec, PortSpec, RateLimit, WatchEventKind
from vifd.kernel import names
from vifd.model import Kind

#: Others may change the guard's table here.
DAEMON = "own_nftables = false"
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
_TUNSETOWNER, _SIOCSIFHWADDR, _ARPHRD_ETHER = 0x400454CC, 0x8924, 1


def run(vifd: Daemon, *argv: str) -> None:
    subprocess.run(["ip", "netns", "exec", vifd.netns, *argv], check=True)


def link(*arguments: str) -> Callable[[Daemon, Endpoint], None]:
    """Somebody who uses `ip link` on the tap."""
    return lambda vifd, one: kernel.run(vifd.netns, "link", *(part.format(tap=one.tap.ifname) for part in arguments))


def give_away(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's holder gives it to somebody else, which no event tells."""
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as client, guests.guest(client, endpoint) as guest:
        fcntl.ioctl(guest.fd, _TUNSETOWNER, 4242)
    wait_for(lambda: "LOWER_UP" not in ip(vifd.netns, "link", "show", endpoint.tap.ifname)[0]["flags"])


def change_mac(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's holder changes the MAC of the host's side."""
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as client, guests.guest(client, endpoint) as guest:
        mac = bytes.fromhex("020000000077")
        fcntl.ioctl(guest.fd, _SIOCSIFHWADDR, struct.pack("16sH14s", endpoint.tap.ifname.encode(), _ARPHRD_ETHER, mac))


def let_go(vifd: Daemon, endpoint: Endpoint) -> None:
    """The tap's owner deletes it."""
    kernel.let_tap_go(kernel.open_tap(vifd.netns, endpoint.tap.ifname))


class Damage(NamedTuple):
    """What somebody does.

    Args:
        do: does it.
        kind: of the drift that shows it.
        is_heard: whether vifd hears of it; what it doesn't, its patrol finds, and who asks.
        is_mended: whether a repair mends it.
    """

    do: Callable[[Daemon, Endpoint], None]
    kind: str
    is_heard: bool = True
    is_mended: bool = True


def guard_element(*command: str) -> Callable[[Daemon, Endpoint], None]:
    return lambda vifd, one: run(vifd, "nft", *(part.format(tap=one.tap.ifname, mac=one.port.mac) for part in command))


DAMAGES = {
    "deleted": Damage(link("delete", "{tap}"), "DEVICE_MISSING"),
    "let go by its owner": Damage(let_go, "DEVICE_MISSING"),
    "given away": Damage(give_away, "OWNER", is_heard=False),
    "another MAC by its holder": Damage(change_mac, "MAC"),
    "another MTU": Damage(link("set", "{tap}", "mtu", "1400"), "MTU"),
    "on no bridge": Damage(link("set", "{tap}", "nomaster"), "MASTER"),
    "on another bridge": Damage(link("set", "{tap}", "master", "elsewhere"), "MASTER"),
    "renamed": Damage(link("set", "{tap}", "name", "renamed0"), "NAME", is_heard=False),
    "down": Damage(link("set", "{tap}", "down"), "LINK_STATE"),
    "not isolated": Damage(
        lambda vifd, one: run(vifd, "bridge", "link", "set", "dev", one.tap.ifname, "isolated", "off"),
        "ISOLATION",
        is_heard=False,
    ),
    "a router of multicast": Damage(
        lambda vifd, one: run(vifd, "bridge", "link", "set", "dev", one.tap.ifname, "mcast_router", "1"), "GUARD", is_heard=False
    ),
    "another queue length": Damage(link("set", "{tap}", "txqlen", "77"), "TX_QUEUE_LENGTH"),
    "no limit at its egress": Damage(
        lambda vifd, one: run(vifd, "tc", "qdisc", "delete", "dev", one.tap.ifname, "root"), "LIMITS", is_heard=False
    ),
    "no limit at its ingress": Damage(
        lambda vifd, one: run(vifd, "tc", "qdisc", "delete", "dev", one.tap.ifname, "ingress"), "LIMITS", is_heard=False
    ),
    "no guard": Damage(guard_element("delete", "element", "bridge", "vifd", "ports", "{{ {tap} }}"), "GUARD"),
    "another MAC for the guard": Damage(
        guard_element("add", "element", "bridge", "vifd", "macs", "{{ {tap} . 02:00:00:00:00:66 }}"), "GUARD"
    ),
    "no bridge": Damage(lambda vifd, _: kernel.run(vifd.netns, "link", "delete", "br-blue"), "NETWORK_MISSING", is_heard=False),
}
HEARD = {name: damage for name, damage in DAMAGES.items() if damage.is_heard}


@contextlib.contextmanager
def host(repair: str) -> Iterator[Daemon]:
    with running(networks=NETWORKS.format(repair=repair), daemon=DAEMON) as daemon:
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


@contextlib.contextmanager
def endpoint_of(vifd: Daemon) -> Iterator[tuple[Client, Endpoint]]:
    with Client(vifd.socket) as client:
        try:
            yield client, make(client, port=PORT)
        finally:
            print(vifd.log()[-3000:])
            release_all(client)
            assert taps(vifd.netns) == []


def kinds(drifts: Any) -> set[str]:
    return {DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in drifts}


def named(damages: dict[str, Damage]) -> Any:
    return pytest.mark.parametrize("damage", [pytest.param(one, id=name.replace(" ", "_")) for name, one in damages.items()])


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
        if damage.kind == "GUARD":  # a table that was changed is put back whatever the network says
            wait_for(lambda: is_whole(reporting, client, endpoint))
            return
        assert damage.kind in kinds(client.check_endpoint(endpoint.endpoint_id).drifts)
        assert damage.kind in kinds(client.get_endpoint(endpoint.endpoint_id).drifts)
        assert not is_whole(reporting, client, endpoint)
        answer = client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert damage.kind in kinds(answer.drifts)
        assert (kinds(answer.endpoint.drifts) == set()) == damage.is_mended
        assert is_whole(reporting, client, endpoint) == damage.is_mended
        assert client.get_endpoint(endpoint.endpoint_id).generation == endpoint.generation


@contextlib.contextmanager
def watched(client: Client, endpoint: Endpoint) -> Iterator[Any]:
    """A watch that has told all that is current."""
    with client.watch_endpoints() as watch:
        next(event for event in watch if event.kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED)
        yield (kinds(event.endpoint.drifts) for event in watch if event.endpoint.endpoint_id == endpoint.endpoint_id)


@named(HEARD)
def test_it_is_told_and_mended(mending: Daemon, damage: Damage) -> None:
    with endpoint_of(mending) as (client, endpoint), watched(client, endpoint) as told:
        damage.do(mending, endpoint)
        assert any(damage.kind in drifts for drifts in told)
        assert any(not drifts for drifts in told)
        wait_for(lambda: is_whole(mending, client, endpoint))


@named({name: damage for name, damage in HEARD.items() if damage.kind != "GUARD"})
def test_it_is_told_and_left_where_the_network_says_so(reporting: Daemon, damage: Damage) -> None:
    with endpoint_of(reporting) as (client, endpoint), watched(client, endpoint) as told:
        damage.do(reporting, endpoint)
        assert any(damage.kind in drifts for drifts in told)
        assert not is_whole(reporting, client, endpoint)
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert is_whole(reporting, client, endpoint)


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
