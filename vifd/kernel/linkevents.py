"""Reads what the kernel tells of devices to whoever listens: of the devices themselves, and of ports, which their bridges tell.

IFLA_IFNAME is the first attribute of every link message (net/core/rtnetlink.c, rtnl_fill_ifinfo; net/bridge/br_netlink.c,
br_fill_ifinfo), so the others, a kilobyte and more, are looked at only where they matter.
"""

from __future__ import annotations

import socket
import sys
from struct import Struct
from typing import NamedTuple

from vifd.kernel.netlink import RTM_DELLINK, RTM_NEWLINK, BridgePort, Ifla, parse_attributes

# struct nlmsghdr: len, type; struct ifinfomsg: family, index, flags; struct nlattr of the first attribute: len, type.
_MESSAGE = Struct("=IH10xB3xiI4xHH")
_HEADER_BYTES, _ATTRIBUTES = 16, 32


class PortState(NamedTuple):
    """What a bridge tells of a port; see `netlink.set_bridge_port`. A kernel without IGMP snooping tells of no routers."""

    isolated: bool
    group_forward_mask: int
    multicast_router: int | None = None


class LinkEvent(NamedTuple):
    """A change of a link: enough of it to know whose it is and whether somebody has it open.

    Args:
        port: what its bridge tells of the port that it is there, for `parse_port`; empty: it is the device that is told of.
    """

    ifindex: int
    ifname: bytes
    flags: int
    deleted: bool
    port: bytes = b""


def parse_events(data: bytes) -> list[LinkEvent]:
    """Take a packet of multicast link messages apart.

    That a port left its bridge is left out: the device's own messages say so as well.
    """
    events, offset = list[LinkEvent](), 0
    while offset + _MESSAGE.size <= len(data):
        length, kind, family, ifindex, flags, size, first = _MESSAGE.unpack_from(data, offset)
        if length < _HEADER_BYTES:
            break
        if first == Ifla.IFNAME and kind in (RTM_NEWLINK, RTM_DELLINK):
            start, deleted = offset + _ATTRIBUTES, kind == RTM_DELLINK
            name = data[start + 4 : start + size].rstrip(b"\0")
            if family == socket.AF_UNSPEC:
                events.append(LinkEvent(ifindex, name, flags, deleted))
            elif family == socket.AF_BRIDGE and not deleted:
                events.append(LinkEvent(ifindex, name, flags, deleted, data[start : offset + length]))
        offset += (length + 3) & ~3
    return events


def parse_port(attributes: bytes) -> PortState:
    """Read what a bridge tells of a port."""
    port = parse_attributes(parse_attributes(attributes).get(Ifla.PROTINFO, b""))
    mask = port.get(BridgePort.GROUP_FWD_MASK, b"")
    router = port.get(BridgePort.MULTICAST_ROUTER, b"")
    isolated, forwarded = any(port.get(BridgePort.ISOLATED, b"")), int.from_bytes(mask[:2], sys.byteorder)
    return PortState(isolated, forwarded, router[0] if router else None)
