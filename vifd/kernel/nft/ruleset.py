"""The guard's table: what a VM may send, and how much.

The number of rules doesn't grow with the number of ports: what differs from port to port are elements of sets and maps, keyed by
the port's interface index. A port that is in no set is none of the guard's business.

    prerouting ── ports ──▶ anywhere · listed · prefixed ──▶ access ──▶ sender ──▶ arp · rarp · ip4 · ip6 ──▶ icmp6
                        ├─▶ trunk ──────────────────────────────────────┘
                        └─▶ limited, limited_anywhere, … ── pps_from_vm, bps_from_vm ──▶ drop; else as above

    postrouting ── pps_to_vm, bps_to_vm ──▶ drop

Each way ends with "return" or "accept", or in `drop`. What can't be read as what it says it is, is dropped: a rule that asks for
bytes that aren't there doesn't match, so the rules that let pass ask for them.

`anywhere`, `listed` and `prefixed` are there for speed alone: they let the commonest frames pass, and what they don't know goes
the whole way. Of all that a rule does, copying from the link-layer header costs most, so they do it once: a MAC and the type that
follows it are one part of a sender's element (nft prints the MAC alone).

`nft list table bridge vifd` shows it, with a counter for each reason and one for each port (set `drops`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from vifd.kernel.nft.chains import chains_of, over_limits
from vifd.kernel.nft.rules import IIF, OIF, verdict_of
from vifd.kernel.nft.seals import sealed
from vifd.kernel.nft.sets import COUNTERS, PORTS, SETS, TO_VM, SetSpec, userdata
from vifd.kernel.nft.wire import NLM_F_APPEND, NLM_F_CREATE, Family, Kind, Message, nested, number, text

TABLE = "vifd"


class Hook(NamedTuple):
    """A chain that the kernel calls, while a port has an element that it is there for: a hook costs every frame of the host.

    Args:
        rules: what is in it.
        number: where it is hooked (linux/netfilter_bridge.h; linux/netfilter.h, enum nf_dev_hooks).
        needed_for: the sets.
        priority: before or after whom else.
    """

    rules: tuple[bytes, ...]
    number: int
    needed_for: frozenset[str]
    priority: int = 0


class Ruleset(NamedTuple):
    """All of a table but its elements.

    Args:
        family: the table's.
        chains: the rules of the chains that others lead to, by name.
        hooks: the chains that the kernel calls; where a device is named, each device has its own (see `devices`).
    """

    family: Family
    chains: Mapping[str, tuple[bytes, ...]]
    hooks: Mapping[str, Hook]

    @property
    def version(self) -> str:
        """What tells this ruleset from another vifd's."""
        hooks = sorted((name, hook._replace(needed_for=frozenset())) for name, hook in self.hooks.items())
        text_of = repr((sorted(self.chains.items()), hooks, sorted(SETS.items()), COUNTERS))
        return hashlib.sha256(text_of.encode()).hexdigest()[:16]

    def messages(self, table_flags: int) -> list[Message]:
        """Give what makes the table without hooks, in order."""
        made = [self.table(table_flags)]
        made += [self._counter(name) for name in COUNTERS]
        made += [self._set(identity, name, spec) for identity, (name, spec) in enumerate(SETS.items(), 1)]
        made += [self._message(Kind.NEWCHAIN, text(3, name)) for name in self.chains]
        made += [self._rule(name, rule) for name, rules in self.chains.items() for rule in rules]
        return made

    def hook(self, name: str, hook: Hook, device: str = "") -> list[Message]:
        """Give what makes a chain that the kernel calls.

        Args:
            name: the chain's.
            hook: what it is.
            device: whose frames it sees, in a family where chains are hooked to devices.
        """
        where = number(1, hook.number) + number(2, hook.priority & 0xFFFFFFFF) + (text(3, device) if device else b"")
        made = self._message(Kind.NEWCHAIN, text(3, name) + nested(4, where) + number(5, 1) + text(7, "filter"))
        return [made, *(self._rule(name, rule) for rule in hook.rules)]

    def unhook(self, name: str) -> Message:
        """Give what deletes a chain with its rules."""
        return self._message(Kind.DELCHAIN, text(3, name))

    def table(self, flags: int) -> Message:
        """Give what makes the table itself; its comment is the ruleset's version."""
        comment = f"vifd {self.version}".encode() + b"\0"
        packed = bytes([0, len(comment)]) + comment  # NFTNL_UDATA_TABLE_COMMENT
        return self._message(Kind.NEWTABLE, number(2, flags) + userdata(6, packed))

    def _counter(self, name: str) -> Message:
        return self._message(Kind.NEWOBJ, text(2, name) + number(3, 1) + nested(4))

    def _set(self, identity: int, name: str, spec: SetSpec) -> Message:
        return self._message(Kind.NEWSET, text(2, name) + spec.description() + number(10, identity))

    def _rule(self, chain: str, rule: bytes) -> Message:
        return self._message(Kind.NEWRULE, text(2, chain) + nested(4, rule) + sealed(rule), NLM_F_APPEND)

    def _message(self, kind: Kind, payload: bytes, flags: int = 0) -> Message:
        return Message(kind, self.family, text(1, TABLE) + payload, NLM_F_CREATE | flags)


#: For ports of bridges: frames from a VM enter by its port, those to one leave by it.
BRIDGE = Ruleset(
    Family.BRIDGE,
    chains_of(IIF, is_group_known=True),
    {
        "prerouting": Hook(
            (verdict_of(PORTS, IIF),), 0, frozenset({PORTS}), -350
        ),  # NF_BR_PRI_NAT_DST_BRIDGED - 50: before others
        "postrouting": Hook(over_limits(TO_VM, OIF), 4, TO_VM, 350),  # after others
    },
)
#: For devices that cross no bridge: what a macvtap's VM sends leaves by the macvtap.
NETDEV = Ruleset(
    Family.NETDEV,
    chains_of(OIF, is_group_known=False),
    {"out": Hook((verdict_of(PORTS, OIF),), 1, frozenset({PORTS})), "in": Hook(over_limits(TO_VM, IIF), 0, TO_VM)},
)
