"""What rules are made of (nft(8), "expressions"; linux/netfilter/nf_tables.h).

A `Field` names bytes of a packet or of what the kernel knows of it; the functions give expressions, and a rule is their
concatenation: it does what its last one says if all before match.
"""

from __future__ import annotations

from enum import IntEnum
from struct import pack
from typing import NamedTuple

from vifd.kernel.netlink import attribute
from vifd.kernel.nft.wire import listed, nested, number, text

_FIRST_REGISTER = 8  # NFT_REG32_00, the first of sixteen registers of four bytes
_VERDICT_REGISTER = 0
_META, _CONNTRACK, _PAYLOAD, _EXTHDR = "meta", "ct", "payload", "exthdr"
_LOOKUP_INVERTED = 1
_NAT_SOURCE, _NAT_DESTINATION = 0, 1  # NFT_NAT_*
_BIG_ENDIAN_OF = 1  # NFT_BYTEORDER_HTON
_OBJECT_COUNTER = 1


class Verdict(IntEnum):
    """What becomes of a packet."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


class Field(NamedTuple):
    """Bytes that a rule looks at.

    Args:
        source: "meta", "ct", "payload" or "exthdr".
        place: of meta and ct: its key; of payload: the header (0 link, 1 network, 2 transport); of exthdr: the header's number.
        offset: of payload and exthdr: where in the header, in bytes.
        length: in bytes.
        swapped: whether a number of the host's byte order is brought to the network's, as sets with intervals need it.
    """

    source: str
    place: int
    offset: int
    length: int
    swapped: bool = False


def link(offset: int, length: int) -> Field:
    """Name bytes of the link-layer header."""
    return Field(_PAYLOAD, 0, offset, length)


def network(offset: int, length: int) -> Field:
    """Name bytes of the network header (IP, ARP)."""
    return Field(_PAYLOAD, 1, offset, length)


def transport(offset: int, length: int) -> Field:
    """Name bytes of the transport header (UDP, ICMPv6). Packets that have none, like later fragments, match no rule with it."""
    return Field(_PAYLOAD, 2, offset, length)


def extension(header: int, offset: int, length: int) -> Field:
    """Name bytes of an IPv6 extension header. Packets that have none of it match no rule with it."""
    return Field(_EXTHDR, header, offset, length)


IIF, OIF = Field(_META, 4, 0, 4), Field(_META, 5, 0, 4)
IIFNAME, OIFNAME = Field(_META, 6, 0, 16), Field(_META, 7, 0, 16)
PKTTYPE = Field(_META, 19, 0, 1)
PROTOCOL, NFPROTO, L4PROTO = Field(_META, 1, 0, 2), Field(_META, 15, 0, 1), Field(_META, 16, 0, 1)
CT_STATE, CT_STATUS = Field(_CONNTRACK, 0, 0, 4), Field(_CONNTRACK, 2, 0, 4)


def equal(field: Field, value: bytes, *, mask: bytes = b"") -> bytes:
    """Match a field that has a value, under a mask if there is one."""
    return _load(field) + _masked(mask) + _compare(0, value)


def differ(field: Field, value: bytes, *, mask: bytes = b"") -> bytes:
    """Match a field that hasn't a value, under a mask if there is one."""
    return _load(field) + _masked(mask) + _compare(1, value)


def has_any(field: Field, bits: int) -> bytes:
    """Match a number of the host's byte order that has at least one of some bits."""
    return _load(field) + _masked(pack("=I", bits)) + _compare(1, bytes(4))


def exists(field: Field) -> bytes:
    """Match packets that have a field: that are long enough, or of which the kernel knows it."""
    return _load(field)


def member(of: str, *fields: Field, negate: bool = False) -> bytes:
    """Match fields that together are, or are not, an element of a set."""
    flags = number(5, _LOOKUP_INVERTED) if negate else b""
    return _load(*fields) + _expression("lookup", text(1, of), number(2, _FIRST_REGISTER), flags)


def verdict_of(mapping: str, *fields: Field) -> bytes:
    """Do what a map says for fields; go on where it says nothing."""
    return _load(*fields) + _expression("lookup", text(1, mapping), number(2, _FIRST_REGISTER), number(3, _VERDICT_REGISTER))


def mapped(mapping: str, *fields: Field) -> bytes:
    """Match fields that a map of data has a value for."""
    return _load(*fields) + _expression("lookup", text(1, mapping), number(2, _FIRST_REGISTER), number(3, _FIRST_REGISTER))


def from_mapped(mapping: str, family: int, *fields: Field) -> bytes:
    """Give the packet the source address that a map has for fields; go on where it has none."""
    return mapped(mapping, *fields) + _translate(_NAT_SOURCE, family)


def to_mapped(mapping: str, family: int, *fields: Field) -> bytes:
    """Give the packet the destination address that a map has for fields; go on where it has none."""
    return mapped(mapping, *fields) + _translate(_NAT_DESTINATION, family)


def masquerade() -> bytes:
    """Give the packet the address of the device that it leaves by as its source."""
    return _expression("masq")


def limited_by(mapping: str, *fields: Field) -> bytes:
    """Match what is over the limit that a map has for fields; no match where it has none."""
    return _load(*fields) + _expression("objref", number(3, _FIRST_REGISTER), text(4, mapping))


def count(counter: str) -> bytes:
    """Count a packet in a counter of the table."""
    return _expression("objref", number(1, _OBJECT_COUNTER), text(2, counter))


def verdict(code: Verdict, chain: str = "") -> bytes:
    """End a rule: drop, accept, return, or go to a chain."""
    return _expression("immediate", number(1, _VERDICT_REGISTER), nested(2, verdict_data(code, chain)))


def accept() -> bytes:
    """End the hooked chain: the packet is fine, and nothing else looks at it here."""
    return verdict(Verdict.ACCEPT)


def drop() -> bytes:
    """Drop the packet."""
    return verdict(Verdict.DROP)


def done() -> bytes:
    """Go back to where the chain was jumped to from: the packet is fine."""
    return verdict(Verdict.RETURN)


def jump(chain: str) -> bytes:
    """Go on in another chain, and come back if that ends without a verdict."""
    return verdict(Verdict.JUMP, chain)


def goto(chain: str) -> bytes:
    """Go on in another chain, and not come back."""
    return verdict(Verdict.GOTO, chain)


def verdict_data(code: Verdict, chain: str = "") -> bytes:
    """Pack a verdict as an element's or an expression's data."""
    return nested(2, attribute(1, pack(">i", code)), text(2, chain) if chain else b"")


def be16(value: int) -> bytes:
    """Give a number as packets have it."""
    return pack(">H", value)


def _load(*fields: Field) -> bytes:
    """Load fields one after the other, each from a register of its own."""
    register, loads = _FIRST_REGISTER, []
    for field in fields:
        target = number(1, register)
        if field.source in {_META, _CONNTRACK}:
            loads.append(_expression(field.source, target, number(2, field.place)))
        elif field.source == _EXTHDR:
            where = attribute(2, bytes([field.place])) + number(3, field.offset) + number(4, field.length)
            loads.append(_expression(_EXTHDR, target, where))
        else:
            where = number(2, field.place) + number(3, field.offset) + number(4, field.length)
            loads.append(_expression(_PAYLOAD, target, where))
        if field.swapped:
            order = number(1, register) + number(2, register) + number(3, _BIG_ENDIAN_OF) + number(4, 4) + number(5, 4)
            loads.append(_expression("byteorder", order))
        register += (field.length + 3) // 4
    return b"".join(loads)


def _translate(kind: int, family: int) -> bytes:
    registers = number(3, _FIRST_REGISTER) + number(4, _FIRST_REGISTER)
    return _expression("nat", number(1, kind), number(2, family), registers)


def _masked(mask: bytes) -> bytes:
    if not mask:
        return b""
    registers = number(1, _FIRST_REGISTER) + number(2, _FIRST_REGISTER)
    values = nested(4, attribute(1, mask)) + nested(5, attribute(1, bytes(len(mask))))
    return _expression("bitwise", registers, number(3, len(mask)), values)


def _compare(operator: int, value: bytes) -> bytes:
    return _expression("cmp", number(1, _FIRST_REGISTER), number(2, operator), nested(3, attribute(1, value)))


def _expression(name: str, *data: bytes) -> bytes:
    return listed([text(1, name) + nested(2, *data)])
