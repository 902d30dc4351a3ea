"""What rtnetlink says of PFs, VFs and their netdevs, and is told of them."""

from __future__ import annotations

import errno
import os
import socket
from struct import Struct
from typing import NamedTuple, Protocol

from vifd.kernel import ifb, ipv6, limits, names, netlink
from vifd.kernel.netlink import IFF_UP, Ifla, Reply, RtnlSocket
from vifd.kernel.sriov.marks import RepresentorMark
from vifd.kernel.sriov.settings import Setting, VfSettings, read_vf, set_vf

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_REQUEST_LIST = 0x301  # NLM_F_REQUEST, NLM_F_DUMP
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12  # linux/netlink.h: a list has only what the request's header names
_ADDRESS_REQUEST = Struct("=IHHIIBBBBI")  # struct nlmsghdr, struct ifaddrmsg: family, prefix, flags, scope, index
_ANSWER = Struct("=IHHIIi")  # struct nlmsghdr; and of an NLMSG_ERROR or NLMSG_DONE, the errno


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
        """Tell whether the host has an address on a netdev.

        Raises:
            OSError: nobody can tell: ENODEV where it is gone.
        """

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

    def describe(self, netdev: Netdev) -> RepresentorMark:
        """Give what `restore` brings a representor back to."""

    def mark(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """Say of a representor whose it is."""

    def detach(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """Set a representor down, take it off its bridge, and its limits off it."""

    def restore(self, netdev: Netdev, endpoint_id: str, before: RepresentorMark) -> Reply:
        """Bring a representor that is down back to what it was, its mark last."""


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
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
            asked.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
            asked.send(_ADDRESS_REQUEST.pack(_ADDRESS_REQUEST.size, _RTM_GETADDR, _REQUEST_LIST, 1, 0, 0, 0, 0, 0, ifindex))
            _, kind, *_, code = _ANSWER.unpack_from(asked.recv(1 << 16))
        if kind == _RTM_NEWADDR:
            return True
        if code:
            raise OSError(-code, os.strerror(-code))
        return False

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

    def describe(self, netdev: Netdev) -> RepresentorMark:
        """See Nic."""
        return RepresentorMark(netdev.ifname, netdev.alias, netdev.mtu_bytes, ipv6.address_mode(netdev.ifname))

    def mark(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """See Nic."""
        # First what `restore` takes off last: who dies in between leaves nothing that it doesn't see.
        marked = self._rtnl.ask(netlink.set_link(netdev.ifindex, netlink.text(Ifla.IFALIAS, names.mark(endpoint_id))))
        if marked.errno:
            return marked
        named = self._rtnl.ask(netlink.add_altname(netdev.ifindex, names.altname(endpoint_id)))
        return marked if named.errno == errno.EEXIST else named

    def detach(self, netdev: Netdev, endpoint_id: str) -> Reply:
        """See Nic."""
        # Down first: without a bridge, the host would take what the VM sends for its own.
        alone = netlink.set_link(netdev.ifindex, netlink.number(Ifla.MASTER, 0))
        steps = [netlink.set_link(netdev.ifindex, b"", up=False), alone]
        replies = self._rtnl.exchange([*steps, *limits.removal(netdev.ifindex, ingress=True, egress=True)])
        spare = ifb.find(self._rtnl, [endpoint_id])
        self._rtnl.exchange([netlink.delete_link(link.ifindex) for link in spare.values()])
        failed = [one for i, one in enumerate(replies) if one.errno and (i < len(steps) or one.errno not in limits.ABSENT)]
        return failed[0] if failed else replies[0]

    def restore(self, netdev: Netdev, endpoint_id: str, before: RepresentorMark) -> Reply:
        """See Nic."""
        if netdev.ifname != before.ifname:
            reply = self._rtnl.ask(netlink.set_link(netdev.ifindex, netlink.text(Ifla.IFNAME, before.ifname)))
            if reply.errno not in (0, errno.EEXIST):  # another has the name by now
                return reply
        # Alone: a device whose MTU was below IPv6's least has no IPv6 that another message could be about.
        steps = [netlink.set_link(netdev.ifindex, netlink.number(Ifla.MTU, before.mtu_bytes))]
        if ipv6.is_possible(before.mtu_bytes):
            steps.append(netlink.set_link(netdev.ifindex, netlink.ipv6_mode(before.ipv6_mode)))
        replies = self._rtnl.exchange(steps)
        if failed := next((reply for reply in replies if reply.errno), None):
            return failed
        renamed = self._rtnl.ask(netlink.delete_altname(netdev.ifindex, names.altname(endpoint_id)))
        # EINVAL: somebody has taken the name from it (net/core/rtnetlink.c, rtnl_alt_ifname).
        if renamed.errno not in (0, errno.EINVAL, errno.ENOENT):
            return renamed
        alias = netlink.text(Ifla.IFALIAS, before.alias) if before.alias else netlink.attribute(Ifla.IFALIAS, b"")
        return self._rtnl.ask(netlink.set_link(netdev.ifindex, alias))
