"""Link messages as the kernel sends them, written by pyroute2."""

from __future__ import annotations

import struct
from typing import Any

from pyroute2.netlink.rtnl import RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vifd.kernel import netlink
from vifd.kernel.linkevents import PortState
from vifd.kernel.netlink import BridgePort, Ifla


def link(*attributes: Any, kind: int = RTM_NEWLINK, index: int = 7, flags: int = 0x10043, family: int = 0) -> bytes:
    """Give a message about a device "vdtx"."""
    message = ifinfmsg()
    message["index"], message["flags"], message["family"] = index, flags, family
    message["attrs"] = [("IFLA_IFNAME", "vdtx"), *attributes]
    message["header"]["type"] = kind
    message.encode()
    return bytes(message.data)


def port_attributes(state: PortState) -> bytes:
    """Give what a bridge tells of a port."""
    settings = netlink.attribute(BridgePort.ISOLATED, bytes([state.isolated]))
    settings += netlink.attribute(BridgePort.GROUP_FWD_MASK, struct.pack("=H", state.group_forward_mask))
    if state.multicast_router is not None:
        settings += netlink.attribute(BridgePort.MULTICAST_ROUTER, bytes([state.multicast_router]))
    return netlink.text(Ifla.IFNAME, "vdtx") + netlink.number(Ifla.MTU, 1500) + netlink.nested(Ifla.PROTINFO, settings)
