"""The sets and maps of the guard's table, and its counters."""

from __future__ import annotations

from collections.abc import Mapping
from struct import pack
from typing import NamedTuple

from vifd.kernel.nft.wire import listed, nested, number, text

PORTS, MACS, LISTED, DROPS = "ports", "macs", "listed", "drops"
IP4, IP4_PREFIXES, IP6, IP6_PREFIXES = "ip4", "ip4_prefixes", "ip6", "ip6_prefixes"
SENDERS, SENDERS4, SENDERS6 = "senders", "senders4", "senders6"
PPS_FROM_VM, BPS_FROM_VM, PPS_TO_VM, BPS_TO_VM = "pps_from_vm", "bps_from_vm", "pps_to_vm", "bps_to_vm"
#: The limits of what a VM sends, and of what it gets.
FROM_VM, TO_VM = frozenset({PPS_FROM_VM, BPS_FROM_VM}), frozenset({PPS_TO_VM, BPS_TO_VM})

_INTERVAL, _MAP, _OBJECT, _CONCAT, _EXPRESSION = 0x04, 0x08, 0x40, 0x80, 0x100  # NFT_SET_*
_IFINDEX, _ETHER, _IPV4, _IPV6 = 20, 9, 7, 8  # nft's own numbers of data types, with which it prints elements
_HOST_ORDER = bytes([0, 4]) + pack("=I", 1)  # NFTNL_UDATA_SET_KEYBYTEORDER: so nft prints an interface's name
_VERDICT_DATA, _LIMIT_OBJECT = 0xFFFFFF00, 4


class SetSpec(NamedTuple):
    """A set or map.

    Args:
        fields: the types of its key's parts, the first the interface.
        lengths: their lengths in bytes, padded to four.
        flags: NFT_SET_*.
    """

    fields: tuple[int, ...]
    lengths: tuple[int, ...]
    flags: int = 0

    @property
    def is_interval(self) -> bool:
        """Whether an element is a range."""
        return bool(self.flags & _INTERVAL)

    @property
    def is_limit(self) -> bool:
        """Whether an element leads to a limit."""
        return bool(self.flags & _OBJECT)

    def description(self) -> bytes:
        """Give what the kernel is told of it, beside its name."""
        kind = 0
        for field in self.fields:
            kind = kind << 6 | field
        packed = number(3, self.flags) + number(4, kind) + number(5, sum(self.lengths))
        if len(self.fields) == 1:
            packed += userdata(13, _HOST_ORDER)
        if self.flags & _MAP:
            packed += number(6, _VERDICT_DATA) + number(7, 16)
        if self.flags & _OBJECT:
            packed += number(15, _LIMIT_OBJECT)
        if self.flags & _CONCAT:
            packed += nested(9, nested(2, listed([number(1, length) for length in self.lengths])))
        if self.flags & _EXPRESSION:
            packed += nested(17, text(1, "counter") + nested(2))
        return packed


def userdata(kind: int, value: bytes) -> bytes:
    """Pack what the kernel keeps for nft and doesn't look at."""
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


#: Single addresses are in hashes. A set of prefixes is copied whole by every transaction that changes it, so only what is a real
#: prefix is in one.
SETS: Mapping[str, SetSpec] = {
    PORTS: SetSpec((_IFINDEX,), (4,), _MAP),
    MACS: SetSpec((_IFINDEX, _ETHER), (4, 8)),
    LISTED: SetSpec((_IFINDEX,), (4,)),
    IP4: SetSpec((_IFINDEX, _IPV4), (4, 4)),
    IP6: SetSpec((_IFINDEX, _IPV6), (4, 16)),
    IP4_PREFIXES: SetSpec((_IFINDEX, _IPV4), (4, 4), _INTERVAL | _CONCAT),
    IP6_PREFIXES: SetSpec((_IFINDEX, _IPV6), (4, 16), _INTERVAL | _CONCAT),
    SENDERS: SetSpec((_IFINDEX, _ETHER), (4, 8)),
    SENDERS4: SetSpec((_IFINDEX, _ETHER, _IPV4), (4, 8, 4)),
    SENDERS6: SetSpec((_IFINDEX, _ETHER, _IPV6), (4, 8, 16)),
    DROPS: SetSpec((_IFINDEX,), (4,), _EXPRESSION),
    **{name: SetSpec((_IFINDEX,), (4,), _OBJECT) for name in sorted(FROM_VM | TO_VM)},
}

#: Why something was dropped.
COUNTERS = (
    "tag",
    "control",
    "mac",
    "address",
    "ethertype",
    "malformed",
    "dhcp_server",
    "router",
    "discovery",
    "arp",
    "rarp",
    "rate",
)
