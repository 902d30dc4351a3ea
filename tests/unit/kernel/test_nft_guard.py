"""What the guard tells nf_tables, in which order; on a kernel that is made up."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from vifd.kernel.netlink import attribute
from vifd.kernel.nft import sets, table, wire
from vifd.kernel.nft.elements import NOTHING, Element, guarded, limited, link_local, port_of
from vifd.kernel.nft.guard import Guard, NoGuard, open_guard
from vifd.kernel.nft.rules import goto
from vifd.kernel.nft.ruleset import BRIDGE, NETDEV
from vifd.kernel.nft.sets import SETS
from vifd.kernel.nft.wire import Kind, Message, NftError

MAC, OTHER_MAC = "52:54:00:12:34:56", "52:54:00:12:34:57"


def name_in(attribute: bytes) -> str:
    return attribute.rstrip(b"\0").decode()


class Kernel:
    """Answers as an nf_tables with at most one table: it has what was committed, by set.

    Args:
        old: whether it knows no owned tables that persist.
    """

    port_id = 1

    def __init__(self, *, old: bool = False) -> None:
        self.old, self.refuses, self.closed = old, 0, False
        self.transactions: list[list[Message]] = []
        self.table: dict[int, bytes] | None = None
        self.elements: dict[str, dict[bytes, bytes]] = {}
        self.rules: list[dict[int, bytes]] = []
        self.chains: dict[bytes, dict[int, bytes]] = {}

    @property
    def names(self) -> set[str]:
        """The chains that there are."""
        return {name_in(name) for name in self.chains}

    def close(self) -> None:
        self.closed = True

    def commit(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        if self.refuses:
            raise NftError(self.refuses, "refused")
        for message in messages:
            fields = wire.attributes_of(message.payload)
            if message.kind == Kind.NEWTABLE and self.old and fields[2] != bytes(4):
                raise NftError(errno.EOPNOTSUPP, "no such flags")
        self.transactions.append(list(messages))
        for message in messages:
            self._apply(message)

    def _apply(self, message: Message) -> None:
        fields = wire.attributes_of(message.payload)
        if message.kind == Kind.NEWTABLE:
            self.table = fields
        elif message.kind == Kind.DELTABLE:
            self.table, self.rules, self.chains, self.elements = None, [], {}, {}
        elif message.kind == Kind.NEWRULE:
            self.rules.append(fields)
        elif message.kind == Kind.NEWCHAIN:
            self.chains[fields[3]] = fields | ({5: struct.pack(">I", 1)} if 4 in fields else {})
        elif message.kind == Kind.DELCHAIN:
            del self.chains[fields[3]]
            self.rules = [rule for rule in self.rules if rule[2] != fields[3]]
        elif message.kind in (Kind.NEWSETELEM, Kind.DELSETELEM):
            of = self.elements.setdefault(name_in(fields[2]), {})
            for item in wire.list_of(fields[3]):
                if message.kind == Kind.NEWSETELEM:
                    of[item] = item
                else:
                    del of[item]  # a kernel refuses to delete what isn't there

    def ask(self, message: Message) -> dict[int, bytes] | None:
        if message.kind == Kind.GETTABLE:
            return self.table
        fields = wire.attributes_of(message.payload)
        if message.kind == Kind.GETCHAIN:
            return self.chains.get(fields[3])
        (item,) = wire.list_of(fields[3])
        return {} if item in self.elements.get(name_in(fields[2]), {}) else None

    def dump(self, message: Message) -> list[dict[int, bytes]]:
        if message.kind == Kind.GETRULE:
            return self.rules
        if message.kind == Kind.GETCHAIN:
            return list(self.chains.values())
        name = wire.attributes_of(message.payload)[2].rstrip(b"\0").decode()
        return [{3: wire.listed(list(self.elements.get(name, {})))}]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(table, "NftSocket", lambda: made)
    return made


@pytest.fixture
def guard(kernel: Kernel) -> Iterator[Guard]:
    made = Guard()
    made.open()
    kernel.transactions.clear()
    yield made
    made.close()


def kinds(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Each message's kind, and the set, chain, or object's kind, that it is about."""
    names: list[tuple[str, str]] = []
    for message in messages:
        fields: Any = wire.attributes_of(message.payload)
        is_chain = message.kind in (Kind.NEWCHAIN, Kind.DELCHAIN)
        names.append((Kind(message.kind).name, name_in(fields[3 if is_chain else 2]).partition("-")[0]))
    return names


def test_a_port_has_its_macs_and_addresses() -> None:
    elements = guarded(7, [MAC], ["10.0.0.1", "10.1.0.0/16", "fd00::1", "fd01::/64"], trunk=False)
    by_set = {element.of: element for element in elements if element.of != sets.IP6}
    assert by_set[sets.PORTS] == Element(sets.PORTS, struct.pack("=I", 7), value="prefixed")
    assert by_set[sets.MACS].key == struct.pack("=I", 7) + bytes.fromhex("5254001234560000")
    assert by_set[sets.IP4].key == struct.pack("=I", 7) + bytes([10, 0, 0, 1])
    prefix = by_set[sets.IP4_PREFIXES]
    assert (prefix.key, prefix.end) == (bytes([0, 0, 0, 7, 10, 1, 0, 0]), bytes([0, 0, 0, 7, 10, 1, 255, 255]))
    assert by_set[sets.IP6_PREFIXES].end == bytes([0, 0, 0, 7]) + bytes.fromhex("fd01000000000000") + b"\xff" * 8
    assert {element.key[4:] for element in elements if element.of == sets.IP6} == {
        bytes.fromhex("fd000000000000000000000000000001"),
        bytes.fromhex("fe80000000000000505400fffe123456"),  # its own link-local address comes with any of IPv6
    }
    assert {port_of(element) for element in elements} == {7}


def test_without_addresses_nothing_is_listed() -> None:
    ungrouped = {sets.PORTS, sets.DROPS, sets.MACS}
    assert {element.of for element in guarded(7, [MAC], [], trunk=True)} == ungrouped
    assert {element.of for element in guarded(7, [MAC], [], trunk=False)} == ungrouped | {sets.SENDERS}
    assert not any(element.of == sets.IP6 for element in guarded(7, [MAC], ["10.0.0.1"], trunk=False))


PREFIX, ADDRESS, ADDRESS6 = "10.1.0.0/16", "10.0.0.1", "fd00::1"


@pytest.mark.parametrize(
    ("addresses", "chain", "passing"),
    [
        ([], "anywhere", {sets.SENDERS}),
        ([ADDRESS], "listed", {sets.SENDERS4}),
        ([ADDRESS, ADDRESS6], "listed", {sets.SENDERS4, sets.SENDERS6}),
        ([PREFIX], "prefixed", {sets.SENDERS}),
        ([ADDRESS, PREFIX], "prefixed", {sets.SENDERS, sets.SENDERS4}),
    ],
)
def test_what_passes_at_once_is_what_a_port_may_send_from(addresses: list[str], chain: str, passing: set[str]) -> None:
    elements = guarded(7, [MAC], addresses, trunk=False)
    assert Element(sets.PORTS, struct.pack("=I", 7), value=chain) in elements
    quick = {element for element in elements if element.of in {sets.SENDERS, sets.SENDERS4, sets.SENDERS6}}
    assert {element.of for element in quick} == passing
    limited_port = guarded(7, [MAC], addresses, trunk=False, is_limited=True)
    assert elements ^ limited_port == {
        Element(sets.PORTS, struct.pack("=I", 7), value=way) for way in (chain, f"limited_{chain}")
    }
    sources = {element.key[12:] for element in quick if element.of == sets.SENDERS4}
    assert sources == {bytes([10, 0, 0, 1]) for address in addresses if address == ADDRESS}
    assert {element.key[:10] for element in quick} == {struct.pack("=I", 7) + bytes.fromhex("525400123456")}


def test_what_lets_addresses_pass_is_the_same_beside_prefixes() -> None:
    listed, prefixed = BRIDGE.chains["listed"], BRIDGE.chains["prefixed"]
    assert prefixed[: len(listed) - 1] == listed[:-1]
    assert {chain[-1] for chain in (BRIDGE.chains["anywhere"], listed, prefixed)} == {goto("access")}


def test_on_a_trunk_nothing_passes_at_once() -> None:
    elements = guarded(7, [MAC], [ADDRESS, PREFIX], trunk=True)
    assert not any(element.of in {sets.SENDERS, sets.SENDERS4, sets.SENDERS6} for element in elements)


@pytest.mark.parametrize("chain", ["trunk", "anywhere", "listed", "prefixed"])
def test_limits_come_before_the_guard(chain: str) -> None:
    rules = BRIDGE.chains[f"limited_{chain}"]
    assert rules[:-1] == BRIDGE.chains["limited"]
    assert rules[-1] == goto(chain)


def test_a_prefix_of_one_address_is_an_address() -> None:
    assert guarded(7, [MAC], ["10.0.0.1/32"], trunk=False) == guarded(7, [MAC], ["10.0.0.1"], trunk=False)


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        (MAC, "fe80::5054:ff:fe12:3456"),
        ("02:00:00:00:00:01", "fe80::ff:fe00:1"),
        ("00:11:22:33:44:55", "fe80::211:22ff:fe33:4455"),
    ],
)
def test_a_link_local_address_derives_from_the_mac(mac: str, address: str) -> None:
    assert link_local(mac) == address


def test_what_differs_is_one_transaction_with_removals_first(guard: Guard, kernel: Kernel) -> None:
    guard.put({7: guarded(7, [MAC], ["10.0.0.1"], trunk=False), 8: guarded(8, [OTHER_MAC], [], trunk=False)})
    guard.put({7: guarded(7, [MAC], ["10.0.0.2"], trunk=False), 8: NOTHING})
    assert len(kernel.transactions) == 2
    changed = kinds(kernel.transactions[1])
    assert sorted(changed[:-2]) == [("DELSETELEM", of) for of in ("drops", "ip4", "macs", "ports", "senders", "senders4")]
    assert sorted(changed[-2:]) == [("NEWSETELEM", of) for of in ("ip4", "senders4")]
    assert guard.ports == {7}


def test_the_same_again_is_no_transaction(guard: Guard, kernel: Kernel) -> None:
    wanted = {7: guarded(7, [MAC], ["10.0.0.1"], trunk=False)}
    guard.put(wanted)
    guard.put(wanted)
    assert len(kernel.transactions) == 1


def test_a_limit_is_made_before_what_leads_to_it_and_goes_after_it(guard: Guard, kernel: Kernel) -> None:
    slow, fast = (frozenset([limited(7, sets.PPS_FROM_VM, rate, 64)]) for rate in (100, 200))
    guard.put({7: slow})
    guard.put({7: fast})
    name = sets.PPS_FROM_VM
    assert kinds(kernel.transactions[0]) == [("NEWOBJ", name), ("NEWSETELEM", name)]
    assert kinds(kernel.transactions[1]) == [("DELSETELEM", name), ("DELOBJ", name), ("NEWOBJ", name), ("NEWSETELEM", name)]


def test_the_kernel_calls_a_chain_while_a_port_needs_it(guard: Guard, kernel: Kernel) -> None:
    assert not {"prerouting", "postrouting"} & kernel.names
    some, others = guarded(7, [MAC], [], trunk=False), guarded(8, [OTHER_MAC], [], trunk=False)
    incoming = frozenset([limited(7, sets.PPS_TO_VM, 100, 64)])
    guard.put({7: some | incoming, 8: others})
    assert kinds(kernel.transactions[-1])[-5:-3] == [("NEWCHAIN", "prerouting"), ("NEWRULE", "prerouting")]
    assert kinds(kernel.transactions[-1])[-3:] == [("NEWCHAIN", "postrouting"), *[("NEWRULE", "postrouting")] * 2]
    guard.put({7: some})
    assert kinds(kernel.transactions[-1])[0] == ("DELCHAIN", "postrouting")
    guard.put({7: NOTHING})
    assert "prerouting" in kernel.names
    guard.put({8: NOTHING, 9: guarded(9, [MAC], [], trunk=False)})
    assert "prerouting" in kernel.names
    guard.put({9: NOTHING})
    assert not {"prerouting", "postrouting"} & kernel.names
    assert not guard.restore()


def test_a_refused_change_leaves_the_hooks_as_they_were(guard: Guard, kernel: Kernel) -> None:
    wanted = {7: guarded(7, [MAC], [], trunk=False)}
    kernel.refuses = errno.ENOMEM
    with pytest.raises(NftError):
        guard.put(wanted)
    kernel.refuses = 0
    guard.put(wanted)
    assert "prerouting" in kernel.names


def test_what_is_refused_is_not_remembered(guard: Guard, kernel: Kernel) -> None:
    before = {7: guarded(7, [MAC], [], trunk=False)}
    guard.put(before)
    kernel.refuses = errno.ENOMEM
    with pytest.raises(NftError):
        guard.put({7: NOTHING, 8: guarded(8, [OTHER_MAC], [], trunk=False)})
    kernel.refuses = 0
    assert guard.ports == {7}
    assert guard.has(7, before[7])


def test_many_elements_are_in_messages_that_they_fit_in(guard: Guard, kernel: Kernel) -> None:
    guard.put({index: guarded(index, [MAC], [], trunk=False) for index in range(1, 1001)})
    (messages,) = kernel.transactions
    assert max(len(message.payload) for message in messages) < 1 << 16
    assert len(kernel.elements[sets.MACS]) == 1000


def test_a_port_that_lost_an_element_has_not_what_it_should(guard: Guard, kernel: Kernel) -> None:
    wanted = guarded(7, [MAC], ["10.0.0.1"], trunk=False)
    guard.put({7: wanted})
    assert guard.has(7, wanted)
    assert not guard.has(7, NOTHING)
    kernel.elements[sets.IP4].clear()
    assert not guard.has(7, wanted)


def test_the_next_helper_takes_over_what_the_first_had(guard: Guard, kernel: Kernel) -> None:
    wanted = guarded(7, [MAC], ["10.0.0.1", "10.1.0.0/16"], trunk=False) | {limited(7, sets.PPS_TO_VM, 100, 64)}
    guard.put({7: wanted})
    kernel.transactions.clear()
    second = Guard()
    second.open()
    assert second.has(7, wanted)
    assert [[message.kind for message in messages] for messages in kernel.transactions] == [[Kind.NEWTABLE]]


def test_another_versions_table_is_replaced_with_all_that_it_has(guard: Guard, kernel: Kernel) -> None:
    wanted = guarded(7, [MAC], ["10.0.0.1"], trunk=False)
    guard.put({7: wanted})
    assert kernel.table is not None
    kernel.table = kernel.table | {6: b"\0\x05vifd\0"}
    kernel.transactions.clear()
    second = Guard()
    second.open()
    (messages,) = kernel.transactions
    assert [message.kind for message in messages[:2]] == [Kind.DELTABLE, Kind.NEWTABLE]
    assert second.has(7, wanted)


@pytest.mark.parametrize("damage", ["table", "rule", "other rule", "order", "chain", "policy", "element", "added"])
def test_what_somebody_changed_is_put_back_in_one_transaction(guard: Guard, kernel: Kernel, damage: str) -> None:
    wanted = guarded(7, [MAC], ["10.0.0.1"], trunk=False)
    guard.put({7: wanted})
    assert not guard.restore()
    if damage == "table":
        kernel.table, kernel.elements, kernel.rules, kernel.chains = None, {}, [], {}
    elif damage == "rule":
        kernel.rules.pop()
    elif damage == "other rule":
        kernel.rules[3].pop(7)
    elif damage == "order":
        kernel.rules.reverse()
    elif damage == "chain":
        kernel.chains[b"another\0"] = {1: b"vifd\0", 3: b"another\0", 5: struct.pack(">I", 0)}
    elif damage == "policy":
        kernel.chains[b"prerouting\0"][5] = struct.pack(">I", 0)
    elif damage == "element":
        kernel.elements[sets.MACS].clear()
    else:
        kernel.elements[sets.MACS] |= dict.fromkeys([wire.nested(1, attribute(1, struct.pack("=I", 9) + bytes(8)))], b"")
    kernel.transactions.clear()
    assert guard.restore()
    assert len(kernel.transactions) == 1
    assert guard.has(7, wanted)
    assert not guard.restore()


def test_a_kernel_without_owned_tables_gets_a_plain_one(kernel: Kernel) -> None:
    kernel.old = True
    made = open_guard()
    assert kernel.table is not None
    assert kernel.table[2] == bytes(4)
    made.put({7: guarded(7, [MAC], [], trunk=False)})


def test_a_table_that_is_refused_leaves_the_socket_to_the_one_that_it_shares_it_with(kernel: Kernel, guard: Guard) -> None:
    kernel.refuses = errno.EOPNOTSUPP
    assert isinstance(open_guard(NETDEV, made=lambda: Guard(NETDEV, shared=guard)), NoGuard)
    assert not kernel.closed
    guard.close()
    assert kernel.closed


def test_every_chain_is_made_before_the_rules_that_go_there() -> None:
    made = set()
    for message in BRIDGE.messages(0):
        fields = wire.attributes_of(message.payload)
        if message.kind == Kind.NEWCHAIN:
            made.add(fields[3])
    assert made == {name.encode() + b"\0" for name in BRIDGE.chains}
    assert not made & {name.encode() + b"\0" for name in BRIDGE.hooks}
    assert len(SETS) == len([m for m in BRIDGE.messages(0) if m.kind == Kind.NEWSET])
