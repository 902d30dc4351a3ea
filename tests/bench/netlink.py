"""The few rtnetlink messages of the bare-kernel contender, packed by hand: no library's cost is in its figures.

Layouts and numbers: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import TracebackType

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLA_F_NESTED = 0x8000

RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK, RTM_NEWLINKPROP = 16, 17, 19, 108
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_IFALIAS = 1, 3, 4, 10, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 26, 27, 52, 53
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1
IFF_UP = 0x1

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_ERROR = struct.Struct("=i")


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit number."""
    return attribute(kind, value.to_bytes(4, "little"))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Attributes in an attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def link_message(kind: int, ifindex: int, *attributes: bytes, flags: int = 0, up: bool = False) -> bytes:
    """One message about a link, which asks for an acknowledgement."""
    state = IFF_UP if up else 0
    body = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, state, state) + b"".join(attributes)
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 0, 0) + body


class RouteSocket:
    """An rtnetlink socket of the namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        # A group delete tells every listener about every device; only acknowledgements come here, but many at once.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def send(self, messages: list[bytes]) -> None:
        """Send the messages at once and wait until each is acknowledged.

        Raises:
            OSError: the kernel refused one of them.
        """
        self._socket.send(b"".join(messages))
        missing = len(messages)
        while missing:
            missing -= _count_acknowledgements(self._socket.recv(1 << 16))


def _count_acknowledgements(data: bytes) -> int:
    count = offset = 0
    while offset < len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if kind != NLMSG_ERROR:
            raise OSError(errno.EPROTO, f"unexpected netlink message {kind}")
        (code,) = _ERROR.unpack_from(data, offset + _HEADER.size)
        if code:
            raise OSError(-code, os.strerror(-code))
        count += 1
        offset += length + (-length % 4)
    return count
