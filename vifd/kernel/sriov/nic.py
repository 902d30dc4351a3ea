"""What rtnetlink says of PFs, VFs and their netdevs, and is told of them."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple, Protocol

from pyroute2 import IPRoute

from vifd.kernel import ipv6, netlink
from vifd.kernel.netlink import IFF_UP, Ifla, Reply, RtnlSocket
from vifd.kernel.sriov.settings import Setting, VfSettings, read_vf, set_vf


class Netdev(NamedTuple):
    """A netdev as it was found.

    Args:
        master: the index of what it belongs to; 0: nothing.
        alias: its mark, or somebody else's.
    """

    ifindex: int
    ifname: str
    mtu_bytes: int
    mac: str
    up: bool
    master: int = 0
    alias: str = ""


class Nic(Protocol):
    """The netdevs of this namespace, and what PFs are told by theirs. One thread at a time."""

    def find_netdev(self, ifname: str) -> Netdev | None:
        """Find a netdev; None: there is none of that name."""

    def has_addresses(self, ifindex: int) -> bool:
        """Tell whether the host has an address on a netdev."""

    def read_vf(self, pf: Netdev, vf_index: int) -> VfSettings:
        """Give what a PF has been told of a VF.

        Raises:
            OSError: it doesn't say.
        """

    def set_vf(self, pf: Netdev, vf_index: int, setting: Setting, settings: VfSettings) -> Reply:
        """Tell a PF one setting of a VF."""

    def set_up(self, netdev: Netdev) -> Reply:
        """Set a netdev up."""

    def name(self, netdev: Netdev, ifname: str, alias: str) -> Reply:
        """Give a netdev its name and mark; it is down then."""

    def configure(self, netdev: Netdev, mac: str, mtu_bytes: int, *, up: bool, silent: bool = False) -> Reply:
        """Give a netdev its MAC and MTU, and set it up, or down; the host has no IPv6 address by it; if silent, no IPv6."""


class RtnlNic:
    """See Nic.

    Args:
        rtnl: the socket to ask through.
    """

    def __init__(self, rtnl: RtnlSocket) -> None:
        self._rtnl = rtnl

    def find_netdev(self, ifname: str) -> Netdev | None:
        """See Nic."""
        link = self._rtnl.ask(netlink.get_link(ifname=ifname)).link if ifname else None
        if link is None:
            return None
        return Netdev(
            ifindex=link.ifindex,
            ifname=link.text(Ifla.IFNAME),
            mtu_bytes=link.number(Ifla.MTU),
            mac=link.attributes.get(Ifla.ADDRESS, b"").hex(":"),
            up=bool(link.flags & IFF_UP),
            master=link.number(Ifla.MASTER),
            alias=link.text(Ifla.IFALIAS),
        )

    def has_addresses(self, ifindex: int) -> bool:
        """See Nic."""
        with IPRoute() as ipr:
            return any(message["index"] == ifindex for message in ipr.get_addr(index=ifindex))

    def read_vf(self, pf: Netdev, vf_index: int) -> VfSettings:
        """See Nic."""
        reply = self._rtnl.ask(netlink.get_link(ifindex=pf.ifindex, vfs=True))
        found = read_vf(reply.link, vf_index) if reply.link is not None else None
        if found is None:
            code = reply.errno or errno.ENODEV
            raise OSError(code, f"PF {pf.ifname} says nothing of its VF {vf_index}: {os.strerror(code)}")
        return found

    def set_vf(self, pf: Netdev, vf_index: int, setting: Setting, settings: VfSettings) -> Reply:
        """See Nic."""
        return self._rtnl.ask(set_vf(pf.ifindex, vf_index, setting, settings))

    def set_up(self, netdev: Netdev) -> Reply:
        """See Nic."""
        return self._rtnl.ask(netlink.set_link(netdev.ifindex, b"", up=True))

    def name(self, netdev: Netdev, ifname: str, alias: str) -> Reply:
        """See Nic."""
        attributes = netlink.text(Ifla.IFNAME, ifname) + netlink.text(Ifla.IFALIAS, alias)
        down = self._rtnl.ask(netlink.set_link(netdev.ifindex, b"", up=False))
        return down if down.errno else self._rtnl.ask(netlink.set_link(netdev.ifindex, attributes))

    def configure(self, netdev: Netdev, mac: str, mtu_bytes: int, *, up: bool, silent: bool = False) -> Reply:
        """See Nic."""
        attributes = netlink.number(Ifla.MTU, mtu_bytes)
        if mac != netdev.mac:
            attributes += netlink.attribute(Ifla.ADDRESS, bytes.fromhex(mac.replace(":", "")))
        attributes += netlink.NO_IPV6_ADDRESS if ipv6.is_possible(mtu_bytes) else b""
        reply = self._rtnl.ask(netlink.set_link(netdev.ifindex, attributes))
        if silent and not reply.errno:
            try:
                ipv6.set_all(netdev.ifname, mtu_bytes, ipv6.SILENCE)
            except ipv6.SettingError as error:
                return Reply(error.errno, str(error))
        return reply if reply.errno else self._rtnl.ask(netlink.set_link(netdev.ifindex, b"", up=up))
