"""Seals: how vifd tells its own rules from those that somebody put in their place.

The kernel keeps a rule as it was made until it is deleted, with some bytes of its maker's beside it (NFTA_RULE_USERDATA). Those
bytes are the digest of the rule here. nft shows them to nobody, and what it puts in a rule's place has none. So one can tell
whether a table is as it was made without knowing how a kernel shows expressions, and so can the next helper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from struct import unpack_from

from vifd.kernel.netlink import attribute
from vifd.kernel.nft.wire import Family, Kind, Message, NftSocket, text

_OF_VIFD = 0x76  # a type of user data that nft doesn't know (libnftnl/udata.h) and leaves alone
_DIGEST_BYTES = 8
_TABLE, _CHAIN_NAME, _CHAIN_POLICY, _RULE_CHAIN, _RULE_USERDATA = 1, 3, 5, 2, 7
_ACCEPT = 1

#: By chain, the rules in order; and whether the kernel calls it.
Chains = Mapping[str, tuple[Sequence[bytes], bool]]


def sealed(rule: bytes) -> bytes:
    """Give the attribute that a rule is sealed with.

    Args:
        rule: its expressions.
    """
    return attribute(_RULE_USERDATA, _seal(rule))


def is_whole(socket: NftSocket, family: Family, table: str, chains: Chains) -> bool:
    """Tell whether a table has just the chains and rules that it should: each rule sealed, and in its place.

    Args:
        socket: to ask through.
        family: the table's.
        table: its name.
        chains: what it should have.

    Raises:
        NftError: the kernel refuses to say.
    """
    found: dict[str, list[bytes]] = {}
    for rule in socket.dump(Message(Kind.GETRULE, family, text(1, table))):
        found.setdefault(_name(rule[_RULE_CHAIN]), []).append(rule.get(_RULE_USERDATA, b""))
    wanted = {name: list(map(_seal, rules)) for name, (rules, _) in chains.items() if rules}
    policies = {name: _ACCEPT if is_called else None for name, (_, is_called) in chains.items()}
    return found == wanted and _policies(socket, family, table) == policies


def _policies(socket: NftSocket, family: Family, table: str) -> dict[str, int | None]:
    """Give what becomes, by chain, of what no rule of it decides; the kernel tells the chains of all tables."""
    own = [chain for chain in socket.dump(Message(Kind.GETCHAIN, family, b"")) if _name(chain[_TABLE]) == table]
    return {_name(c[_CHAIN_NAME]): unpack_from(">I", c[_CHAIN_POLICY])[0] if _CHAIN_POLICY in c else None for c in own}


def _seal(rule: bytes) -> bytes:
    return bytes([_OF_VIFD, _DIGEST_BYTES]) + hashlib.sha256(rule).digest()[:_DIGEST_BYTES]


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
