"""Traffic control's messages, packed by hand as in `netlink`: a rate at a device's way out, and at its way in.

Numbers are from linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/; tc-tbf(8), tc-police(8), tc-mirred(8) say what they mean.
The kernel counts a bucket's depth in the time that its bytes take at the rate, in ticks of 64 ns (include/net/pkt_sched.h,
PSCHED_SHIFT).
"""

from __future__ import annotations

import socket
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from vifd.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_REPLACE,
    attribute,
    nested,
    number,
    parse_attributes,
    request,
    text,
)

_TCMSG = Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_RATESPEC = Struct("=BBHhHI")  # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
_POLICE = Struct("=IiIII12s12siiI")  # struct tc_police: index, action, limit, burst, mtu, rate, peakrate, refcnt, bindcnt, capab
_MIRRED = Struct("=IIiiiiI")  # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
_HEADER_BYTES = 16 + _TCMSG.size

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
#: Messages that tell of a change.
EVENTS = (RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER)

_TC_H_ROOT, _TC_H_INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_FILTER_HANDLE = 0x80000800  # 800::800, the first of u32's own
_FILTER_INFO = 1 << 16 | socket.htons(0x0003)  # preference 1, ETH_P_ALL
_MATCH_ALL = bytes([1, 0, 1]) + bytes(29)  # struct tc_u32_sel: flags (TC_U32_TERMINAL), offshift, nkeys, ..., and one key 0/0
_TC_ACT_SHOT, _TC_ACT_PIPE, _TC_ACT_STOLEN = 2, 3, 4
_TCA_EGRESS_REDIR = 1

_TICK_NS = 64
_MAX_U32 = 0xFFFFFFFF
_LINKLAYER_ETHERNET = 1
_ETHERNET_HEADER_BYTES = 14
_RATE_TABLE_CELL_LOG = 8
_RATE_TABLE_BYTES = 1024


class _Tca(IntEnum):
    """Attributes of a message, of a filter and of an action."""

    KIND = 1
    OPTIONS = 2
    U32_SEL = 5
    U32_ACT = 7
    ACT_KIND = 1
    ACT_OPTIONS = 2
    MIRRED_PARMS = 2


class _Tbf(IntEnum):
    PARMS = 1
    RATE64 = 4
    BURST = 6


class _Police(IntEnum):
    TBF = 1
    RATE = 2
    RESULT = 5
    RATE64 = 8
    PKTRATE64 = 10
    PKTBURST64 = 11


class Bucket(NamedTuple):
    """A token bucket as the kernel keeps it.

    Args:
        rate: bytes (or packets) a second.
        burst_ticks: its depth: how long it takes to fill, in ticks of 64 ns.
    """

    rate: int
    burst_ticks: int


class Shown(NamedTuple):
    """What the kernel shows of a root qdisc or of the filter of a way in.

    Args:
        kind: the qdisc's or filter's kind.
        tbf: the bucket of a tbf.
        police_bytes: the bucket of a police that counts bytes.
        police_packets: the bucket of a police that counts packets.
        redirect: the device that mirred sends to, 0: none (any more).
    """

    kind: str
    tbf: Bucket | None = None
    police_bytes: Bucket | None = None
    police_packets: Bucket | None = None
    redirect: int = 0


def burst_ticks(rate: int, units: int) -> int:
    """Give the time in which a rate fills a bucket, as much as 32 bits hold (275 s).

    Args:
        rate: units a second.
        units: what the bucket holds.
    """
    return min(units * (10**9 // _TICK_NS) // rate, _MAX_U32)


def burst(bucket: Bucket) -> int:
    """Give the units that a bucket holds, nearly: the kernel keeps no more than the time."""
    return round(bucket.burst_ticks * bucket.rate * _TICK_NS / 10**9)


def replace_tbf(ifindex: int, rate: int, burst_bytes: int, queue_bytes: int) -> bytes:
    """Pack a tbf as the root qdisc: one that is there is changed and keeps its frames; any other qdisc goes.

    Args:
        ifindex: the device.
        rate: bytes a second.
        burst_bytes: the bucket's depth. Longer frames are dropped, or cut up first where they hold segments.
        queue_bytes: how much waits for its turn before frames are dropped.
    """
    ticks = burst_ticks(rate, burst_bytes)
    parameters = _ratespec(rate) + bytes(_RATESPEC.size) + pack("=III", queue_bytes, ticks, 0)
    options = attribute(_Tbf.PARMS, parameters) + number(_Tbf.BURST, burst_bytes) + _rate64(_Tbf.RATE64, rate)
    return _replace(RTM_NEWQDISC, _TCMSG.pack(0, ifindex, 0, _TC_H_ROOT, 0), "tbf", attribute(_Tca.OPTIONS, options))


def delete_tbf(ifindex: int) -> bytes:
    """Pack the end of a tbf at the root. Refused where there is none."""
    return request(RTM_DELQDISC, NLM_F_ACK, _TCMSG.pack(0, ifindex, 0, _TC_H_ROOT, 0) + text(_Tca.KIND, "tbf"))


def ensure_ingress(ifindex: int) -> bytes:
    """Pack an ingress qdisc; one that is there stays as it is."""
    return _replace(RTM_NEWQDISC, _TCMSG.pack(0, ifindex, _INGRESS_HANDLE, _TC_H_INGRESS, 0), "ingress", b"")


def delete_ingress(ifindex: int) -> bytes:
    """Pack the end of an ingress qdisc and its filters. Refused where there is none."""
    payload = _TCMSG.pack(0, ifindex, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + text(_Tca.KIND, "ingress")
    return request(RTM_DELQDISC, NLM_F_ACK, payload)


def replace_redirect(ifindex: int, to_ifindex: int) -> bytes:
    """Pack the one filter of a device's way in: everything goes to another device's way out.

    A filter that is there is exchanged in one step.
    """
    parameters = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, to_ifindex)
    return _replace_filter(ifindex, [_action("mirred", attribute(_Tca.MIRRED_PARMS, parameters))])


def replace_police(ifindex: int, of_bytes: tuple[int, int], of_packets: tuple[int, int]) -> bytes:
    """Pack the one filter of a device's way in: what exceeds a rate is dropped.

    One police counts bytes or packets (net/sched/act_police.c), so there may be two, one after the other. On the way in the
    kernel counts a frame without its Ethernet header, which is added here.

    Args:
        ifindex: the device.
        of_bytes: bytes of frames a second (0: any), and how many may come at once. Longer frames are dropped, segments and all.
        of_packets: frames a second (0: any), and how many may come at once.
    """
    actions, (rate, burst_bytes), (rate_pps, burst_packets) = [], of_bytes, of_packets
    if rate:
        ratespec = _ratespec(rate, overhead_bytes=_ETHERNET_HEADER_BYTES, cell_log=_RATE_TABLE_CELL_LOG)
        options = _police_parameters(burst_ticks(rate, burst_bytes), ratespec)
        # The kernel wants a table of how long a frame takes, and has not looked at it since Linux 3.8.
        options += attribute(_Police.RATE, bytes(_RATE_TABLE_BYTES))
        options += number(_Police.RESULT, _TC_ACT_PIPE) + _rate64(_Police.RATE64, rate)
        actions.append(_action("police", options))
    if rate_pps:
        options = _police_parameters(0, bytes(_RATESPEC.size))
        options += attribute(_Police.PKTRATE64, pack("=Q", rate_pps))
        options += attribute(_Police.PKTBURST64, pack("=Q", burst_ticks(rate_pps, burst_packets)))
        actions.append(_action("police", options))
    return _replace_filter(ifindex, actions)


def get_root(ifindex: int) -> bytes:
    """Pack the question for a device's root qdisc; the answer goes to `parse`.

    Up to some release the kernel sends the answer to its listeners, and to who asks only with NLM_F_ECHO. Of the qdisc of a
    device that is down it sends none at all, only the acknowledgement.
    """
    return request(RTM_GETQDISC, NLM_F_ECHO | NLM_F_ACK, _TCMSG.pack(0, ifindex, 0, _TC_H_ROOT, 0))


def get_filter(ifindex: int) -> bytes:
    """Pack the question for the filter of a device's way in; the answer goes to `parse`."""
    message = _TCMSG.pack(0, ifindex, _FILTER_HANDLE, _INGRESS_HANDLE, _FILTER_INFO) + text(_Tca.KIND, "u32")
    return request(RTM_GETTFILTER, NLM_F_ECHO | NLM_F_ACK, message)


def parse(answer: bytes) -> Shown:
    """Take an answer to `get_root` or `get_filter` apart."""
    attributes = parse_attributes(answer[_HEADER_BYTES:])
    kind = attributes.get(_Tca.KIND, b"").rstrip(b"\0").decode(errors="replace")
    options = parse_attributes(attributes.get(_Tca.OPTIONS, b""))
    shown = Shown(kind)
    if kind == "tbf":
        return shown._replace(tbf=_parse_tbf(options))
    for action in parse_attributes(options.get(_Tca.U32_ACT, b"") if kind == "u32" else b"").values():
        parts = parse_attributes(action)
        settings = parse_attributes(parts.get(_Tca.ACT_OPTIONS, b""))
        name = parts.get(_Tca.ACT_KIND, b"").rstrip(b"\0")
        if name == b"police":
            shown = _with_police(shown, settings)
        elif name == b"mirred" and len(settings.get(_Tca.MIRRED_PARMS, b"")) >= _MIRRED.size:
            shown = shown._replace(redirect=_MIRRED.unpack_from(settings[_Tca.MIRRED_PARMS])[-1])
    return shown


def changed_devices(packet: bytes) -> set[int]:
    """Give the indexes of the devices that a packet of multicast messages tells a change of."""
    found, offset = set(), 0
    while offset + _HEADER_BYTES <= len(packet):
        length, kind = unpack_from("=IH", packet, offset)
        if length < _HEADER_BYTES:
            break
        if kind in EVENTS:
            found.add(_TCMSG.unpack_from(packet, offset + 16)[1])
        offset += (length + 3) & ~3
    return found


def _replace(kind: int, header: bytes, name: str, options: bytes) -> bytes:
    return request(kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, header + text(_Tca.KIND, name) + options)


def _replace_filter(ifindex: int, actions: list[bytes]) -> bytes:
    numbered = b"".join(attribute(place, action) for place, action in enumerate(actions, 1))
    options = attribute(_Tca.U32_ACT, numbered) + attribute(_Tca.U32_SEL, _MATCH_ALL)
    header = _TCMSG.pack(0, ifindex, _FILTER_HANDLE, _INGRESS_HANDLE, _FILTER_INFO)
    return _replace(RTM_NEWTFILTER, header, "u32", attribute(_Tca.OPTIONS, options))


def _action(kind: str, options: bytes) -> bytes:
    return text(_Tca.ACT_KIND, kind) + nested(_Tca.ACT_OPTIONS, options)


def _ratespec(rate: int, *, overhead_bytes: int = 0, cell_log: int = 0) -> bytes:
    """Pack a rate. With the link layer said, tbf needs no table of how long frames take."""
    return _RATESPEC.pack(cell_log, _LINKLAYER_ETHERNET, overhead_bytes, 0, 0, min(rate, _MAX_U32))


def _rate64(kind: int, rate: int) -> bytes:
    return attribute(kind, pack("=Q", rate)) if rate > _MAX_U32 else b""


def _police_parameters(ticks: int, ratespec: bytes) -> bytes:
    """Pack struct tc_police: what exceeds is dropped, and no frame is too long by itself."""
    return attribute(_Police.TBF, _POLICE.pack(0, _TC_ACT_SHOT, 0, ticks, _MAX_U32, ratespec, bytes(_RATESPEC.size), 0, 0, 0))


def _parse_tbf(options: dict[int, bytes]) -> Bucket | None:
    parameters = options.get(_Tbf.PARMS, b"")
    if len(parameters) < 2 * _RATESPEC.size + 12:
        return None
    return Bucket(_rate(parameters, options.get(_Tbf.RATE64)), unpack_from("=I", parameters, 2 * _RATESPEC.size + 4)[0])


def _with_police(shown: Shown, options: dict[int, bytes]) -> Shown:
    parameters = options.get(_Police.TBF, b"")
    if len(parameters) < _POLICE.size:
        return shown
    if packets := options.get(_Police.PKTRATE64):
        ticks = unpack_from("=Q", options.get(_Police.PKTBURST64, bytes(8)))[0]
        return shown._replace(police_packets=Bucket(unpack_from("=Q", packets)[0], ticks))
    _, _, _, ticks, _, ratespec, *_ = _POLICE.unpack_from(parameters)
    rate = _rate(ratespec, options.get(_Police.RATE64))
    return shown._replace(police_bytes=Bucket(rate, ticks)) if rate else shown


def _rate(ratespec: bytes, rate64: bytes | None) -> int:
    rate: int = unpack_from("=Q", rate64)[0] if rate64 else _RATESPEC.unpack_from(ratespec)[-1]
    return rate
