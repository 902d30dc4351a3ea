"""The table of networks with NAT: what of their guests' packets the host forwards, and under which address.

The number of rules doesn't grow with the number of networks and public addresses: both are elements of sets and maps. A packet
that neither comes from a bridge with NAT nor goes to one meets a few lookups and nothing else: other forwarding is as it was.

    prerouting, output ── public ─▶ private            (to public addresses)
    forward ── to a bridge ──▶ inward ── return or drop
            └─ from a bridge ─▶ outward ─▶ away ── return or drop
    postrouting ── private ─▶ public, else masquerade  (from guests)

`nft list table inet vifd_nat` shows it, with a counter for each reason to drop something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from struct import pack
from typing import NamedTuple

from vifd.kernel.netlink import attribute
from vifd.kernel.nft.rules import (
    CT_STATE,
    CT_STATUS,
    IIFNAME,
    NFPROTO,
    OIFNAME,
    count,
    done,
    drop,
    equal,
    from_mapped,
    goto,
    has_any,
    jump,
    mapped,
    masquerade,
    member,
    network,
    to_mapped,
)
from vifd.kernel.nft.seals import sealed
from vifd.kernel.nft.wire import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    Family,
    Kind,
    Message,
    listed,
    nested,
    number,
    text,
)

TABLE = "vifd_nat"
FAMILY = Family.INET

# --- sets and maps; those with addresses are one for each family: the name, and 4 or 6

BRIDGES, HAIRPINS, CLOSED, FREE, WAYS = "bridges", "hairpins", "closed", "free", "ways"
SUBNETS, OWN, PUBLICS, PRIVATES = "subnets", "own", "publics", "privates"

_INTERVAL, _MAP, _CONCAT = 0x04, 0x08, 0x80  # NFT_SET_*
_IFNAME, _ADDRESS = 41, {4: 7, 6: 8}  # nft's own numbers of data types, with which it prints elements
_LENGTHS = {4: 4, 6: 16}
_HOST_ORDER, _NETWORK_ORDER = (bytes([0, 4]) + pack("=I", order) for order in (1, 2))  # NFTNL_UDATA_SET_KEYBYTEORDER


class SetSpec(NamedTuple):
    """A set or map.

    Args:
        fields: nft's types of its key's parts.
        lengths: their lengths in bytes.
        flags: NFT_SET_*.
    """

    fields: tuple[int, ...]
    lengths: tuple[int, ...]
    flags: int = 0


def _address_sets(version: int) -> dict[str, SetSpec]:
    address, length = _ADDRESS[version], _LENGTHS[version]
    return {
        f"{SUBNETS}{version}": SetSpec((address,), (length,), _INTERVAL),
        f"{OWN}{version}": SetSpec((_IFNAME, address), (16, length), _INTERVAL | _CONCAT),
        f"{PUBLICS}{version}": SetSpec((address,), (length,), _MAP),
        f"{PRIVATES}{version}": SetSpec((address,), (length,), _MAP),
    }


SETS: Mapping[str, SetSpec] = {
    BRIDGES: SetSpec((_IFNAME,), (16,)),
    CLOSED: SetSpec((_IFNAME,), (16,)),
    FREE: SetSpec((_IFNAME,), (16,)),
    HAIRPINS: SetSpec((_IFNAME, _IFNAME), (16, 16), _CONCAT),
    WAYS: SetSpec((_IFNAME, _IFNAME), (16, 16), _CONCAT),
    **_address_sets(4),
    **_address_sets(6),
}

#: Why something was dropped.
COUNTERS = ("inward", "source", "way")

# --- rules

_PROTOCOL, _FROM, _TO = {4: 2, 6: 10}, {4: network(12, 4), 6: network(8, 16)}, {4: network(16, 4), 6: network(24, 16)}
_ESTABLISHED_OR_RELATED = 2 | 4  # NF_CT_STATE_BIT, linux/netfilter/nf_conntrack_common.h
_DESTINATION_TRANSLATED = 0x20  # IPS_DST_NAT


class Chain(NamedTuple):
    """A chain: its rules, and for one that the kernel calls, where: hook, priority, type."""

    rules: tuple[bytes, ...]
    hook: int | None = None
    priority: int = 0
    kind: str = "filter"


def _of(version: int) -> bytes:
    return equal(NFPROTO, bytes([_PROTOCOL[version]]))


def _to_privates(version: int) -> bytes:
    return _of(version) + to_mapped(f"{PUBLICS}{version}", _PROTOCOL[version], _TO[version])


def _from_guests(version: int) -> tuple[bytes, ...]:
    """Give the rules that let guests' packets have an address of the host's, or their public one."""
    this, source = _of(version), _FROM[version]
    # A guest that speaks to a public address of its own network: the answer has to come back through the host. With
    # br_netfilter a bridge forwards by the translated address, and never to where a frame came from: not to the guest itself.
    hairpin = this + member(BRIDGES, OIFNAME) + has_any(CT_STATUS, _DESTINATION_TRANSLATED)
    hairpin += member(f"{OWN}{version}", OIFNAME, source)
    public = from_mapped(f"{PRIVATES}{version}", _PROTOCOL[version], source)
    return (
        hairpin + public,
        hairpin + masquerade(),
        this + member(BRIDGES, OIFNAME) + done(),
        this + member(f"{SUBNETS}{version}", _TO[version]) + done(),
        this + public,
        this + member(f"{SUBNETS}{version}", source) + masquerade(),
    )


def _is_answer() -> bytes:
    return has_any(CT_STATE, _ESTABLISHED_OR_RELATED)


CHAINS: Mapping[str, Chain] = {
    # The device of a packet is a bridge's own here also for frames that br_netfilter shows: from it to itself.
    "inward": Chain(
        (
            _is_answer() + done(),
            member(HAIRPINS, IIFNAME, OIFNAME) + done(),
            *(
                _of(version) + has_any(CT_STATUS, _DESTINATION_TRANSLATED) + mapped(f"{PRIVATES}{version}", _TO[version]) + done()
                for version in (4, 6)
            ),
            count("inward") + drop(),
        )
    ),
    "away": Chain(
        (
            member(BRIDGES, OIFNAME) + done(),  # `inward` has let it pass
            member(CLOSED, OIFNAME) + count("way") + drop(),
            member(FREE, IIFNAME) + done(),
            member(WAYS, IIFNAME, OIFNAME) + done(),
            count("way") + drop(),
        )
    ),
    "outward": Chain(
        (
            _is_answer() + done(),
            member(HAIRPINS, IIFNAME, OIFNAME) + done(),
            *(_of(version) + member(f"{OWN}{version}", IIFNAME, _FROM[version]) + goto("away") for version in (4, 6)),
            count("source") + drop(),
        )
    ),
    "forward": Chain((member(BRIDGES, OIFNAME) + jump("inward"), member(BRIDGES, IIFNAME) + jump("outward")), 2, 0),
    "prerouting": Chain((_to_privates(4), _to_privates(6)), 0, -100, "nat"),
    "output": Chain((_to_privates(4), _to_privates(6)), 3, -100, "nat"),
    "postrouting": Chain((*_from_guests(4), *_from_guests(6)), 4, 100, "nat"),
}

VERSION = hashlib.sha256(repr((list(CHAINS.items()), list(SETS.items()), COUNTERS)).encode()).hexdigest()[:16]


class Element(NamedTuple):
    """An element of a set or map.

    Args:
        of: the set.
        key: as the kernel has it.
        end: the last key of a range, where keys have parts.
        value: a map's.
        is_end: whether it is the first key after a range, where keys have no parts.
    """

    of: str
    key: bytes
    end: bytes = b""
    value: bytes = b""
    is_end: bool = False


# --- messages


def messages(table_flags: int) -> list[Message]:
    """Give what makes the table, in order, but for its elements."""
    made = [table(table_flags)]
    made += [_counter(name) for name in COUNTERS]
    made += [_set(identity, name, spec) for identity, (name, spec) in enumerate(SETS.items(), 1)]
    made += [_chain(name, chain) for name, chain in CHAINS.items()]
    made += [_rule(name, rule) for name, chain in CHAINS.items() for rule in chain.rules]
    return made


def table(flags: int) -> Message:
    """Give what makes the table itself; its comment is the ruleset's version."""
    comment = f"vifd {VERSION}".encode() + b"\0"
    userdata = attribute(6, bytes([0, len(comment)]) + comment)  # NFTNL_UDATA_TABLE_COMMENT
    return Message(Kind.NEWTABLE, FAMILY, text(1, TABLE) + number(2, flags) + userdata, NLM_F_CREATE)


def pack_element(element: Element) -> bytes:
    """Pack an element as sets have it."""
    packed = number(3, 1) if element.is_end else b""  # NFT_SET_ELEM_INTERVAL_END
    packed += nested(1, attribute(1, element.key))
    if element.end:
        packed += nested(10, attribute(1, element.end))
    if element.value:
        packed += nested(2, attribute(1, element.value))
    return packed


def _counter(name: str) -> Message:
    return Message(Kind.NEWOBJ, FAMILY, text(1, TABLE) + text(2, name) + number(3, 1) + nested(4), NLM_F_CREATE)


def _set(identity: int, name: str, spec: SetSpec) -> Message:
    kind = 0
    for field in spec.fields:
        kind = kind << 6 | field
    payload = text(1, TABLE) + text(2, name) + number(3, spec.flags) + number(4, kind) + number(5, sum(spec.lengths))
    payload += number(10, identity)
    if len(spec.fields) == 1:
        payload += attribute(13, _HOST_ORDER if spec.fields[0] == _IFNAME else _NETWORK_ORDER)
    if spec.flags & _MAP:
        payload += number(6, spec.fields[0]) + number(7, spec.lengths[0])
    if spec.flags & _CONCAT:
        payload += nested(9, nested(2, listed([number(1, length) for length in spec.lengths])))
    return Message(Kind.NEWSET, FAMILY, payload, NLM_F_CREATE)


def _chain(name: str, chain: Chain) -> Message:
    payload = text(1, TABLE) + text(3, name)
    if chain.hook is not None:
        payload += nested(4, number(1, chain.hook), number(2, chain.priority & 0xFFFFFFFF)) + number(5, 1) + text(7, chain.kind)
    return Message(Kind.NEWCHAIN, FAMILY, payload, NLM_F_CREATE)


def _rule(chain: str, rule: bytes) -> Message:
    payload = text(1, TABLE) + text(2, chain) + nested(4, rule) + sealed(rule)
    return Message(Kind.NEWRULE, FAMILY, payload, NLM_F_CREATE | NLM_F_APPEND)
