"""The guard's table: what a VM may send, and how much.

The number of rules doesn't grow with the number of ports: what differs from port to port are elements of sets and maps, keyed by
the port's interface index. A port that is in no set is none of the guard's business.

    prerouting ── ports ──▶ access ──▶ sender ──▶ ip4 · ip6 ──▶ icmp6 · arp · rarp      each ends with "return", or in `drop`
                        └─▶ trunk  ──┘

What can't be read as what it says it is, is dropped: a rule that asks for bytes that aren't there doesn't match, so the rules
that let pass ask for them.

               └─ pps_from_vm, bps_from_vm ─▶ drop        postrouting ── pps_to_vm, bps_to_vm ─▶ drop

`nft list table bridge vifd` shows it, with a counter for each reason and one for each port (set `drops`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from struct import pack
from typing import NamedTuple

from vifd.kernel.nft.rules import (
    IIF,
    L4PROTO,
    OIF,
    PROTOCOL,
    Field,
    be16,
    count,
    differ,
    done,
    drop,
    equal,
    exists,
    extension,
    goto,
    limited_by,
    link,
    member,
    network,
    transport,
    verdict_of,
)
from vifd.kernel.nft.seals import sealed
from vifd.kernel.nft.wire import NLM_F_APPEND, NLM_F_CREATE, Family, Kind, Message, listed, nested, number, text

TABLE = "vifd"

# --- sets and maps

PORTS, MACS, LISTED, DROPS = "ports", "macs", "listed", "drops"
IP4, IP4_PREFIXES, IP6, IP6_PREFIXES = "ip4", "ip4_prefixes", "ip6", "ip6_prefixes"
PPS_FROM_VM, BPS_FROM_VM, PPS_TO_VM, BPS_TO_VM = "pps_from_vm", "bps_from_vm", "pps_to_vm", "bps_to_vm"

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
    DROPS: SetSpec((_IFINDEX,), (4,), _EXPRESSION),
    **{name: SetSpec((_IFINDEX,), (4,), _OBJECT) for name in (PPS_FROM_VM, BPS_FROM_VM, PPS_TO_VM, BPS_TO_VM)},
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

# --- packets

_ETHERTYPE, _TO, _FROM, _SECOND_TAG = link(12, 2), link(0, 6), link(6, 6), link(16, 2)
_IP, _ARP, _RARP, _IPV6_TYPE = be16(0x0800), be16(0x0806), be16(0x8035), be16(0x86DD)
_TAG, _OTHER_TAGS = 0x8100, (0x88A8, 0x9100, 0x9200)  # IEEE 802.1Q; 802.1ad, older QinQ
# IEEE 802.1D table 7-10: what a bridge never forwards; Cisco's CDP and PVST+; IEEE 802.3 MAC control, slow protocols, LLDP.
_RESERVED, _RESERVED_MASK = bytes.fromhex("0180c2000000"), bytes.fromhex("fffffffffff0")
_CISCO, _CISCO_MASK = bytes.fromhex("01000ccccccc"), bytes.fromhex("fffffffffffe")
_CONTROL_TYPES = (0x8808, 0x8809, 0x88CC)
_UDP, _ICMPV6 = b"\x11", b"\x3a"
_IP4_SOURCE, _IP6_SOURCE = network(12, 4), network(8, 16)
_SOURCE_PORT, _PORT, _BOTH_PORTS, _ICMP_TYPE = transport(0, 2), transport(2, 2), transport(0, 4), transport(0, 1)
_FRAGMENT, _OFFSET_MASK = extension(44, 2, 2), be16(0xFFF8)
_ARP_FORM, _ARP_ETHER_IP, _ARP_END = network(0, 6), bytes.fromhex("000108000604"), network(24, 4)
_ARP_OPERATION, _ARP_MAC, _ARP_SENDER = network(6, 2), network(8, 6), network(14, 4)
_REVERSE_REQUEST = be16(3)
# RFC 4861: router solicitation and advertisement, neighbour solicitation and advertisement, redirect
_RS, _RA, _NS, _NA, _REDIRECT = (bytes([n]) for n in (133, 134, 135, 136, 137))
_TARGET = transport(8, 16)
_SOURCE_OPTION, _TARGET_OPTION, _NONCE_OPTION = b"\x01", b"\x02", b"\x0e"
_ANY4, _ANY6 = bytes(4), bytes(16)


class Chain(NamedTuple):
    """A chain: its rules, and for one that the kernel calls, where (hook and priority)."""

    rules: tuple[bytes, ...]
    hook: int | None = None
    priority: int = 0


def _dropped(why: str) -> bytes:
    return count(why) + goto("drop")


def _chains(port: Field) -> dict[str, Chain]:
    """Give the chains by name, those that are gone to before those that go.

    Args:
        port: what names the port of a frame that a VM sends.
    """
    own_mac = (port, _FROM)
    swapped = port._replace(swapped=True)
    udp = equal(L4PROTO, _UDP)
    arp_of_own_mac = equal(_ARP_FORM, _ARP_ETHER_IP) + exists(_ARP_END) + member(MACS, port, _ARP_MAC)
    is_tagged = equal(_ETHERTYPE, be16(_TAG))
    return {
        "drop": Chain((member(DROPS, port) + drop(), drop())),
        "arp_sender": Chain(
            (
                member(LISTED, port, negate=True) + done(),
                equal(_ARP_SENDER, _ANY4) + done(),  # RFC 5227: a probe
                member(IP4, port, _ARP_SENDER) + done(),
                member(IP4_PREFIXES, swapped, _ARP_SENDER) + done(),
                _dropped("arp"),
            )
        ),
        "arp": Chain((arp_of_own_mac + goto("arp_sender"), _dropped("arp"))),
        # QEMU announces a VM that has moved with a reverse request of its own.
        "rarp": Chain((equal(_ARP_OPERATION, _REVERSE_REQUEST) + arp_of_own_mac + done(), _dropped("rarp"))),
        "icmp6": Chain(_discovery(port, swapped)),
        "ip4_source": Chain(
            (
                # A client takes an answer from whatever port it comes.
                *(udp + equal(*server) + _dropped("dhcp_server") for server in ((_SOURCE_PORT, be16(67)), (_PORT, be16(68)))),
                member(LISTED, port, negate=True) + done(),
                member(IP4, port, _IP4_SOURCE) + done(),
                member(IP4_PREFIXES, swapped, _IP4_SOURCE) + done(),
                equal(_IP4_SOURCE, _ANY4) + udp + equal(_BOTH_PORTS, be16(68) + be16(67)) + done(),
                _dropped("address"),
            )
        ),
        "ip4": Chain((exists(L4PROTO) + goto("ip4_source"), _dropped("malformed"))),
        **_ip6_chains(port, swapped),
        "sender": Chain(
            (
                equal(_TO, _RESERVED, mask=_RESERVED_MASK) + _dropped("control"),
                member(MACS, *own_mac, negate=True) + _dropped("mac"),
                equal(PROTOCOL, _IP) + goto("ip4"),
                equal(PROTOCOL, _IPV6_TYPE) + goto("ip6"),
                equal(PROTOCOL, _ARP) + goto("arp"),
                equal(PROTOCOL, _RARP) + goto("rarp"),
                equal(_TO, _CISCO, mask=_CISCO_MASK) + _dropped("control"),
                *(equal(PROTOCOL, be16(kind)) + _dropped("control") for kind in _CONTROL_TYPES),
                member(LISTED, port) + _dropped("ethertype"),
                done(),
            )
        ),
        # Most frames are IP, and that is told from a tag first.
        "access": Chain(
            (
                *(equal(_ETHERTYPE, kind) + goto("sender") for kind in (_IP, _IPV6_TYPE)),
                *(equal(_ETHERTYPE, be16(tag)) + _dropped("tag") for tag in (_TAG, *_OTHER_TAGS)),
                goto("sender"),
            )
        ),
        "trunk": Chain(
            (
                *(equal(_ETHERTYPE, be16(tag)) + _dropped("tag") for tag in _OTHER_TAGS),
                *(is_tagged + equal(_SECOND_TAG, be16(tag)) + _dropped("tag") for tag in (_TAG, *_OTHER_TAGS)),
                goto("sender"),
            )
        ),
    }


def _ip6_chains(port: Field, swapped: Field) -> dict[str, Chain]:
    """Give the chains for IPv6.

    The kernel finds the last header behind extension headers and in first fragments. A first fragment that ends before it is
    dropped (RFC 7112): in the next could be anything. Of later ones, the source alone is looked at: without the first they are
    nothing.
    """
    udp, icmp6 = equal(L4PROTO, _UDP), equal(L4PROTO, _ICMPV6)
    return {
        "icmp6": Chain(_discovery(port, swapped)),
        "ip6_source": Chain(
            (
                member(LISTED, port, negate=True) + done(),
                member(IP6, port, _IP6_SOURCE) + done(),
                member(IP6_PREFIXES, swapped, _IP6_SOURCE) + done(),
                _dropped("address"),
            )
        ),
        "ip6": Chain(
            (
                differ(_FRAGMENT, bytes(2), mask=_OFFSET_MASK) + goto("ip6_source"),
                icmp6 + exists(_BOTH_PORTS) + goto("icmp6"),
                icmp6 + _dropped("malformed"),
                *(udp + equal(*server) + _dropped("dhcp_server") for server in ((_SOURCE_PORT, be16(547)), (_PORT, be16(546)))),
                udp + exists(_BOTH_PORTS) + goto("ip6_source"),
                udp + _dropped("malformed"),
                exists(L4PROTO) + goto("ip6_source"),
                _dropped("malformed"),
            )
        ),
    }


def _discovery(port: Field, swapped: Field) -> tuple[bytes, ...]:
    """Give the rules for ICMPv6: no router's messages, no foreign MAC in an option, no foreign address as target or source.

    An option that claims a MAC has to be the first and only one (RFC 4861, section 4): a second would not be looked at here.
    """

    def options(kind: bytes, offset: int, allowed: bytes) -> tuple[bytes, ...]:
        is_kind = equal(_ICMP_TYPE, kind)
        option, claimed = transport(offset, 1), transport(offset + 2, 6)
        is_allowed = equal(option, allowed)
        return (
            is_kind + exists(transport(offset + 8, 1)) + _dropped("discovery"),
            is_kind + is_allowed + member(MACS, port, claimed, negate=True) + _dropped("discovery"),
            is_kind + differ(option, allowed) + differ(option, _NONCE_OPTION) + _dropped("discovery"),
        )

    def mine(field: Field) -> tuple[bytes, bytes]:
        return member(IP6, port, field), member(IP6_PREFIXES, swapped, field)

    from_nowhere = equal(_IP6_SOURCE, _ANY6)
    return (
        equal(_ICMP_TYPE, _RA) + _dropped("router"),
        equal(_ICMP_TYPE, _REDIRECT) + _dropped("router"),
        # RFC 6980: none of these comes in fragments; an option could be in the next.
        *(equal(_ICMP_TYPE, kind) + exists(_FRAGMENT) + _dropped("discovery") for kind in (_RS, _NS, _NA)),
        *options(_RS, 8, _SOURCE_OPTION),
        *options(_NS, 24, _SOURCE_OPTION),
        *options(_NA, 24, _TARGET_OPTION),
        member(LISTED, port, negate=True) + done(),
        # RFC 4862: to find out whether an address is free, one asks for it from no address.
        *(from_nowhere + equal(_ICMP_TYPE, _NS) + target + done() for target in mine(_TARGET)),
        from_nowhere + equal(_ICMP_TYPE, _RS) + done(),
        from_nowhere + equal(_ICMP_TYPE, b"\x8f") + done(),  # RFC 3590: a multicast report before there is an address
        *(differ(_ICMP_TYPE, _NA) + source + done() for source in mine(_IP6_SOURCE)),
        *(equal(_ICMP_TYPE, _NA) + source + target + done() for source in mine(_IP6_SOURCE) for target in mine(_TARGET)),
        _dropped("discovery"),
    )


def _entries(port: Field, other: Field | None) -> dict[str, Chain]:
    """Give the bridge's own chains: frames from a VM enter by `port`, those to one leave by `other`."""
    before_others = -350  # NF_BR_PRI_NAT_DST_BRIDGED - 50, linux/netfilter_bridge.h
    after_others = 350
    chains = {"prerouting": Chain((verdict_of(PORTS, port), *limit_rules(port, PPS_FROM_VM, BPS_FROM_VM)), 0, before_others)}
    if other is not None:
        chains["postrouting"] = Chain(limit_rules(other, PPS_TO_VM, BPS_TO_VM), 4, after_others)
    return chains


def limit_rules(port: Field, *maps: str) -> tuple[bytes, ...]:
    """Give the rules that drop what is too much, a map each."""
    return tuple(limited_by(name, port) + count("rate") + drop() for name in maps)


class Ruleset(NamedTuple):
    """All of a table but its elements."""

    family: Family
    chains: Mapping[str, Chain]

    @property
    def version(self) -> str:
        """What tells this ruleset from another vifd's."""
        text_of = repr((sorted(self.chains.items()), sorted(SETS.items()), COUNTERS))
        return hashlib.sha256(text_of.encode()).hexdigest()[:16]

    def messages(self, table_flags: int) -> list[Message]:
        """Give what makes the table, in order."""
        made = [self.table(table_flags)]
        made += [self._counter(name) for name in COUNTERS]
        made += [self._set(number_, name, spec) for number_, (name, spec) in enumerate(SETS.items(), 1)]
        made += [self._chain(name, chain) for name, chain in self.chains.items()]
        made += [self.rule(name, rule) for name, chain in self.chains.items() for rule in chain.rules]
        return made

    def table(self, flags: int) -> Message:
        """Give what makes the table itself; its comment is the ruleset's version."""
        comment = f"vifd {self.version}".encode() + b"\0"
        userdata = bytes([0, len(comment)]) + comment  # NFTNL_UDATA_TABLE_COMMENT
        payload = text(1, TABLE) + number(2, flags) + number_userdata(6, userdata)
        return Message(Kind.NEWTABLE, self.family, payload, NLM_F_CREATE)

    def _counter(self, name: str) -> Message:
        payload = text(1, TABLE) + text(2, name) + number(3, 1) + nested(4)
        return Message(Kind.NEWOBJ, self.family, payload, NLM_F_CREATE)

    def _set(self, identity: int, name: str, spec: SetSpec) -> Message:
        kind = 0
        for field in spec.fields:
            kind = kind << 6 | field
        payload = text(1, TABLE) + text(2, name) + number(3, spec.flags) + number(4, kind) + number(5, sum(spec.lengths))
        payload += number(10, identity)
        if len(spec.fields) == 1:
            payload += number_userdata(13, _HOST_ORDER)
        if name == PORTS:
            payload += number(6, _VERDICT_DATA) + number(7, 16)
        if spec.flags & _OBJECT:
            payload += number(15, _LIMIT_OBJECT)
        if spec.flags & _CONCAT:
            payload += nested(9, nested(2, listed([number(1, length) for length in spec.lengths])))
        if spec.flags & _EXPRESSION:
            payload += nested(17, text(1, "counter") + nested(2))
        return Message(Kind.NEWSET, self.family, payload, NLM_F_CREATE)

    def _chain(self, name: str, chain: Chain) -> Message:
        payload = text(1, TABLE) + text(3, name)
        if chain.hook is not None:
            payload += nested(4, number(1, chain.hook), signed(2, chain.priority)) + number(5, 1) + text(7, "filter")
        return Message(Kind.NEWCHAIN, self.family, payload, NLM_F_CREATE)

    def rule(self, chain: str, rule: bytes) -> Message:
        """Give what appends a rule to a chain."""
        payload = text(1, TABLE) + text(2, chain) + nested(4, rule) + sealed(rule)
        return Message(Kind.NEWRULE, self.family, payload, NLM_F_CREATE | NLM_F_APPEND)


def signed(kind: int, value: int) -> bytes:
    """Pack a signed 32-bit number."""
    return number(kind, value & 0xFFFFFFFF)


def number_userdata(kind: int, value: bytes) -> bytes:
    """Pack what the kernel keeps for nft and doesn't look at."""
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


#: For ports of bridges.
BRIDGE = Ruleset(Family.BRIDGE, {**_chains(IIF), **_entries(IIF, OIF)})
#: For devices that cross no bridge: what a macvtap's VM sends leaves by the macvtap (see `guard.Guard`).
NETDEV = Ruleset(Family.NETDEV, _chains(OIF))
