"""Which mechanism limits what, and by which messages; on a kernel that is made up."""

from __future__ import annotations

import errno
import struct

import pytest

from vifd.kernel import ifb, limitcheck, limits, names, netlink, tc
from vifd.kernel.limitcheck import Difference, Found
from vifd.kernel.limits import Meter, Meters, Support, Wanted
from vifd.kernel.netlink import Reply
from vifd.kernel.tc import Bucket
from vifd.model import LimitsMechanism, RateLimit

ID = "3f0a5c1e-8d2b-4f6a-9c7d-1e2f3a4b5c6d"
POLICE = Support(LimitsMechanism.POLICE, egress_tbf=True, police_packets=True)
OLD_POLICE = Support(LimitsMechanism.POLICE, egress_tbf=True)
IFB = Support(LimitsMechanism.IFB, egress_tbf=True)
NFTABLES = Support(LimitsMechanism.NFTABLES, egress_tbf=False)
BOTH = RateLimit(rate_bps=20_000_000, burst_bytes=200_000, rate_pps=5000)
WANTED = Wanted(ID, 7, 1500, ingress=BOTH, egress=BOTH)
NONE = Wanted(ID, 7, 1500)
DEVICE, IFB_INDEX, ROOT, INGRESS = 7, 9, 0xFFFFFFFF, 0xFFFFFFF1


class Kernel:
    """Answers as a kernel that lacks some words: kinds of qdiscs, filters, actions and devices.

    Args:
        lacks: the words.
        counts_packets: whether its police knows TCA_POLICE_PKTRATE64; one that doesn't ignores it.
    """

    def __init__(self, *lacks: str, counts_packets: bool = True) -> None:
        self._lacks, self._counts_packets = lacks, counts_packets
        self._filter = b""

    def ask(self, message: bytes) -> Reply:
        kind = struct.unpack_from("=H", message, 4)[0]
        if kind == tc.RTM_GETTFILTER:
            return Reply(0, "", None, self._filter) if self._filter else Reply(errno.ENOENT, "no filter")
        if any(word.encode() + b"\0" in message for word in self._lacks):
            return Reply(errno.ENOENT, "Failed to load TC action module")
        if kind == tc.RTM_NEWTFILTER:
            ignored = tc.parse(message).police_packets and not self._counts_packets
            self._filter = tc.replace_police(DEVICE, (0, 0), (0, 0)) if ignored else message
        return Reply(0)

    def exchange(self, messages: list[bytes]) -> list[Reply]:
        return [self.ask(message) for message in messages]


@pytest.mark.parametrize(
    ("kernel", "support"),
    [
        (Kernel(), POLICE),
        (Kernel(counts_packets=False), OLD_POLICE),
        (Kernel("tbf"), POLICE._replace(egress_tbf=False)),
        (Kernel("police", "ifb"), Support(LimitsMechanism.NFTABLES, egress_tbf=True)),
        (Kernel("police", "tbf"), NFTABLES),
        (Kernel("ingress"), Support(LimitsMechanism.NFTABLES, egress_tbf=True)),
        (Kernel("u32", "tbf"), NFTABLES),
    ],
)
def test_the_best_mechanism_is_found(kernel: Kernel, support: Support) -> None:
    assert limits._probe(kernel, DEVICE) == support  # type: ignore[arg-type]  # it asks, and needs no socket


@pytest.mark.parametrize(
    ("support", "ingress", "egress"),
    [
        (POLICE, RateLimit(), RateLimit(rate_pps=5000)),
        (OLD_POLICE, RateLimit(rate_pps=5000), RateLimit(rate_pps=5000)),
        (IFB, RateLimit(rate_pps=5000), RateLimit(rate_pps=5000)),
        (NFTABLES, BOTH, BOTH),
    ],
)
def test_nftables_has_the_rest(support: Support, ingress: RateLimit, egress: RateLimit) -> None:
    assert support.left_over(WANTED) == (ingress, egress)
    assert support.left_over(NONE) == (RateLimit(), RateLimit())


def test_only_a_rate_of_bytes_needs_an_ifb() -> None:
    assert IFB.needs_ifb(WANTED)
    assert not IFB.needs_ifb(NONE._replace(ingress=RateLimit(rate_pps=5), egress=BOTH))
    assert not POLICE.needs_ifb(WANTED)
    assert not NFTABLES.needs_ifb(WANTED)


@pytest.mark.parametrize(
    ("rate_bps", "burst_bytes"), [(1000, 131_072), (20_000_000, 131_072), (10**9, 6_250_000), (10**13, 2**32 - 1)]
)
def test_a_burst_that_isnt_said_holds_two_frames_with_segments(rate_bps: int, burst_bytes: int) -> None:
    assert limits.default_burst_bytes(rate_bps) == burst_bytes
    assert limits.default_burst_bytes(rate_bps, police=True) == min(4 * burst_bytes, 2**32 - 1)


def test_a_police_has_a_longer_burst_than_a_tbf() -> None:
    limit = RateLimit(rate_bps=20_000_000)
    wanted = NONE._replace(ingress=limit, egress=limit)
    assert limits.meters(POLICE, wanted) == Meters(Meter(2_500_000, 131_072), Meter(2_500_000, 524_288), None)
    assert limits.meters(IFB, wanted) == Meters(Meter(2_500_000, 131_072), Meter(2_500_000, 131_072), None)


@pytest.mark.parametrize(
    ("support", "burst_bytes", "mtu_bytes", "ingress_burst"),
    [
        (IFB, 1, 1500, 1522),
        (IFB, 1, 9000, 9022),
        (IFB, 10_000, 1500, 10_000),
        (POLICE, 10_000, 1500, 81_920),  # it drops what it can't take at once
        (POLICE, 100_000, 1500, 100_000),
    ],
)
def test_a_burst_takes_at_least_a_frame(support: Support, burst_bytes: int, mtu_bytes: int, ingress_burst: int) -> None:
    limit = RateLimit(rate_bps=8_000_000, burst_bytes=burst_bytes)
    meters = limits.meters(support, Wanted(ID, 7, mtu_bytes, ingress=limit, egress=limit))
    assert meters.ingress == Meter(1_000_000, ingress_burst)
    assert meters.egress == Meter(1_000_000, max(burst_bytes, mtu_bytes + 22))


def test_the_slowest_rate_is_a_byte() -> None:
    wanted = NONE._replace(egress=RateLimit(rate_bps=1))
    assert limits.meters(IFB, wanted).egress == Meter(1, 1522)


def test_a_burst_lasts_no_longer_than_the_kernel_can_show() -> None:
    limit = RateLimit(rate_bps=1000, burst_bytes=10**6)
    meters = limits.meters(POLICE, NONE._replace(ingress=limit, egress=limit))
    assert meters.egress == Meter(125, 31_250)
    assert meters.ingress == Meter(125, 81_920)


def test_a_police_sets_all_of_the_way_in() -> None:
    rate = Meter(2_500_000, 200_000)
    assert limits.messages(POLICE, WANTED) == [
        tc.replace_tbf(DEVICE, *rate, 131_072),
        tc.ensure_ingress(DEVICE),
        tc.replace_police(DEVICE, rate, Meter(5000, 250)),
    ]
    assert limits.messages(OLD_POLICE, WANTED)[2:] == [tc.replace_police(DEVICE, rate, (0, 0))]


def test_packets_alone_are_policed_too() -> None:
    wanted = NONE._replace(ingress=RateLimit(rate_pps=10))
    assert limits.messages(POLICE, wanted) == [tc.ensure_ingress(DEVICE), tc.replace_police(DEVICE, (0, 0), Meter(10, 64))]
    assert limits.messages(OLD_POLICE, wanted) == []


def test_an_ifb_is_limited_and_up_before_frames_go_there() -> None:
    rate = Meter(2_500_000, 200_000)
    assert limits.messages(IFB, WANTED, IFB_INDEX) == [
        tc.replace_tbf(DEVICE, *rate, 131_072),
        tc.replace_tbf(IFB_INDEX, *rate, 131_072),
        *ifb.finish(IFB_INDEX, ID),
        tc.ensure_ingress(DEVICE),
        tc.replace_redirect(DEVICE, IFB_INDEX),
    ]


def test_what_nftables_limits_gets_no_message() -> None:
    assert limits.messages(NFTABLES, WANTED) == []
    for support in (POLICE, IFB, NFTABLES):
        assert limits.messages(support, NONE) == []


def test_what_isnt_wanted_is_removed() -> None:
    both = [tc.delete_ingress(DEVICE), tc.delete_tbf(DEVICE)]
    assert limits.superfluous(POLICE, NONE) == limits.superfluous(NFTABLES, WANTED) == both
    assert limits.superfluous(IFB, WANTED) == []
    assert limits.superfluous(IFB, WANTED._replace(ingress=RateLimit(rate_pps=1))) == both[:1]
    assert limits.superfluous(POLICE, WANTED._replace(egress=RateLimit())) == both[1:]


def bucket(meter: Meter | None, off: int = 0) -> Bucket | None:
    return meter and Bucket(meter.rate, tc.burst_ticks(*meter) + off)


def found(support: Support, wanted: Wanted, off: int = 0) -> Found:
    egress, ingress, packets = limits.meters(support, wanted)
    redirected = support.needs_ifb(wanted)
    return Found(bucket(egress, off), bucket(ingress, off), bucket(packets, off), redirected, ID if redirected else "")


@pytest.mark.parametrize("support", [POLICE, OLD_POLICE, IFB, NFTABLES])
@pytest.mark.parametrize("off", [-2, 0, 2])
def test_limits_as_wanted_differ_in_nothing(support: Support, off: int) -> None:
    for wanted in (WANTED, NONE):
        assert limitcheck.differences(support, wanted, found(support, wanted, off)) == []


@pytest.mark.parametrize("support", [POLICE, IFB])
def test_limits_that_are_missing_or_should_not_be_are_told(support: Support) -> None:
    missing = limitcheck.differences(support, WANTED, Found())
    assert {difference.direction for difference in missing} == {"egress", "ingress"}
    assert Difference("ingress", "20000000 bit/s, burst 200000 bytes", "no limit") in missing
    more = limitcheck.differences(support, NONE, found(support, WANTED))
    assert Difference("egress", "no limit", "20000000 bit/s, burst 200000 bytes") in more


def test_another_rate_or_burst_is_told() -> None:
    other = found(POLICE, WANTED._replace(egress=RateLimit(rate_bps=8_000_000, burst_bytes=200_000)))
    assert limitcheck.differences(POLICE, WANTED, other) == [
        Difference("egress", "20000000 bit/s, burst 200000 bytes", "8000000 bit/s, burst 200000 bytes")
    ]
    assert limitcheck.differences(POLICE, WANTED, found(POLICE, WANTED, 100)) != []


def test_an_ifb_of_another_is_told() -> None:
    theirs = found(IFB, WANTED)._replace(ifb_endpoint_id="")
    expected = Difference("ingress", f"the ifb of {ID}", "a device that is no endpoint's ifb")
    assert limitcheck.differences(IFB, WANTED, theirs) == [expected]


def ifb_link(alias: str = "", mac: str = "", kind: str = "ifb") -> netlink.Link:
    info = netlink.text(1, kind)
    address = bytes.fromhex(mac.replace(":", ""))
    attributes = {netlink.Ifla.LINKINFO: info, netlink.Ifla.ADDRESS: address}
    return netlink.Link(9, 0, {int(k): v for k, v in attributes.items()} | ({20: alias.encode() + b"\0"} if alias else {}))


def test_an_ifb_is_known_by_its_alias_or_before_that_by_its_mac() -> None:
    mark, mac = names.ifb_mark(ID), names.derived_mac(names.ifb_mark(ID))
    other = ID.replace("3f", "40")
    assert ifb.is_of(ifb_link(mark), ID)
    assert ifb.is_of(ifb_link(mac=mac), ID)
    assert not ifb.is_of(ifb_link(mark), other)
    assert not ifb.is_of(ifb_link(mac=mac), other)
    assert not ifb.is_of(ifb_link(mark, kind="dummy"), ID)
    assert not ifb.is_of(ifb_link("mine", mac), ID)
    assert not ifb.is_of(ifb_link(), ID)


def test_nothing_to_measure_is_none() -> None:
    assert limits.meters(POLICE, NONE) == Meters(None, None, None)
