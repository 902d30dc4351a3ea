"""rtnetlink packed by hand, for the few messages on the way of a request.

pyroute2 packs one RTM_SETLINK in 0.45 to 1.2 ms, struct in 0.06 to 0.28; everything that isn't on the way of a request uses
pyroute2.
Numbers are from linux/netlink.h, linux/rtnetlink.h and linux/if_link.h; rtnetlink(7) describes the messages.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import NamedTuple

_HEADER = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
_IFINFO = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ATTRIBUTE = Struct("=HH")  # struct nlattr: len, type
_PADDING = (b"", bytes(3), bytes(2), bytes(1))  # by how many bytes are more than a multiple of four
_LINK_HEADER_BYTES = _HEADER.size + _IFINFO.size

NLMSG_ERROR = 2
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK, RTM_NEWLINKPROP, RTM_DELLINKPROP = 16, 17, 18, 19, 108, 109
NLM_F_ACK, NLM_F_ECHO, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 4, 8, 0x100, 0x200, 0x400
_NLM_F_REQUEST, _NLM_F_ACK_TLVS, _NLM_F_CAPPED, _NLM_F_APPEND = 1, 0x200, 0x100, 0x800
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_RTEXT_FILTER_VF, _RTEXT_FILTER_SKIP_STATS = 1, 8
_AF_INET6 = 10
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
IFF_UP, IFF_LOWER_UP = 1, 0x10000
_IFLA_BRIDGE_VLAN_INFO, _VLAN_PVID, _VLAN_UNTAGGED = 2, 2, 4
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5

#: The upper half of the numbers of vifd's sockets: events of traffic control bear that of who caused them (nlmsg_pid). The kernel
#: itself gives none of these: it takes process ids, or negative ones (net/netlink/af_netlink.c, netlink_autobind).
OWN_PORTS = 0x7666
_MESSAGES_A_SEND = 64
_RECEIVE_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20


class Ifla(IntEnum):
    """Attributes of a link message."""

    ADDRESS = 1
    IFNAME = 3
    MTU = 4
    LINK = 5
    MASTER = 10
    PROTINFO = 12
    TXQLEN = 13
    LINKINFO = 18
    IFALIAS = 20
    VFINFO_LIST = 22
    AF_SPEC = 26
    GROUP = 27
    EXT_MASK = 29
    PHYS_PORT_NAME = 38
    PROP_LIST = 52
    ALT_IFNAME = 53


class BridgePort(IntEnum):
    """Attributes of a bridge's port."""

    FLUSH = 24
    MULTICAST_ROUTER = 25
    GROUP_FWD_MASK = 31
    ISOLATED = 33


class MulticastRouter(IntEnum):
    """When a bridge takes what is behind a port for a router of multicast (linux/if_bridge.h, MDB_RTR_TYPE_*)."""

    NEVER = 0
    IF_IT_ASKS = 1


class TunInfo(IntEnum):
    """Attributes of a tun device's IFLA_INFO_DATA."""

    OWNER = 1
    GROUP = 2
    PI = 4
    VNET_HDR = 5
    MULTI_QUEUE = 7
    NUM_QUEUES = 8
    NUM_DISABLED_QUEUES = 9


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    size = len(payload)
    return _ATTRIBUTE.pack(4 + size, kind) + payload + _PADDING[size % 4]


def number(kind: int, value: int) -> bytes:
    """Pack an unsigned 32-bit attribute."""
    return _ATTRIBUTE.pack(8, kind) + pack("=I", value)


def text(kind: int, value: str) -> bytes:
    """Pack a zero-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, payload: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | _NLA_F_NESTED, payload)


def ipv6_mode(mode: int) -> bytes:
    """Pack how a device makes its IPv6 link-local address (linux/if_link.h, IN6_ADDR_GEN_MODE_*)."""
    return nested(Ifla.AF_SPEC, nested(_AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([mode]))))


#: IFLA_AF_SPEC that keeps the kernel from giving a device an IPv6 link-local address: a port of a bridge is no host of its own.
NO_IPV6_ADDRESS = ipv6_mode(_IN6_ADDR_GEN_MODE_NONE)


def create_link(kind: str, attributes: bytes, data: bytes = b"") -> bytes:
    """Pack an RTM_NEWLINK that makes a device, down; it must not exist.

    Args:
        kind: the driver's name.
        attributes: its name and what the kernel takes of others here: IFLA_ADDRESS, MTU, TXQLEN, GROUP, and no IFLA_IFALIAS
            (net/core/rtnetlink.c, rtnl_create_link).
        data: attributes of the driver's own (IFLA_INFO_DATA).
    """
    info = text(_INFO_KIND, kind) + (nested(_INFO_DATA, data) if data else b"")
    attributes += attribute(Ifla.LINKINFO, info)
    return request(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, _IFINFO.pack(0, 0, 0, 0, 0) + attributes)


def set_link(ifindex: int, attributes: bytes, *, up: bool | None = None) -> bytes:
    """Pack an RTM_SETLINK for one device.

    Args:
        ifindex: the device.
        attributes: what to set.
        up: also set it up, or down; None: neither.
    """
    flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
    return request(RTM_SETLINK, NLM_F_ACK, _IFINFO.pack(0, 0, ifindex, flags, change) + attributes)


def set_bridge_port(
    ifindex: int, *, isolated: bool, group_forward_mask: int, multicast_router: MulticastRouter, forget: bool
) -> bytes:
    """Pack an RTM_SETLINK of AF_BRIDGE for a port of a bridge (linux/if_link.h, IFLA_BRPORT_*).

    Args:
        ifindex: the port.
        isolated: whether it reaches only ports that aren't isolated.
        group_forward_mask: which of the sixteen reserved addresses 01:80:c2:00:00:0X it takes in like others, a bit each.
        multicast_router: whether it gets multicast that nobody behind it has joined.
        forget: whether the bridge forgets whom it has learned behind it.
    """
    settings = attribute(BridgePort.ISOLATED, bytes([isolated]))
    settings += attribute(BridgePort.GROUP_FWD_MASK, pack("=H", group_forward_mask))
    settings += attribute(BridgePort.MULTICAST_ROUTER, bytes([multicast_router]))
    settings += attribute(BridgePort.FLUSH, b"") if forget else b""
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, ifindex, 0, 0) + nested(Ifla.PROTINFO, settings)
    return request(RTM_SETLINK, NLM_F_ACK, body)


def set_port_vlan(ifindex: int, vid: int, *, untagged: bool) -> bytes:
    """Pack an RTM_SETLINK of AF_BRIDGE that lets a VLAN pass a port (linux/if_bridge.h, struct bridge_vlan_info).

    Args:
        ifindex: the port.
        vid: the VLAN.
        untagged: whether its frames pass without a tag, and frames without a tag belong to it.
    """
    return _port_vlan(RTM_SETLINK, ifindex, vid, _VLAN_PVID | _VLAN_UNTAGGED if untagged else 0)


def is_untagged(flags: int) -> bool | None:
    """Tell whether a port's VLAN is without tags, by its flags; None: in one direction alone."""
    found = flags & (_VLAN_PVID | _VLAN_UNTAGGED)
    return None if found in (_VLAN_PVID, _VLAN_UNTAGGED) else bool(found)


def delete_port_vlan(ifindex: int, vid: int) -> bytes:
    """Pack an RTM_DELLINK of AF_BRIDGE that keeps a VLAN from a port."""
    return _port_vlan(RTM_DELLINK, ifindex, vid, 0)


def _port_vlan(kind: int, ifindex: int, vid: int, flags: int) -> bytes:
    info = attribute(_IFLA_BRIDGE_VLAN_INFO, pack("=HH", flags, vid))
    return request(kind, NLM_F_ACK, _IFINFO.pack(socket.AF_BRIDGE, 0, ifindex, 0, 0) + nested(Ifla.AF_SPEC, info))


def add_altname(ifindex: int, name: str) -> bytes:
    """Pack an RTM_NEWLINKPROP that gives a device an alternative name (up to 127 bytes)."""
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | _NLM_F_APPEND
    names = nested(Ifla.PROP_LIST, text(Ifla.ALT_IFNAME, name))
    return request(RTM_NEWLINKPROP, flags, _IFINFO.pack(0, 0, ifindex, 0, 0) + names)


def delete_altname(ifindex: int, name: str) -> bytes:
    """Pack an RTM_DELLINKPROP that takes an alternative name from a device."""
    names = nested(Ifla.PROP_LIST, text(Ifla.ALT_IFNAME, name))
    return request(RTM_DELLINKPROP, NLM_F_ACK, _IFINFO.pack(0, 0, ifindex, 0, 0) + names)


def get_link(*, ifname: str = "", altname: str = "", ifindex: int = 0, vfs: bool = False) -> bytes:
    """Pack an RTM_GETLINK for one device: by name, by alternative name or by index; with what it has been told of its VFs."""
    attributes = number(Ifla.EXT_MASK, _RTEXT_FILTER_SKIP_STATS | (_RTEXT_FILTER_VF if vfs else 0))
    if ifname:
        attributes += text(Ifla.IFNAME, ifname)
    if altname:
        attributes += text(Ifla.ALT_IFNAME, altname)
    return request(RTM_GETLINK, 0, _IFINFO.pack(0, 0, ifindex, 0, 0) + attributes)


def delete_link(ifindex: int) -> bytes:
    """Pack an RTM_DELLINK for one device."""
    return request(RTM_DELLINK, NLM_F_ACK, _IFINFO.pack(0, 0, ifindex, 0, 0))


def delete_group(group: int) -> bytes:
    """Pack an RTM_DELLINK for every member of a group (net/core/rtnetlink.c, rtnl_group_dellink)."""
    return request(RTM_DELLINK, NLM_F_ACK, _IFINFO.pack(0, 0, 0, 0, 0) + number(Ifla.GROUP, group))


def request(kind: int, flags: int, payload: bytes) -> bytes:
    """Pack a request.

    Args:
        kind: RTM_...
        flags: NLM_F_..., beside NLM_F_REQUEST.
        payload: the fixed header of its kind, and attributes.
    """
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | _NLM_F_REQUEST, 0, 0) + payload


class Link(NamedTuple):
    """What the kernel says of one device."""

    ifindex: int
    flags: int
    attributes: dict[int, bytes]

    def text(self, kind: Ifla) -> str:
        """Give a string attribute, empty where it isn't there."""
        return self.attributes.get(kind, b"").rstrip(b"\0").decode(errors="replace")

    def number(self, kind: Ifla) -> int:
        """Give a 32-bit attribute, 0 where it isn't there."""
        value: int = unpack_from("=I", self.attributes.get(kind, bytes(4)))[0]
        return value

    @property
    def kind(self) -> str:
        """The driver's name: "tun", "bridge", ...; empty for hardware."""
        return self._info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")

    def tun_flag(self, flag: TunInfo) -> bool:
        """Tell a flag of a tun device."""
        return self.data.get(flag, b"\0") != b"\0"

    @property
    def data(self) -> dict[int, bytes]:
        """What its driver says of it: attributes of the driver's own."""
        return parse_attributes(self._info.get(_INFO_DATA, b""))

    @property
    def port_data(self) -> dict[int, bytes]:
        """What its bridge says of it."""
        return parse_attributes(self._info.get(_INFO_SLAVE_DATA, b""))

    @property
    def _info(self) -> dict[int, bytes]:
        return parse_attributes(self.attributes.get(Ifla.LINKINFO, b""))


class Reply(NamedTuple):
    """The answer to one message: the kernel's errno (0: done) and words, and the link that was asked for, or the whole message
    where something else was.
    """

    errno: int
    message: str = ""
    link: Link | None = None
    answer: bytes = b""


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Take attributes apart: type to payload, the last of equal types."""
    attributes, offset, last = dict[int, bytes](), 0, len(data) - _ATTRIBUTE.size
    unpack = _ATTRIBUTE.unpack_from  # a link has some forty of them, so each step here counts
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return attributes


def parse_list(data: bytes) -> list[tuple[int, bytes]]:
    """Take attributes apart of which some are of equal types: type and payload of each."""
    attributes, offset = list[tuple[int, bytes]](), 0
    while found := parse_attributes(data[offset : offset + _length(data, offset)]):
        attributes += found.items()
        offset += (_length(data, offset) + 3) & ~3
    return attributes


def _length(data: bytes, offset: int) -> int:
    return int(unpack_from("=H", data, offset)[0]) if offset + _ATTRIBUTE.size <= len(data) else 0


def parse_link(data: bytes) -> Link:
    """Take a whole RTM_NEWLINK message apart."""
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(data, _HEADER.size)
    return Link(ifindex, flags, parse_attributes(data[_LINK_HEADER_BYTES:]))


class RtnlSocket:
    """A socket that sends packed messages and pairs each with the kernel's answer. One thread at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._bind()
        self._sequence = 0

    def _bind(self) -> None:
        """Take a number of vifd's own that no other socket of this namespace has."""
        while True:
            try:
                self._socket.bind((OWN_PORTS << 16 | secrets.randbelow(1 << 16), 0))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return

    def fileno(self) -> int:
        """Give the descriptor, through which netdevice(7) ioctls can be asked as well."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, message: bytes) -> Reply:
        """Send one message and give the answer."""
        return self.exchange([message])[0]

    def exchange(self, messages: list[bytes]) -> list[Reply]:
        """Send messages in order, and give the answer to each.

        Raises:
            OSError: the socket itself failed. What the kernel answers, also a refusal, is in the replies.
        """
        replies: list[Reply] = []
        for start in range(0, len(messages), _MESSAGES_A_SEND):
            replies += self._exchange(messages[start : start + _MESSAGES_A_SEND])
        return replies

    def _exchange(self, messages: list[bytes]) -> list[Reply]:
        """Send messages at once. Only the last asks for an answer where all is well: the kernel works them off in order, within
        the send, and a refusal is answered in any case (netlink(7), NLM_F_ACK). Where the last has its answer before that, the
        acknowledgement is read the next time, and belongs to no message then.
        """
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        numbered = [_numbered(message, first + i, quiet=first + i < last) for i, message in enumerate(messages)]
        self._socket.send(b"".join(numbered))
        replies: dict[int, Reply] = {}
        while last not in replies:
            replies.update(_parse_replies(self._socket.recv(_RECEIVE_BYTES)))
        done = Reply(0)
        return [replies.get(first + i, done) for i in range(len(messages))]


def _numbered(message: bytes, sequence: int, *, quiet: bool) -> bytes:
    flags = unpack_from("=H", message, 6)[0]
    return message[:6] + pack("=HI", flags & ~NLM_F_ACK if quiet else flags, sequence) + message[12:]


def _parse_replies(data: bytes) -> list[tuple[int, Reply]]:
    replies, offset = [], 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        message = data[offset : offset + length]
        if kind == NLMSG_ERROR:
            replies.append((sequence, parse_error(message, flags)))
        elif kind == RTM_NEWLINK:
            replies.append((sequence, Reply(0, "", parse_link(message))))
        else:
            replies.append((sequence, Reply(0, "", None, message)))
        offset += max((length + 3) & ~3, _HEADER.size)
    return replies


def parse_error(message: bytes, flags: int) -> Reply:
    """Take a whole NLMSG_ERROR message apart.

    Args:
        message: it.
        flags: those of its header.
    """
    code = -unpack_from("=i", message, _HEADER.size)[0]
    if code == 0:
        return Reply(0)
    words = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        # Without NLM_F_CAPPED the refused message stands whole before the attributes.
        echoed = _HEADER.size if flags & _NLM_F_CAPPED else unpack_from("=I", message, _HEADER.size + 4)[0]
        extended = parse_attributes(message[_HEADER.size + 4 + ((echoed + 3) & ~3) :]).get(_NLMSGERR_ATTR_MSG)
        words = extended.rstrip(b"\0").decode(errors="replace") if extended else words
    return Reply(code, words)
