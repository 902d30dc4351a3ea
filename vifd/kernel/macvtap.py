"""Macvtaps by rtnetlink (drivers/net/macvlan.c, drivers/net/macvtap.c): what they are made of, and why the kernel refuses one.

A macvtap is made with nothing but its own MAC, and is marked by a second message. In between its name says whose it is: no other
program gives a device such a name (`is_half_made`).
"""

from __future__ import annotations

import errno
from struct import unpack_from
from typing import NamedTuple, TypeGuard

from pyroute2 import IPRoute

from vifd.kernel import names, netlink, ops
from vifd.kernel.netlink import IFF_UP, Ifla, Link, Reply, RtnlSocket
from vifd.kernel.tap import SIOCGIFINDEX, SIOCGIFMTU, device_number
from vifd.model import Kind, MacvtapMode

KIND = "macvtap"
_IFLA_MACVLAN_MODE = 1  # linux/if_link.h
_MODES = {MacvtapMode.PRIVATE: 1, MacvtapMode.VEPA: 2, MacvtapMode.BRIDGE: 4, MacvtapMode.PASSTHRU: 8}
_IFF_LOOPBACK = 0x8
#: Devices that end in a program or in a VM, or stand on another device themselves: nothing of theirs is an uplink.
_NO_UPLINKS = {
    "tun": "a tap or tun",
    "macvtap": "a macvtap",
    "macvlan": "a macvlan",
    "ipvlan": "an ipvlan",
    "ipvtap": "an ipvtap",
}


class UplinkError(Exception):
    """An uplink can't be used: what the administrator has to know.

    Args:
        message: a sentence.
        number: the kernel's errno, 0 where vifd itself refused.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.errno = number


class Failure(NamedTuple):
    """Why something couldn't be made: the cause (of an ops.Refusal), the kernel's errno or 0, and a sentence."""

    cause: str
    errno: int
    message: str


class Uplink(NamedTuple):
    """An uplink as it was found."""

    name: str
    ifindex: int
    mtu_bytes: int
    mac: str
    up: bool


def get_uplink(rtnl: RtnlSocket, name: str) -> Uplink:
    """Look an uplink up.

    Args:
        rtnl: the socket to ask through.
        name: the device's name.

    Raises:
        UplinkError: it isn't there, or no macvtap can stand on it.
    """
    reply = rtnl.ask(netlink.get_link(ifname=name))
    if reply.link is None:
        missing = reply.errno in (0, errno.ENODEV)
        raise UplinkError(
            f"uplink {name} isn't there" if missing else f"can't look uplink {name} up: {reply.message}", reply.errno
        )
    link = reply.link
    if link.flags & _IFF_LOOPBACK or link.kind in _NO_UPLINKS:
        what = _NO_UPLINKS.get(link.kind, "the loopback device")
        raise UplinkError(f"uplink {name} is {what}; name a network card, a bond, a VLAN or a veth")
    if link.number(Ifla.MASTER):
        raise UplinkError(_enslaved(name), errno.EBUSY)
    mac = link.attributes.get(Ifla.ADDRESS, b"").hex(":")
    return Uplink(name, link.ifindex, link.number(Ifla.MTU), mac, bool(link.flags & IFF_UP))


def is_unchanged(rtnl: RtnlSocket, uplink: Uplink) -> bool:
    """Tell by two ioctls whether an uplink is still there with its MTU (netdevice(7))."""
    try:
        index = device_number(rtnl.fileno(), SIOCGIFINDEX, uplink.name)
        return index == uplink.ifindex and device_number(rtnl.fileno(), SIOCGIFMTU, uplink.name) == uplink.mtu_bytes
    except OSError:
        return False


def create(ifname: str, uplink: Uplink, *, mode: MacvtapMode, mac: str) -> bytes:
    """Pack the message that makes a macvtap, down and without a mark.

    Args:
        ifname: its name; it must not exist.
        uplink: what it stands on.
        mode: how it reaches its siblings.
        mac: its MAC, the VM's. In mode passthru it begins with the uplink's all the same; set once more, the uplink takes it
            too, until the macvtap is deleted (drivers/net/macvlan.c, macvlan_set_mac_address and macvlan_port_destroy).
    """
    attributes = (
        netlink.text(Ifla.IFNAME, ifname)
        + netlink.number(Ifla.LINK, uplink.ifindex)
        + netlink.attribute(Ifla.ADDRESS, _packed(mac))
    )
    return netlink.create_link(KIND, attributes, netlink.number(_IFLA_MACVLAN_MODE, _MODES[mode]))


def is_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is the macvtap that vifd made for an endpoint, or has begun to make."""
    if link is None or link.kind != KIND:
        return False
    return link.text(Ifla.IFALIAS) == names.mark(endpoint_id) or is_half_made(link, endpoint_id)


def is_half_made(link: Link, endpoint_id: str) -> bool:
    """Tell whether a device is a macvtap that a helper made for an endpoint and died before it marked it."""
    named = link.text(Ifla.IFNAME) == names.device_name(Kind.MACVTAP, endpoint_id)
    return link.kind == KIND and named and not link.text(Ifla.IFALIAS) and not link.flags & IFF_UP


def mode_of(link: Link) -> str:
    """Give a macvtap's mode; empty for what is none, or is in a mode that vifd doesn't make."""
    number = unpack_from("=I", link.data.get(_IFLA_MACVLAN_MODE, bytes(4)))[0] if link.kind == KIND else 0
    return next((mode.value for mode, known in _MODES.items() if known == number), "")


def explain_create(uplink: Uplink, mode: MacvtapMode, reply: Reply) -> Failure:
    """Say why the kernel refused to make a macvtap, for its EINVAL and EBUSY have many reasons."""
    match reply.errno:
        case errno.ENODEV:
            return Failure(ops.NOT_READY, reply.errno, f"uplink {uplink.name} isn't there")
        case errno.EOPNOTSUPP:
            return Failure(
                ops.NOT_READY, reply.errno, "this kernel has no macvtap: it takes CONFIG_MACVTAP, as module macvtap or built in"
            )
        case errno.EEXIST:
            return Failure(ops.KERNEL, reply.errno, "a device of that name is there already that isn't this endpoint's")
        case errno.EBUSY:
            return Failure(ops.NOT_READY, reply.errno, _enslaved(uplink.name))
        case errno.EINVAL if others := standing_on(uplink.ifindex):
            return Failure(ops.NOT_READY, reply.errno, _sharing(uplink.name, mode, others))
        case _:
            return Failure(ops.KERNEL, reply.errno, reply.message)


def explain_up(uplink: Uplink, mac: str, reply: Reply) -> Failure:
    """Say why the kernel refused to set a macvtap's MAC, or to set it up."""
    match reply.errno:
        case errno.EADDRINUSE | errno.EBUSY:
            whose = "that of the uplink itself" if mac == uplink.mac else "another macvtap's or macvlan's"
            return Failure(ops.ADDRESS_TAKEN, reply.errno, f"MAC {mac} on uplink {uplink.name} is {whose}; ask for another")
        case errno.ENETDOWN:
            return Failure(ops.NOT_READY, reply.errno, f"uplink {uplink.name} is down; set it up")
        case _:
            return Failure(ops.KERNEL, reply.errno, reply.message)


def standing_on(ifindex: int) -> list[str]:
    """Name the macvtaps and macvlans that stand on a device. It lists all of them."""
    with IPRoute() as ipr:
        found = [m for kind in ("macvtap", "macvlan") for m in ipr.link("dump", kind=kind)]
    return sorted(str(m.get_attr("IFLA_IFNAME")) for m in found if m.get_attr("IFLA_LINK") == ifindex)


def _sharing(name: str, mode: MacvtapMode, others: list[str]) -> str:
    who = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    if mode is MacvtapMode.PASSTHRU:
        return (
            f"mode passthru takes uplink {name} for itself, and {who} stands on it; ask for another mode, or use another uplink"
        )
    return f"uplink {name} is taken by {who} for itself (mode passthru); use another uplink"


def _enslaved(name: str) -> str:
    return f"uplink {name} belongs to a bridge, a bond or another such device; take it out of that first"


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
