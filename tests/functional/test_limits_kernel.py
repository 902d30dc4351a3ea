"""Limits on real devices: read back with `tc`, and measured."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import flows, kernel
from tests.support.daemon import ip, network_namespace
from tests.support.flows import GUEST, HOST, TAP, Wire
from vifd.kernel import ifb, limitcheck, limits, linkfilter, names, netlink
from vifd.kernel.limitcheck import Found
from vifd.kernel.limits import Support, Wanted
from vifd.kernel.netlink import RtnlSocket
from vifd.model import LimitsMechanism, RateLimit

RATE_BPS = 20_000_000
RATE, NO_LIMIT = RateLimit(rate_bps=RATE_BPS), RateLimit()
IFB = Support(LimitsMechanism.IFB, egress_tbf=True)
SLOW = RateLimit(rate_bps=8_000, burst_bytes=1)  # less than a frame a second, and one frame at once
varies_with_police = pytest.mark.kernel_varies("police")


class Limiter:
    """What the helper does with limits, in a namespace."""

    def __init__(self, netns: str, ifindex: int, support: Support) -> None:
        self.netns, self.ifindex, self.support = netns, ifindex, support
        self.endpoint_id = str(uuid.uuid4())
        self.rtnl = kernel.inside(netns, RtnlSocket)

    def wanted(self, ingress: RateLimit = NO_LIMIT, egress: RateLimit = NO_LIMIT) -> Wanted:
        return Wanted(self.endpoint_id, self.ifindex, 1500, ingress, egress)

    def set(self, ingress: RateLimit = NO_LIMIT, egress: RateLimit = NO_LIMIT) -> None:
        wanted = self.wanted(ingress, egress)
        index = 0
        if self.support.needs_ifb(wanted):
            index = ifb.ensure(self.rtnl, {self.endpoint_id: 1500})[self.endpoint_id].ifindex
        replies = self.rtnl.exchange(limits.messages(self.support, wanted, index))
        assert [reply for reply in replies if reply.errno] == []
        unset = self.rtnl.exchange(limits.superfluous(self.support, wanted))
        assert {reply.errno for reply in unset} <= limits.ABSENT | {0}

    def remove(self) -> None:
        self.set()
        links = ifb.find(self.rtnl, [self.endpoint_id])
        assert all(reply.errno == 0 for reply in self.rtnl.exchange([netlink.delete_link(x.ifindex) for x in links.values()]))

    def differences(self, wanted: Wanted) -> list[limitcheck.Difference]:
        found = limitcheck.find(self.rtnl, [self.ifindex])[self.ifindex]
        return limitcheck.differences(self.support, wanted, found)


def tc(netns: str, *arguments: str) -> Any:
    done = subprocess.run(["tc", "-n", netns, "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def qdiscs(netns: str, device: str) -> dict[str, Any]:
    return {qdisc["kind"]: qdisc for qdisc in tc(netns, "qdisc", "show", "dev", device)}


def actions(netns: str, device: str) -> list[Any]:
    shown = [part.get("options", {}) for part in tc(netns, "filter", "show", "dev", device, "ingress")]
    return [action for options in shown for action in options.get("actions", [])]


def index_of(netns: str, device: str) -> int:
    index: int = ip(netns, "link", "show", device)[0]["ifindex"]
    return index


Limiting = Callable[[str, int, Support], Limiter]


@pytest.fixture
def limiting() -> Iterator[Limiting]:
    """Makes limiters, and closes them."""
    made: list[Limiter] = []

    def make(netns: str, ifindex: int, support: Support) -> Limiter:
        made.append(Limiter(netns, ifindex, support))
        return made[-1]

    yield make
    for limiter in made:
        limiter.rtnl.close()


def probed(netns: str) -> Support:
    """What this kernel has, as the helper finds it in a namespace."""
    with contextlib.closing(kernel.inside(netns, RtnlSocket)) as rtnl:
        return kernel.inside(netns, lambda: limits.probe(rtnl))


@pytest.fixture(scope="module")
def supports() -> list[Support]:
    """What this kernel has, and what it also has where that is more."""
    with network_namespace() as netns:
        best = probed(netns)
    others = [IFB] if best.ingress is LimitsMechanism.POLICE else []
    return [best, *others]


@pytest.fixture
def netns() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@pytest.fixture
def down_tap(netns: str) -> Iterator[str]:
    """A tap that isn't up, in `netns`."""
    fd = kernel.open_tap(netns, TAP)
    yield TAP
    os.close(fd)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with flows.wired() as made:
        yield made


def accepts(netns: str, *arguments: str) -> bool:
    return subprocess.run(["tc", "-n", netns, *arguments], check=False, capture_output=True).returncode == 0


@varies_with_police
def test_the_probe_finds_what_tc_can_set(netns: str, down_tap: str) -> None:
    support = probed(netns)
    kernel.run(netns, "link", "add", "ifb0", "type", "ifb")
    catching_all = ("ingress", "protocol", "all", "u32", "match", "u32", "0", "0", "action")
    tbf = accepts(netns, "qdisc", "add", "dev", TAP, "root", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "10kb")
    assert accepts(netns, "qdisc", "add", "dev", TAP, "ingress")
    police = accepts(netns, "filter", "add", "dev", TAP, *catching_all, "police", "rate", "1mbit", "burst", "10kb", "drop")
    redirect = accepts(netns, "filter", "add", "dev", TAP, *catching_all, "mirred", "egress", "redirect", "dev", "ifb0")
    assert support.egress_tbf == tbf
    best = LimitsMechanism.POLICE if police else LimitsMechanism.IFB if redirect and tbf else LimitsMechanism.NFTABLES
    assert support.ingress is best


def test_the_probe_leaves_nothing_and_wakes_no_monitor(netns: str) -> None:
    listener = kernel.inside(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
    with listener:
        listener.setblocking(False)
        linkfilter.attach(listener)
        listener.bind((0, 1))
        before = kernel.snapshot(netns)
        probed(netns)
        assert kernel.snapshot(netns) == before
        with pytest.raises(BlockingIOError):
            listener.recv(1 << 16)


@varies_with_police
def test_a_fresh_tap_has_what_tc_shows(netns: str, down_tap: str, supports: list[Support], limiting: Limiting) -> None:
    for support in supports:
        limiter = limiting(netns, index_of(netns, TAP), support)
        limiter.set(ingress=RateLimit(rate_bps=RATE_BPS, burst_bytes=250_000), egress=RateLimit(rate_bps=8 * 10**10))
        shown = qdiscs(netns, TAP)
        assert shown["tbf"]["root"]
        assert shown["tbf"]["options"]["rate"] == 10**10
        assert shown["tbf"]["options"]["burst"] == pytest.approx(10**10 // 20, rel=0.001)
        assert shown["ingress"]["parent"] == "ffff:fff1"
        [action] = actions(netns, TAP)
        if support.ingress is LimitsMechanism.IFB:
            name = names.ifb_name(limiter.endpoint_id)
            assert (action["mirred_action"], action["direction"], action["to_dev"]) == ("redirect", "egress", name)
            options = qdiscs(netns, name)["tbf"]["options"]
            assert options["rate"] == RATE_BPS // 8
            assert options["burst"] == pytest.approx(250_000, rel=0.001)
        else:
            assert action["kind"] == "police"
        limiter.remove()


def test_an_ifb_is_up_marked_and_without_addresses(netns: str, down_tap: str, limiting: Limiting) -> None:
    limiter = limiting(netns, index_of(netns, TAP), IFB)
    limiter.set(ingress=RATE)
    [shown] = ip(netns, "address", "show", names.ifb_name(limiter.endpoint_id))
    assert shown["ifalias"] == names.ifb_mark(limiter.endpoint_id)
    assert "UP" in shown["flags"]
    assert (shown["mtu"], shown["txqlen"], shown["addr_info"]) == (1500, 256, [])
    assert "master" not in shown
    assert kernel.inside(netns, ifb.find_marked) == {limiter.endpoint_id: shown["ifindex"]}


@varies_with_police
def test_the_same_again_changes_nothing(wire: Wire, supports: list[Support], limiting: Limiting) -> None:
    for support in supports:
        limiter = limiting(wire.host, wire.ifindex, support)
        limiter.set(ingress=RATE, egress=RATE)
        before = (kernel.snapshot(wire.host), tc(wire.host, "qdisc", "show"), len(actions(wire.host, TAP)))
        limiter.set(ingress=RATE, egress=RATE)
        assert (kernel.snapshot(wire.host), tc(wire.host, "qdisc", "show"), len(actions(wire.host, TAP))) == before
        limiter.remove()


@varies_with_police
def test_after_removal_nothing_is_left(wire: Wire, supports: list[Support], limiting: Limiting) -> None:
    before = (kernel.snapshot(wire.host), set(qdiscs(wire.host, TAP)))
    for support in supports:
        limiter = limiting(wire.host, wire.ifindex, support)
        limiter.set(ingress=RATE, egress=RATE)
        limiter.remove()
        assert (kernel.snapshot(wire.host), set(qdiscs(wire.host, TAP))) == before
        limiter.remove()


@varies_with_police
def test_one_direction_goes_and_the_other_stays(wire: Wire, supports: list[Support], limiting: Limiting) -> None:
    for support in supports:
        limiter = limiting(wire.host, wire.ifindex, support)
        limiter.set(ingress=RATE, egress=RATE)
        limiter.set(egress=RATE)
        assert (set(qdiscs(wire.host, TAP)), actions(wire.host, TAP)) == ({"tbf"}, [])
        limiter.set(ingress=RATE)
        assert "tbf" not in qdiscs(wire.host, TAP)
        assert len(actions(wire.host, TAP)) == 1
        limiter.remove()


@varies_with_police
def test_what_is_there_is_read_back(wire: Wire, supports: list[Support], limiting: Limiting) -> None:
    fast = RateLimit(rate_bps=10**11, burst_bytes=10**6)
    slow = RateLimit(rate_bps=1000)
    for support in supports:
        limiter = limiting(wire.host, wire.ifindex, support)
        for ingress, egress in ((RATE, RATE), (fast, slow), (slow, fast)):
            limiter.set(ingress=ingress, egress=egress)
            assert limiter.differences(limiter.wanted(ingress, egress)) == []
            assert {found.direction for found in limiter.differences(limiter.wanted(ingress))} == {"egress"}
        limiter.remove()
        assert limiter.differences(limiter.wanted()) == []


def test_a_device_that_is_gone_has_nothing(netns: str) -> None:
    with contextlib.closing(kernel.inside(netns, RtnlSocket)) as rtnl:
        assert limitcheck.find(rtnl, [12345, 1]) == {12345: Found(), 1: Found()}


@pytest.mark.parametrize("damage", ["delete", "down", "unmark"])
def test_damage_to_an_ifb_is_noticed_and_mended(wire: Wire, damage: str, limiting: Limiting) -> None:
    limiter = limiting(wire.host, wire.ifindex, IFB)
    limiter.set(ingress=RATE)
    name = names.ifb_name(limiter.endpoint_id)
    if damage == "delete":
        kernel.run(wire.host, "link", "delete", name)
    elif damage == "down":
        kernel.run(wire.host, "link", "set", name, "down")
    else:
        kernel.run(wire.host, "link", "set", name, "alias", "")
    assert {found.direction for found in limiter.differences(limiter.wanted(RATE))} == {"ingress"}
    limiter.set(ingress=RATE)
    assert limiter.differences(limiter.wanted(RATE)) == []


def test_a_device_of_somebody_else_with_the_name_of_an_ifb_is_left_alone(netns: str, down_tap: str, limiting: Limiting) -> None:
    limiter = limiting(netns, index_of(netns, TAP), IFB)
    for kind in ("ifb", "bridge"):
        kernel.run(netns, "link", "add", names.ifb_name(limiter.endpoint_id), "type", kind)
        before = kernel.snapshot(netns)
        made = ifb.ensure(limiter.rtnl, {limiter.endpoint_id: 1500})[limiter.endpoint_id]
        assert made.ifindex == 0
        assert "isn't" in made.message
        assert ifb.find(limiter.rtnl, [limiter.endpoint_id]) == {}
        assert kernel.snapshot(netns) == before
        kernel.run(netns, "link", "delete", names.ifb_name(limiter.endpoint_id))


def test_an_ifb_that_was_left_half_made_is_finished(netns: str, down_tap: str, limiting: Limiting) -> None:
    limiter = limiting(netns, index_of(netns, TAP), IFB)
    first = ifb.ensure(limiter.rtnl, {limiter.endpoint_id: 1500})[limiter.endpoint_id]
    assert list(ifb.find(limiter.rtnl, [limiter.endpoint_id])) == [limiter.endpoint_id]
    limiter.set(ingress=RATE)
    assert ifb.ensure(limiter.rtnl, {limiter.endpoint_id: 1500})[limiter.endpoint_id] == first
    assert limiter.differences(limiter.wanted(RATE)) == []


def test_many_ifbs_are_made_at_once_and_one_refusal_is_its_own(netns: str) -> None:
    ids = [str(uuid.uuid4()) for _ in range(70)]
    kernel.run(netns, "link", "add", names.ifb_name(ids[3]), "type", "bridge")
    with contextlib.closing(kernel.inside(netns, RtnlSocket)) as rtnl:
        made = ifb.ensure(rtnl, dict.fromkeys(ids, 9000))
    assert [endpoint_id for endpoint_id in ids if not made[endpoint_id].ifindex] == [ids[3]]
    shown = {link["ifname"]: link for link in ip(netns, "link", "show") if link["ifname"].startswith("ifb")}
    assert {shown[names.ifb_name(endpoint_id)]["ifindex"] for endpoint_id in ids if endpoint_id != ids[3]} == {
        one.ifindex for one in made.values() if one.ifindex
    }


FLOWS = [flows.tcp_bps, flows.udp_bps]


@pytest.mark.parametrize("measure", FLOWS)
def test_what_the_guest_sends_has_the_rate(
    wire: Wire, supports: list[Support], measure: Callable[..., float], limiting: Limiting
) -> None:
    for support in supports:
        limiter = limiting(wire.host, wire.ifindex, support)
        limiter.set(ingress=RATE)
        assert measure(wire.guest, wire.host, HOST) == pytest.approx(RATE_BPS, rel=0.1)
        limiter.remove()


@pytest.mark.parametrize("measure", FLOWS)
def test_what_the_guest_receives_has_the_rate(
    wire: Wire, supports: list[Support], measure: Callable[..., float], limiting: Limiting
) -> None:
    limiting(wire.host, wire.ifindex, supports[0]).set(egress=RATE)
    assert measure(wire.host, wire.guest, GUEST) == pytest.approx(RATE_BPS, rel=0.1)


def test_without_limits_the_same_flows_are_faster(wire: Wire) -> None:
    assert flows.udp_bps(wire.guest, wire.host, HOST) > RATE_BPS * 1.3
    assert flows.tcp_bps(wire.host, wire.guest, GUEST) > RATE_BPS * 1.3


def test_while_a_rate_is_changed_nothing_passes_without_a_limit(wire: Wire, limiting: Limiting) -> None:
    # Frames longer than the burst: a tbf lets none of them through, at whatever rate.
    for netns, device in ((wire.host, TAP), (wire.guest, flows.GUEST_DEVICE)):
        kernel.run(netns, "link", "set", device, "mtu", "9000")
    limiter = limiting(wire.host, wire.ifindex, IFB)
    with flows.udp_receiver(wire.host, HOST) as receiver, flows.udp_flood(wire.guest, HOST, size_bytes=2000):
        receiver.recv(1 << 16)
        limiter.set(ingress=SLOW)
        flows.drain(receiver)
        for change in range(1, 200):
            limiter.set(ingress=RateLimit(rate_bps=SLOW.rate_bps + 8 * change, burst_bytes=1))
        assert qdiscs(wire.host, names.ifb_name(limiter.endpoint_id))["tbf"]["options"]["rate"] == 1000 + 199
        assert flows.drain(receiver) == 0
        limiter.remove()
        receiver.settimeout(10)
        assert receiver.recv(1 << 16)


def test_what_waits_for_its_turn_survives_a_change(wire: Wire, limiting: Limiting) -> None:
    limiter = limiting(wire.host, wire.ifindex, IFB)
    limiter.set(ingress=SLOW, egress=SLOW)
    for source, netns, address in ((wire.guest, wire.host, HOST), (wire.host, wire.guest, GUEST)):
        with flows.udp_receiver(netns, address) as receiver:
            flows.send_datagrams(source, address, 50)
            limiter.set(ingress=SLOW, egress=SLOW)
            limiter.set(ingress=RATE, egress=RATE)
            for _ in range(50):
                assert receiver.recv(1 << 16)
            limiter.set(ingress=SLOW, egress=SLOW)
