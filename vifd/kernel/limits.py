"""Rate limits of a device: how this kernel can set them, and what sets and removes them. `limitcheck` reads them back.

The way out of a device has a tbf. The way in has a police; where the kernel lacks that, everything is redirected through an ifb
with a tbf. What neither can limit is left to nftables (`Support.left_over`).

On a fresh device everything is set before it is up: on one that is up, the kernel waits for RCU at each step.
"""

from __future__ import annotations

import errno
import os
import secrets
from typing import NamedTuple

from vifd.kernel import ifb, netlink, tap, tc
from vifd.kernel.netlink import Ifla, RtnlSocket
from vifd.model import LimitsMechanism, RateLimit

_BURSTS_A_SECOND = _QUEUES_A_SECOND = 20  # each holds 50 ms of the rate
# A guest hands over up to 64 KiB of segments as one frame (linux/netdevice.h, GSO_LEGACY_MAX_SIZE).
_SEGMENTS_BYTES = 64 << 10
_LEAST_BYTES = 2 * _SEGMENTS_BYTES
_POLICE_FACTOR = 4
_LEAST_POLICE_BYTES = _SEGMENTS_BYTES + (16 << 10)  # the kernel may count the headers of each segment
_FRAME_OVERHEAD_BYTES = 14 + 2 * 4  # Ethernet's header and two VLAN tags
_LEAST_PACKETS = 64
_LONGEST_BURST_SECONDS = 250  # the kernel shows no more than 275
_MAX_U32 = 0xFFFFFFFF

#: What the kernel answers where that which is to be removed isn't there: no qdisc, one of another kind, no device.
ABSENT = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


class Wanted(NamedTuple):
    """The limits of one device, in the directions that the device sees.

    Args:
        endpoint_id: whose it is.
        ifindex: the device.
        mtu_bytes: its MTU.
        ingress: of what comes in through the device: a tap's holder has sent it.
        egress: of what goes out through it.
    """

    endpoint_id: str
    ifindex: int
    mtu_bytes: int
    ingress: RateLimit = RateLimit()
    egress: RateLimit = RateLimit()


class Support(NamedTuple):
    """What this kernel has.

    Args:
        ingress: how the way in is limited.
        egress_tbf: whether the way out can have a tbf.
        police_packets: whether a police can count packets (since Linux 5.13).
    """

    ingress: LimitsMechanism
    egress_tbf: bool
    police_packets: bool = False

    def needs_ifb(self, wanted: Wanted) -> bool:
        """Tell whether limits need an ifb."""
        return self.ingress is LimitsMechanism.IFB and wanted.ingress.rate_bps > 0

    def left_over(self, wanted: Wanted) -> tuple[RateLimit, RateLimit]:
        """Give what nftables has to limit, on the way in and on the way out."""
        by_police = self.ingress is LimitsMechanism.POLICE and self.police_packets
        by_nftables = self.ingress is LimitsMechanism.NFTABLES
        return (
            _part(wanted.ingress, rate=by_nftables, packets=not by_police),
            _part(wanted.egress, rate=not self.egress_tbf, packets=True),
        )


def default_burst_bytes(rate_bps: int, *, police: bool = False) -> int:
    """Give vifd's choice of a burst: 50 ms of the rate, and at least twice the 64 KiB that a guest may send as one frame.

    Four times that where a police drops what is too much instead of letting it wait: with 50 ms, TCP reached 0.6 of a rate of
    10 Mbit/s through one, with 200 ms all of it.

    Args:
        rate_bps: bits of Ethernet frames a second.
        police: whether a police limits.
    """
    burst_bytes = max(rate_bps // 8 // _BURSTS_A_SECOND, _LEAST_BYTES)
    return min(burst_bytes * _POLICE_FACTOR if police else burst_bytes, _MAX_U32)


class Meter(NamedTuple):
    """A limit in the units that the kernel takes.

    Args:
        rate: bytes or packets a second.
        burst: bytes or packets.
    """

    rate: int
    burst: int


class Meters(NamedTuple):
    """What traffic control has to measure of a device.

    Args:
        egress: bytes on the way out, by tbf.
        ingress: bytes on the way in, by police or by an ifb's tbf.
        ingress_packets: packets on the way in, by police.
    """

    egress: Meter | None
    ingress: Meter | None
    ingress_packets: Meter | None


def meters(support: Support, wanted: Wanted) -> Meters:
    """Give what this kernel's traffic control has to measure of a device; None: nothing."""
    egress, ingress = wanted.egress, wanted.ingress
    by_police, by_ifb = support.ingress is LimitsMechanism.POLICE, support.ingress is LimitsMechanism.IFB
    shaped_bytes = wanted.mtu_bytes + _FRAME_OVERHEAD_BYTES
    packets = by_police and support.police_packets and ingress.rate_pps > 0
    return Meters(
        _meter(egress, shaped_bytes) if support.egress_tbf else None,
        _policed(ingress) if by_police else _meter(ingress, shaped_bytes) if by_ifb else None,
        Meter(ingress.rate_pps, max(ingress.rate_pps // _BURSTS_A_SECOND, _LEAST_PACKETS)) if packets else None,
    )


def messages(support: Support, wanted: Wanted, ifb_ifindex: int = 0) -> list[bytes]:
    """Give what sets a device's limits; every message has to succeed.

    It can be repeated. What is there is changed in place: no frame passes without a limit meanwhile, none that waits is lost.

    Args:
        support: from `probe`.
        wanted: the limits.
        ifb_ifindex: from `ifb.ensure`, where `support.needs_ifb`.
    """
    ifindex, (egress, ingress, packets) = wanted.ifindex, meters(support, wanted)
    packed = [_tbf(ifindex, egress)] if egress else []
    if ingress and support.needs_ifb(wanted):
        # What is redirected to a device that is down is dropped: it comes up first, and with its limit.
        packed += [_tbf(ifb_ifindex, ingress), *ifb.finish(ifb_ifindex, wanted.endpoint_id)]
        packed += [tc.ensure_ingress(ifindex), tc.replace_redirect(ifindex, ifb_ifindex)]
    elif ingress or packets:
        packed += [tc.ensure_ingress(ifindex), tc.replace_police(ifindex, ingress or (0, 0), packets or (0, 0))]
    return packed


def removal(ifindex: int, *, ingress: bool, egress: bool) -> list[bytes]:
    """Give what takes limits off a device that stays. A refusal with one of ABSENT says that there was none.

    The ifb is deleted afterwards by who calls (`ifb.find`); the frames that wait in it are lost.
    """
    return [tc.delete_ingress(ifindex)] * ingress + [tc.delete_tbf(ifindex)] * egress


def superfluous(support: Support, wanted: Wanted) -> list[bytes]:
    """Give what takes off a device the limits that it isn't to have, where it may have had others; see `removal`."""
    egress, ingress, packets = meters(support, wanted)
    return removal(wanted.ifindex, ingress=not (ingress or packets), egress=not egress)


def probe(rtnl: RtnlSocket) -> Support:
    """Find out what this kernel has, on a tap (and an ifb) that is gone afterwards. It waits for RCU, some 30 ms: for the start.

    Where it is the first to need ifb and that is a module, loading it makes ifb0 and ifb1 (drivers/net/ifb.c, numifbs).

    Raises:
        OSError: no tap can be made.
    """
    ifname = _random_name()
    fd = tap.create(ifname, uid=0, gid=None, multi_queue=False, vnet_hdr=False)
    try:
        return _probe(rtnl, tap.device_number(rtnl.fileno(), tap.SIOCGIFINDEX, ifname))
    finally:
        os.close(fd)


def _probe(rtnl: RtnlSocket, ifindex: int) -> Support:
    tbf, ingress, police, packets, shown = rtnl.exchange(
        [
            _tbf(ifindex, Meter(1000, _LEAST_BYTES)),
            tc.ensure_ingress(ifindex),
            tc.replace_police(ifindex, Meter(1000, _LEAST_BYTES), (0, 0)),
            tc.replace_police(ifindex, (0, 0), Meter(1000, _LEAST_PACKETS)),
            tc.get_filter(ifindex),
        ]
    )
    if ingress.errno == 0 and police.errno == 0:
        # Up to Linux 5.12 the kernel takes the message, and doesn't look at what it doesn't know.
        counts = packets.errno == 0 and shown.errno == 0 and tc.parse(shown.answer).police_packets is not None
        return Support(LimitsMechanism.POLICE, egress_tbf=tbf.errno == 0, police_packets=counts)
    if ingress.errno == 0 and tbf.errno == 0 and _can_redirect(rtnl, ifindex):
        return Support(LimitsMechanism.IFB, egress_tbf=True)
    return Support(LimitsMechanism.NFTABLES, egress_tbf=tbf.errno == 0)


def _can_redirect(rtnl: RtnlSocket, ifindex: int) -> bool:
    ifname = _random_name()
    if rtnl.ask(netlink.create_link("ifb", netlink.text(Ifla.IFNAME, ifname))).errno:
        return False
    index = tap.device_number(rtnl.fileno(), tap.SIOCGIFINDEX, ifname)
    return rtnl.exchange([tc.replace_redirect(ifindex, index), netlink.delete_link(index)])[0].errno == 0


def _random_name() -> str:
    """Give a name without vifd's prefix: its monitor doesn't look at such a device."""
    return f"probe{secrets.token_hex(4)}"


def _tbf(ifindex: int, meter: Meter) -> bytes:
    """Pack a tbf in front of which 50 ms of the rate wait, and at least two frames with segments."""
    return tc.replace_tbf(ifindex, meter.rate, meter.burst, min(max(meter.rate // _QUEUES_A_SECOND, _LEAST_BYTES), _MAX_U32))


def _policed(limit: RateLimit) -> Meter | None:
    """Give a police's meter: unlike a tbf it doesn't cut frames with segments up, but drops those longer than its burst."""
    burst_bytes = limit.burst_bytes or default_burst_bytes(limit.rate_bps, police=True)
    return _meter(RateLimit(limit.rate_bps, burst_bytes), _LEAST_POLICE_BYTES)


def _meter(limit: RateLimit, least_burst_bytes: int) -> Meter | None:
    if not limit.rate_bps:
        return None
    rate = max(limit.rate_bps // 8, 1)
    burst_bytes = min(limit.burst_bytes or default_burst_bytes(limit.rate_bps), rate * _LONGEST_BURST_SECONDS)
    return Meter(rate, min(max(burst_bytes, least_burst_bytes), _MAX_U32))


def _part(limit: RateLimit, *, rate: bool, packets: bool) -> RateLimit:
    return RateLimit(
        rate_bps=limit.rate_bps if rate else 0,
        burst_bytes=limit.burst_bytes if rate else 0,
        rate_pps=limit.rate_pps if packets else 0,
    )
