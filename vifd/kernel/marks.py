"""Whose a device is: found by its names, believed by its kind and mark, which only root can change."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TypeGuard

from vifd.kernel import macvtap, names, netlink
from vifd.kernel.netlink import Ifla, Link, Reply, RtnlSocket
from vifd.kernel.sriov.inventory import is_representor_name
from vifd.model import Kind


def look_up(rtnl: RtnlSocket, endpoint_ids: Sequence[str]) -> list[Reply]:
    """Find endpoints' devices by the alternative name, which stays when somebody renames them, or else by their name."""
    replies = rtnl.exchange([netlink.get_link(altname=names.altname(endpoint_id)) for endpoint_id in endpoint_ids])
    for kind in (Kind.TAP, Kind.MACVTAP):
        missing = [index for index, reply in enumerate(replies) if reply.errno == errno.ENODEV]
        ifnames = [names.device_name(kind, endpoint_ids[index]) for index in missing]
        for index, reply in zip(missing, rtnl.exchange([netlink.get_link(ifname=i) for i in ifnames]), strict=True):
            replies[index] = reply
    return replies


def is_device_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is the tap or macvtap that vifd made for an endpoint."""
    return is_tap_of(link, endpoint_id) or macvtap.is_of(link, endpoint_id)


def is_tap_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is the tap that vifd made for an endpoint."""
    return link is not None and link.kind == "tun" and link.text(Ifla.IFALIAS) == names.mark(endpoint_id)


def is_representor_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is the representor of a VF that vifd has marked for an endpoint: it isn't vifd's to delete."""
    if link is None or not is_representor_name(link.text(Ifla.PHYS_PORT_NAME)):
        return False
    return link.text(Ifla.IFALIAS) == names.mark(endpoint_id)


def is_port_of(link: Link | None, endpoint_id: str) -> TypeGuard[Link]:
    """Tell whether a device is what an endpoint is attached through, whoever made it."""
    return is_device_of(link, endpoint_id) or is_representor_of(link, endpoint_id)
