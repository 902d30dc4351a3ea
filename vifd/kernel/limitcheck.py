"""Reads the limits of devices back, and tells how they differ from what is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vifd.kernel import names, netlink, tc
from vifd.kernel.limits import Meter, Support, Wanted, meters
from vifd.kernel.netlink import IFF_UP, Ifla, Reply, RtnlSocket
from vifd.kernel.tc import Bucket, Shown

_TICKS_TOLERANCE = 2  # the kernel multiplies by a rounded reciprocal of the rate (net/sched/sch_generic.c)


class Found(NamedTuple):
    """What a device has.

    Args:
        egress: the bucket of its tbf.
        ingress: the bucket that its way in goes through: a police's, or an ifb's tbf's if that ifb is up.
        ingress_packets: the bucket of packets of its way in.
        redirected: whether its way in goes to another device.
        ifb_endpoint_id: whose ifb that is, by its mark.
    """

    egress: Bucket | None = None
    ingress: Bucket | None = None
    ingress_packets: Bucket | None = None
    redirected: bool = False
    ifb_endpoint_id: str = ""


class Difference(NamedTuple):
    """What of a device's limits isn't as it should be, in words: "egress", "20000000 bit/s, burst 131072 bytes", "no limit"."""

    direction: str
    expected: str
    actual: str


def find(rtnl: RtnlSocket, ifindexes: Iterable[int]) -> dict[int, Found]:
    """Read back what devices have, by messages for each alone. A device that isn't there has nothing."""
    wanted = list(ifindexes)
    roots = rtnl.exchange([tc.get_root(ifindex) for ifindex in wanted])
    filters = [_shown(reply) for reply in rtnl.exchange([tc.get_filter(ifindex) for ifindex in wanted])]
    found, ifbs = {}, {}
    for ifindex, root, shown in zip(wanted, roots, filters, strict=True):
        found[ifindex] = Found(_shown(root).tbf, shown.police_bytes, shown.police_packets, bool(shown.redirect))
        if shown.redirect:
            ifbs[ifindex] = shown.redirect
    links = rtnl.exchange([netlink.get_link(ifindex=index) for index in ifbs.values()])
    buckets = rtnl.exchange([tc.get_root(index) for index in ifbs.values()])
    for ifindex, link, root in zip(ifbs, links, buckets, strict=True):
        if link.link is not None:
            endpoint_id = names.marked_ifb_endpoint_id(link.link.text(Ifla.IFALIAS))
            bucket = _shown(root).tbf if link.link.flags & IFF_UP else None
            found[ifindex] = found[ifindex]._replace(ingress=bucket, ifb_endpoint_id=endpoint_id)
    return found


def differences(support: Support, wanted: Wanted, found: Found) -> list[Difference]:
    """Tell what of a device's limits isn't as it should be; empty: all is."""
    egress, ingress, packets = meters(support, wanted)
    compared = [("egress", egress, found.egress, "byte"), ("ingress", ingress, found.ingress, "byte")]
    compared.append(("ingress", packets, found.ingress_packets, "packet"))
    result = [
        Difference(direction, _meter_in_words(meter, unit), _bucket_in_words(bucket, unit))
        for direction, meter, bucket, unit in compared
        if not _is_same(meter, bucket)
    ]
    ifb_endpoint_id = wanted.endpoint_id if support.needs_ifb(wanted) else ""
    if found.ifb_endpoint_id != ifb_endpoint_id or found.redirected != bool(ifb_endpoint_id):
        result.append(
            Difference(
                "ingress",
                _ifb_in_words(ifb_endpoint_id, redirected=bool(ifb_endpoint_id)),
                _ifb_in_words(found.ifb_endpoint_id, redirected=found.redirected),
            )
        )
    return result


def _shown(reply: Reply) -> Shown:
    return tc.parse(reply.answer) if reply.errno == 0 and reply.answer else Shown("")


def _is_same(meter: Meter | None, bucket: Bucket | None) -> bool:
    if meter is None or bucket is None:
        return meter is None and bucket is None
    return meter.rate == bucket.rate and abs(tc.burst_ticks(*meter) - bucket.burst_ticks) <= _TICKS_TOLERANCE


def _meter_in_words(meter: Meter | None, unit: str) -> str:
    if meter is None:
        return "no limit"
    rate = f"{meter.rate * 8} bit/s" if unit == "byte" else f"{meter.rate} packets/s"
    return f"{rate}, burst {meter.burst} {unit}s"


def _bucket_in_words(bucket: Bucket | None, unit: str) -> str:
    return _meter_in_words(bucket and Meter(bucket.rate, tc.burst(bucket)), unit)


def _ifb_in_words(endpoint_id: str, *, redirected: bool) -> str:
    if not redirected:
        return "no ifb"
    return f"the ifb of {endpoint_id}" if endpoint_id else "a device that is no endpoint's ifb"
