"""802.1Q devices (net/8021q): one for each VLAN of an uplink, shared by all that stands on it; runs in the privileged helper.

The kernel has no two for one VLAN of a device, so they are named and marked by both, whatever network wanted one first. One is
made without a mark, and marked by a second message; in between its name says whose it is.
"""

from __future__ import annotations

import errno
import threading
from struct import pack, unpack_from
from typing import Any, TypeGuard

from pyroute2 import IPRoute

from vifd.kernel import ipv6, macvtap, names, netlink, ops
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.netlink import IFF_UP, Ifla, Link, Reply, RtnlSocket

KIND = "vlan"
_IFLA_VLAN_ID = 1  # linux/if_link.h

#: Held from when a VLAN's device is found until something stands on it, and while those are deleted that nothing stands on.
lock = threading.Lock()


def ensure(rtnl: RtnlSocket, parent: Uplink, vid: int) -> Link | Failure:
    """Give the device of a VLAN, marked, up and with the uplink's MTU, making it if it is missing. Hold `lock`.

    Args:
        rtnl: the socket to ask through.
        parent: the uplink; it is up.
        vid: the VLAN, 1 to 4094.
    """
    ifname = names.vlan_name(parent.name, vid)
    link = rtnl.ask(netlink.get_link(ifname=ifname)).link
    if link is None:
        reply = rtnl.ask(create(ifname, parent, vid))
        if reply.errno:
            return explain(parent, vid, reply)
        link = rtnl.ask(netlink.get_link(ifname=ifname)).link
    if not is_of(link, parent, vid):
        return Failure(ops.NOT_READY, 0, f"{ifname} is there and isn't VLAN {vid} of uplink {parent.name}; delete it")
    if link.text(Ifla.IFALIAS) and link.flags & IFF_UP and link.number(Ifla.MTU) >= parent.mtu_bytes:
        return link
    return _finish(rtnl, link, parent, vid)


def _finish(rtnl: RtnlSocket, link: Link, parent: Uplink, vid: int) -> Link | Failure:
    """Mark a device and set it up; with the MTU that its uplink has by now."""
    try:
        ipv6.set_all(link.text(Ifla.IFNAME), link.number(Ifla.MTU), ipv6.NO_AUTOCONFIGURATION)
    except ipv6.SettingError as error:
        return Failure(ops.NOT_READY, error.errno, str(error))
    marked = netlink.text(Ifla.IFALIAS, names.vlan_mark(parent.name, vid))
    marked += netlink.NO_IPV6_ADDRESS if ipv6.is_possible(link.number(Ifla.MTU)) else b""
    for reply in rtnl.exchange([netlink.set_link(link.ifindex, marked), netlink.set_link(link.ifindex, b"", up=True)]):
        if reply.errno:
            return macvtap.explain_up(parent, parent.mac, reply)
    if link.number(Ifla.MTU) < parent.mtu_bytes:
        reply = rtnl.ask(netlink.set_link(link.ifindex, netlink.number(Ifla.MTU, parent.mtu_bytes)))
        # ERANGE: the uplink keeps room for the tag (net/core/dev.c, netif_reduces_vlan_mtu); who needs the bytes is refused then.
        if reply.errno not in (0, errno.ERANGE):
            return Failure(ops.KERNEL, reply.errno, f"the MTU of VLAN {vid} of uplink {parent.name}: {reply.message}")
    found = rtnl.ask(netlink.get_link(ifindex=link.ifindex))
    return found.link or Failure(ops.NOT_READY, found.errno, f"VLAN {vid} of uplink {parent.name} went away as it was made")


def create(ifname: str, parent: Uplink, vid: int) -> bytes:
    """Pack the message that makes an 802.1Q device (linux/if_link.h, IFLA_VLAN_ID), down and without a mark."""
    attributes = netlink.text(Ifla.IFNAME, ifname) + netlink.number(Ifla.LINK, parent.ifindex)
    return netlink.create_link(KIND, attributes, netlink.attribute(_IFLA_VLAN_ID, pack("=H", vid)))


def explain(parent: Uplink, vid: int, reply: Reply) -> Failure:
    """Say why the kernel refused to make an 802.1Q device."""
    match reply.errno:
        case errno.EOPNOTSUPP if "not supported on device" in reply.message:  # net/8021q/vlan.c, vlan_check_real_dev
            return Failure(
                ops.NOT_READY, reply.errno, f"uplink {parent.name} carries no VLANs; use a network card, a bond or a veth"
            )
        case errno.EOPNOTSUPP:
            words = "this kernel has no 802.1Q: a VLAN of an uplink takes CONFIG_VLAN_8021Q, as module 8021q or built in"
            return Failure(ops.NOT_READY, reply.errno, words)
        case errno.EEXIST:
            words = f"VLAN {vid} of uplink {parent.name} has a device of somebody else's; give that to a network as its uplink"
            return Failure(ops.NOT_READY, reply.errno, words)
        case _:
            return Failure(ops.KERNEL, reply.errno, f"VLAN {vid} on uplink {parent.name}: {reply.message}")


def is_of(link: Link | None, parent: Uplink, vid: int) -> TypeGuard[Link]:
    """Tell whether a device is vifd's for a VLAN of an uplink, or one that a helper began to make."""
    if link is None or link.kind != KIND or link.number(Ifla.LINK) != parent.ifindex:
        return False
    is_marked = link.text(Ifla.IFALIAS) in ("", names.vlan_mark(parent.name, vid))
    return is_marked and unpack_from("=H", link.data.get(_IFLA_VLAN_ID, bytes(2)))[0] == vid


def discard_unused(rtnl: RtnlSocket) -> None:
    """Delete vifd's 802.1Q devices that are on no bridge, and on which no macvtap stands (any more). It lists all of them."""
    with lock:
        sweep(rtnl)


def sweep(rtnl: RtnlSocket) -> None:
    """Do what `discard_unused` says, for who holds `lock`."""
    with IPRoute() as ipr:
        found = [message for message in ipr.link("dump", kind=KIND) if is_own(message) and not message.get_attr("IFLA_MASTER")]
    idle = [message["index"] for message in found if not macvtap.standing_on(message["index"])]
    rtnl.exchange([netlink.delete_link(ifindex) for ifindex in idle])


def is_own(message: Any) -> bool:
    """Tell whether a link message of pyroute2's is about an 802.1Q device of vifd's, or one that a helper began to make."""
    if message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != KIND:
        return False  # a kernel without 802.1Q lists all devices
    alias = message.get_attr("IFLA_IFALIAS") or ""
    return names.is_vlan_mark(alias) or (not alias and names.is_vlan_name(message.get_attr("IFLA_IFNAME")))
