"""The ifb of an endpoint: what its device takes in goes through it, so that a tbf at its way out limits that.

Its MAC says from the first moment whose it is, its ifalias from the second, as with a bridge. An ifb with neither is left alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pyroute2 import IPRoute

from vifd.kernel import ipv6, names, netlink, tap
from vifd.kernel.netlink import Ifla, Link, Reply, RtnlSocket

_LEAST_MTU_BYTES = 1280  # with less it has no IPv6 to shut (linux/ipv6.h, IPV6_MIN_MTU)
_TX_QUEUE_LENGTH = 256  # frames on their way back; where there are more, the tbf waits, and nothing is lost


class Ifb(NamedTuple):
    """An endpoint's ifb, or why there is none.

    Args:
        ifindex: the ifb's, 0: there is none.
        errno: the kernel's.
        message: what the kernel or vifd says.
    """

    ifindex: int
    errno: int = 0
    message: str = ""


def ensure(rtnl: RtnlSocket, mtus_bytes: Mapping[str, int]) -> dict[str, Ifb]:
    """Make ifbs, all in one send, down and without a limit. One that is there is used only if it is its endpoint's.

    Args:
        rtnl: the socket to ask through.
        mtus_bytes: endpoint id to the MTU of its device.
    """
    replies = rtnl.exchange([_create(endpoint_id, mtu_bytes) for endpoint_id, mtu_bytes in mtus_bytes.items()])
    refused = {endpoint_id: reply for endpoint_id, reply in zip(mtus_bytes, replies, strict=True) if reply.errno}
    existing = find(rtnl, [endpoint_id for endpoint_id, reply in refused.items() if reply.errno == errno.EEXIST])
    ifbs = {}
    for endpoint_id in mtus_bytes:
        if endpoint_id in existing:
            ifbs[endpoint_id] = Ifb(existing[endpoint_id].ifindex)
        elif endpoint_id in refused:
            ifbs[endpoint_id] = _refusal(endpoint_id, refused[endpoint_id])
        else:
            ifbs[endpoint_id] = _made(rtnl, endpoint_id)
    return ifbs


def find(rtnl: RtnlSocket, endpoint_ids: Iterable[str]) -> dict[str, Link]:
    """Find the ifbs of endpoints, by name, kind and mark; endpoints without one are left out."""
    wanted = list(endpoint_ids)
    replies = rtnl.exchange([netlink.get_link(ifname=names.ifb_name(endpoint_id)) for endpoint_id in wanted])
    found = zip(wanted, replies, strict=True)
    return {endpoint_id: reply.link for endpoint_id, reply in found if reply.link and is_of(reply.link, endpoint_id)}


def find_marked() -> dict[str, int]:
    """Tell every ifb of this namespace that carries an endpoint's mark: endpoint id to index.

    One whose helper died between making and marking it carries none; `find` knows it, for ids that are known otherwise.
    It lists devices: for the start alone.
    """
    with IPRoute() as ipr:
        aliases = {message["index"]: message.get_attr("IFLA_IFALIAS") or "" for message in ipr.link("dump", kind="ifb")}
    marked = {names.marked_ifb_endpoint_id(alias): ifindex for ifindex, alias in aliases.items()}
    marked.pop("", None)
    return marked


def is_of(link: Link, endpoint_id: str) -> bool:
    """Tell whether a device is the ifb that vifd made for an endpoint."""
    alias, mac = link.text(Ifla.IFALIAS), link.attributes.get(Ifla.ADDRESS, b"").hex(":")
    mark = names.ifb_mark(endpoint_id)
    return link.kind == "ifb" and (alias == mark or (not alias and mac == names.derived_mac(mark)))


def finish(ifindex: int, endpoint_id: str) -> list[bytes]:
    """Pack what marks an ifb and sets it up: by a message of its own, or the kernel gives it an IPv6 address first."""
    attributes = netlink.text(Ifla.IFALIAS, names.ifb_mark(endpoint_id))
    if ipv6.is_possible(_LEAST_MTU_BYTES):
        attributes += netlink.NO_IPV6_ADDRESS
    return [netlink.set_link(ifindex, attributes), netlink.set_link(ifindex, b"", up=True)]


def _create(endpoint_id: str, mtu_bytes: int) -> bytes:
    mac = bytes.fromhex(names.derived_mac(names.ifb_mark(endpoint_id)).replace(":", ""))
    return netlink.create_link(
        "ifb",
        netlink.text(Ifla.IFNAME, names.ifb_name(endpoint_id))
        + netlink.attribute(Ifla.ADDRESS, mac)
        + netlink.number(Ifla.MTU, max(mtu_bytes, _LEAST_MTU_BYTES))
        + netlink.number(Ifla.TXQLEN, _TX_QUEUE_LENGTH),
    )


def _made(rtnl: RtnlSocket, endpoint_id: str) -> Ifb:
    try:
        return Ifb(tap.device_number(rtnl.fileno(), tap.SIOCGIFINDEX, names.ifb_name(endpoint_id)))
    except OSError as error:
        return Ifb(0, error.errno or 0, f"{names.ifb_name(endpoint_id)} went away as it was made")


def _refusal(endpoint_id: str, reply: Reply) -> Ifb:
    exists = f"a device of the name {names.ifb_name(endpoint_id)} is there already that isn't {endpoint_id}'s"
    return Ifb(0, reply.errno, exists if reply.errno == errno.EEXIST else reply.message)
