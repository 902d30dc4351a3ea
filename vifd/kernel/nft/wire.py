"""Messages of nf_tables, and the socket that sends them as transactions.

Numbers are from linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h; every integer of nf_tables is big-endian.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from vifd.kernel.netlink import NLMSG_ERROR, attribute, parse_attributes

NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_HEADER = Struct("=IHHII")  # struct nlmsghdr
_FAMILY = Struct(">BBH")  # struct nfgenmsg: family, version, resource id
_ATTRIBUTE = Struct("=HH")
_PAYLOAD = _HEADER.size + _FAMILY.size
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NLMSG_DONE = 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
NLM_F_CREATE, NLM_F_EXCL, NLM_F_APPEND = 0x400, 0x200, 0x800
_NLA_F_NESTED = 0x8000
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_RECEIVE_BYTES = 1 << 17
_BUFFER_BYTES = 16 << 20
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10


class Family(IntEnum):
    """What a table's chains see (NFPROTO_*)."""

    INET = 1
    IPV4 = 2
    NETDEV = 5
    BRIDGE = 7
    IPV6 = 10


class Kind(IntEnum):
    """The messages that are used here (NFT_MSG_*)."""

    NEWTABLE = 0
    GETTABLE = 1
    DELTABLE = 2
    NEWCHAIN = 3
    GETCHAIN = 4
    DELCHAIN = 5
    NEWRULE = 6
    GETRULE = 7
    DELRULE = 8
    NEWSET = 9
    NEWSETELEM = 12
    GETSETELEM = 13
    DELSETELEM = 14
    NEWOBJ = 18
    DELOBJ = 20


class Message(NamedTuple):
    """One message, without its header: that is the socket's to fill in."""

    kind: int
    family: Family
    payload: bytes
    flags: int = 0


class NftError(OSError):
    """The kernel refused a message; nothing of its transaction has happened."""


def text(kind: int, value: str) -> bytes:
    """Pack a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """Pack an unsigned 32-bit number."""
    return attribute(kind, pack(">I", value))


def number64(kind: int, value: int) -> bytes:
    """Pack an unsigned 64-bit number."""
    return attribute(kind, pack(">Q", value))


def nested(kind: int, *payload: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(payload))


def listed(items: Sequence[bytes]) -> bytes:
    """Pack the elements of a list (NFTA_LIST_ELEM)."""
    return b"".join(nested(1, item) for item in items)


def attributes_of(payload: bytes) -> dict[int, bytes]:
    """Take a message's attributes apart."""
    return parse_attributes(payload)


def list_of(payload: bytes) -> Iterator[bytes]:
    """Give the elements of a list."""
    offset = 0
    while offset + 4 <= len(payload):
        length, _ = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4:
            return
        yield payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class NftSocket:
    """A socket for transactions and dumps. One thread at a time.

    The kernel lets an owned table be changed through the socket alone that owns it, so the helper has one for all.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))
        for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
            except PermissionError:  # not the first user namespace's root: as much as the host allows
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        self._sequence = 0

    @property
    def port_id(self) -> int:
        """The number by which events tell who caused them (nlmsg_pid)."""
        number: int = self._socket.getsockname()[0]
        return number

    def close(self) -> None:
        """Close the socket; the kernel ends its ownership of tables."""
        self._socket.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """Carry messages out as one transaction: all or none, and no packet sees a part of it.

        Raises:
            NftError: the first refusal.
        """
        if not messages:
            return
        begin = self._sequence + 1
        last = begin + len(messages)
        self._sequence = last + 1
        packed = [_pack_batch(_BATCH_BEGIN, begin)]
        for index, message in enumerate(messages):
            flags = _NLM_F_ACK if begin + 1 + index == last else 0
            packed.append(_pack(message, begin + 1 + index, flags))
        packed.append(_pack_batch(_BATCH_END, last + 1))
        self._socket.send(b"".join(packed))
        self._take_answers(begin, last, messages)

    def _take_answers(self, begin: int, last: int, messages: Sequence[Message]) -> None:
        refused: NftError | None = None
        while True:
            for kind, _, sequence, message in _split(self._socket.recv(_RECEIVE_BYTES)):
                if kind != NLMSG_ERROR or sequence < begin:
                    continue
                code = -unpack_from("=i", message, _HEADER.size)[0]
                if code and refused is None:
                    refused = NftError(code, f"{_name_of(messages, sequence - begin - 1)}: {os.strerror(code)}")
                if sequence in {last, begin}:
                    if refused is not None:
                        raise refused
                    return

    def dump(self, message: Message) -> list[dict[int, bytes]]:
        """Ask for everything that a message describes; give each answer's attributes.

        Raises:
            NftError: the kernel refuses, ENOENT where there is no such thing.
        """
        while True:
            self._sequence += 1
            self._socket.send(_pack(message, self._sequence, _NLM_F_DUMP))
            answers, interrupted = self._take_dump(self._sequence)
            if not interrupted:
                return answers

    def ask(self, message: Message) -> dict[int, bytes] | None:
        """Ask for one thing; give its attributes, None where it isn't there.

        Raises:
            NftError: the kernel refuses to say.
        """
        self._sequence += 1
        self._socket.send(_pack(message, self._sequence, 0))
        while True:
            for kind, _, sequence, answer in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind != NLMSG_ERROR:
                    return parse_attributes(answer[_PAYLOAD:])
                code = -unpack_from("=i", answer, _HEADER.size)[0]
                if code == errno.ENOENT:
                    return None
                raise NftError(code, os.strerror(code))

    def _take_dump(self, wanted: int) -> tuple[list[dict[int, bytes]], bool]:
        answers: list[dict[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, sequence, message in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != wanted:
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return answers, interrupted
                if kind == NLMSG_ERROR:
                    code = -unpack_from("=i", message, _HEADER.size)[0]
                    raise NftError(code, os.strerror(code))
                answers.append(parse_attributes(message[_PAYLOAD:]))


def _pack(message: Message, sequence: int, flags: int) -> bytes:
    kind = SUBSYSTEM << 8 | message.kind
    length = _PAYLOAD + len(message.payload)
    header = _HEADER.pack(length, kind, _NLM_F_REQUEST | message.flags | flags, sequence, 0)
    return header + _FAMILY.pack(message.family, 0, 0) + message.payload


def _pack_batch(kind: int, sequence: int) -> bytes:
    return _HEADER.pack(_PAYLOAD, kind, _NLM_F_REQUEST, sequence, 0) + _FAMILY.pack(0, 0, SUBSYSTEM)


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Give the messages of a packet: type, flags, sequence number, all of it."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset : offset + length]
        offset += (length + 3) & ~3


def _name_of(messages: Sequence[Message], index: int) -> str:
    return Kind(messages[index].kind).name if 0 <= index < len(messages) else "the transaction"
