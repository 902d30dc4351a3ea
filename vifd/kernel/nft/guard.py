"""The guard's table in the kernel, and what it has of each port.

The helper is the only one that changes it, so it knows without asking what is there: a change of a port is the difference to what
it has, in one transaction. Where the kernel can (Linux 6.9), the helper owns the table: another program's `nft flush ruleset`
doesn't touch it, and it outlives the helper. Elsewhere others' changes are undone by `restore`.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from struct import pack, unpack_from
from typing import NamedTuple

from vifd.kernel.nft import ruleset, seals, wire
from vifd.kernel.nft.rules import Verdict, verdict_data
from vifd.kernel.nft.ruleset import SETS, TABLE, Ruleset
from vifd.kernel.nft.table import PERSIST, Table, open_table
from vifd.kernel.nft.wire import (
    NLM_F_CREATE,
    Kind,
    Message,
    NftError,
    attribute,
    listed,
    nested,
    number,
    number64,
    text,
)

_LIMIT_OBJECT, _LIMIT_PACKETS, _LIMIT_BYTES, _LIMIT_OVER = 4, 0, 1, 1


class Element(NamedTuple):
    """An element of a set or map.

    Args:
        of: the set.
        key: as the kernel has it, the interface's index first.
        end: the last key of a range; empty: it is no range.
        value: a map's: the chain, or the limit's name, which says all of it.
    """

    of: str
    key: bytes
    end: bytes = b""
    value: str = ""


Elements = frozenset[Element]
NOTHING: Elements = frozenset()


def guarded(ifindex: int, macs: Iterable[str], addresses: Iterable[str], *, trunk: bool) -> Elements:
    """Give what keeps a port to its MACs and addresses.

    Args:
        ifindex: the port.
        macs: the MACs that its VM may send with.
        addresses: the addresses and prefixes that it may send from; none: any.
        trunk: whether 802.1Q tags pass.
    """
    port = pack("=I", ifindex)
    elements = {
        Element(ruleset.PORTS, port, value="trunk" if trunk else "access"),
        Element(ruleset.DROPS, port),
        *(Element(ruleset.MACS, port + bytes.fromhex(mac.replace(":", "")) + bytes(2)) for mac in macs),
    }
    networks = [ipaddress.ip_network(address) for address in addresses]
    if networks:
        elements.add(Element(ruleset.LISTED, port))
    if any(network.version == 6 for network in networks):
        networks += [ipaddress.ip_network(link_local(mac)) for mac in macs]
    return frozenset(elements | {_address(ifindex, network) for network in networks})


def limited(ifindex: int, of: str, rate: int, burst: int) -> Element:
    """Give what limits a port.

    Args:
        ifindex: the port.
        of: the map.
        rate: packets or bytes a second.
        burst: packets or bytes; of bytes, a second's worth comes on top (net/netfilter/nft_limit.c).
    """
    return Element(of, pack("=I", ifindex), value=f"{of}-{ifindex}-{rate}-{burst}")


def link_local(mac: str) -> str:
    """Give the link-local address that derives from a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _address(ifindex: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Element:
    first, last = network.network_address.packed, network.broadcast_address.packed
    if first == last:
        return Element(ruleset.IP4 if network.version == 4 else ruleset.IP6, pack("=I", ifindex) + first)
    # Where there are ranges, numbers are compared byte by byte from the left.
    port = pack(">I", ifindex)
    of = ruleset.IP4_PREFIXES if network.version == 4 else ruleset.IP6_PREFIXES
    return Element(of, port + first, port + last)


def port_of(element: Element) -> int:
    """Give the index of the interface that an element is about."""
    index: int = unpack_from(">I" if SETS[element.of].is_interval else "=I", element.key)[0]
    return index


class NoGuard:
    """In the place of a Guard where the kernel has no nftables: it refuses to guard anything.

    Args:
        reason: why there is none, a sentence.
    """

    port_id = 0
    ports: frozenset[int] = frozenset()

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def put(self, ports: Mapping[int, Elements]) -> None:
        """Do nothing where there is nothing to do.

        Raises:
            NftError: a port is to have something.
        """
        if any(ports.values()):
            raise NftError(errno.EOPNOTSUPP, self._reason)

    def has(self, ifindex: int, wanted: Elements) -> bool:  # noqa: ARG002  Guard's signature
        """Tell whether a port has what it should: it has nothing."""
        return not wanted

    def restore(self) -> bool:
        """Nobody can have changed what isn't there."""
        return False

    def close(self) -> None:
        """Nothing is open."""


def open_guard(
    rules: Ruleset = ruleset.BRIDGE, *, owned: bool = True, made: Callable[[], Guard] | None = None
) -> Guard | NoGuard:
    """Open a table; see Guard.

    Args:
        rules: the table's ruleset.
        owned: see Guard.
        made: makes another kind of guard.

    Raises:
        NftError: the kernel has nftables and refuses.
    """
    guard = open_table(made or (lambda: Guard(rules, owned=owned)))
    if guard is None:
        name = rules.family.name.lower()
        return NoGuard(f"this kernel has no nftables for family {name} (CONFIG_NF_TABLES, CONFIG_NF_TABLES_{name.upper()})")
    return guard


class Guard(Table):
    """One table, and what it has of each port. Any thread may call.

    Args:
        rules: the table's ruleset.
        owned: whether to own the table where the kernel can; without, other programs may change it.
        shared: another guard, to use its socket: so events tell of both that vifd caused them.
    """

    def __init__(self, rules: Ruleset = ruleset.BRIDGE, *, owned: bool = True, shared: Guard | None = None) -> None:
        super().__init__(rules.family, TABLE, owned=owned, shared=shared)
        self._rules = rules
        self._ports: dict[int, Elements] = {}

    @property
    def ports(self) -> frozenset[int]:
        """The interfaces that the table has something of."""
        return frozenset(self._ports)

    def open(self) -> None:
        """Make the table, or take over an earlier helper's with all that it has: no port is without for a moment.

        Raises:
            NftError: the kernel refuses; EOPNOTSUPP: it has no nf_tables, or not for this family.
        """
        with self._lock:
            found = self._find_table()
            self._ports = {} if found is None else self._read_ports()
            self._own(lambda flags: self._taking(found, flags))

    def put(self, ports: Mapping[int, Elements]) -> None:
        """Let ports have what is given and nothing else, all in one transaction.

        Args:
            ports: by interface index; NOTHING: the guard has nothing to do with it (any more).

        Raises:
            NftError: the kernel refuses; nothing has changed.
        """
        with self._lock:
            removed, added = set[Element](), set[Element]()
            for ifindex, wanted in ports.items():
                present = self._ports.get(ifindex, NOTHING)
                removed |= present - wanted
                added |= wanted - present
            self._socket.commit([*self._removals(removed), *self._additions(added)])
            for ifindex, wanted in ports.items():
                if wanted:
                    self._ports[ifindex] = wanted
                else:
                    self._ports.pop(ifindex, None)

    def has(self, ifindex: int, wanted: Elements) -> bool:
        """Tell, by asking the kernel, whether a port has what it should."""
        with self._lock:
            return self._ports.get(ifindex, NOTHING) == wanted and all(self._is_there(element) for element in wanted)

    def restore(self) -> bool:
        """Put the table back as it was if somebody has changed it; tell whether somebody had.

        Raises:
            NftError: the kernel refuses.
        """
        with self._lock:
            found = self._find_table()
            if found is not None and self._is_whole(found) and self._read_ports() == self._ports:
                return False
            self._socket.commit(self._replacing(found, self._flags))
            return True

    # --- inside

    def _is_current(self, table: dict[int, bytes]) -> bool:
        return self._rules.version.encode() in table.get(6, b"")

    def _is_whole(self, table: dict[int, bytes]) -> bool:
        """Tell whether the table has the rules that it was made with."""
        return self._is_current(table) and seals.is_whole(self._socket, self._rules.family, TABLE, self._chains())

    def _chains(self) -> seals.Chains:
        return {name: (chain.rules, chain.hook is not None) for name, chain in self._rules.chains.items()}

    def _taking(self, found: dict[int, bytes] | None, flags: int) -> list[Message]:
        is_persistent = found is not None and bool(unpack_from(">I", found.get(2, bytes(4)))[0] & PERSIST)
        if found is not None and self._is_whole(found) and is_persistent == bool(flags & PERSIST):
            return [self._rules.table(flags)]
        return self._replacing(found, flags)

    def _replacing(self, found: dict[int, bytes] | None, flags: int) -> list[Message]:
        """Give what makes the table anew with all that it has: each packet meets the old one or the new one."""
        return [*([] if found is None else [self._deletion()]), *self._rules.messages(flags), *self._contents()]

    def _contents(self) -> list[Message]:
        """Give what makes all that the table has of its ports."""
        return self._additions(element for elements in self._ports.values() for element in elements)

    def _read_ports(self) -> dict[int, Elements]:
        ports: dict[int, set[Element]] = {}
        for name in SETS:
            for element in (_parse(name, item) for item in self._read_set(name)):
                ports.setdefault(port_of(element), set()).add(element)
        return {ifindex: frozenset(elements) for ifindex, elements in ports.items()}

    def _is_there(self, element: Element) -> bool:
        payload = text(1, TABLE) + text(2, element.of) + nested(3, listed([_pack(element)]))
        return self._socket.ask(Message(Kind.GETSETELEM, self._rules.family, payload)) is not None

    def _additions(self, elements: Iterable[Element]) -> list[Message]:
        by_set = _by_set(elements)
        limits = [self._limit(element) for of, some in by_set.items() if SETS[of].is_limit for element in some]
        return limits + self._packed(Kind.NEWSETELEM, by_set)

    def _removals(self, elements: Iterable[Element]) -> list[Message]:
        by_set = _by_set(elements)
        limits = [element for of, some in by_set.items() if SETS[of].is_limit for element in some]
        objects = [Message(Kind.DELOBJ, self._rules.family, _object(element)) for element in limits]
        return self._packed(Kind.DELSETELEM, by_set) + objects

    def _packed(self, kind: Kind, by_set: Mapping[str, list[Element]]) -> list[Message]:
        return [message for of, some in by_set.items() for message in self._elements(kind, of, list(map(_pack, some)))]

    def _limit(self, element: Element) -> Message:
        rate, burst = (int(part) for part in element.value.split("-")[2:])
        counts = _LIMIT_PACKETS if element.of in {ruleset.PPS_FROM_VM, ruleset.PPS_TO_VM} else _LIMIT_BYTES
        limit = number64(1, rate) + number64(2, 1) + number(3, burst) + number(4, counts) + number(5, _LIMIT_OVER)
        return Message(Kind.NEWOBJ, self._rules.family, _object(element) + nested(4, limit), NLM_F_CREATE)


def _by_set(elements: Iterable[Element]) -> dict[str, list[Element]]:
    grouped: dict[str, list[Element]] = {}
    for element in elements:
        grouped.setdefault(element.of, []).append(element)
    return grouped


def _object(element: Element) -> bytes:
    return text(1, TABLE) + text(2, element.value) + number(3, _LIMIT_OBJECT)


def _pack(element: Element) -> bytes:
    packed = nested(1, attribute(1, element.key))
    if element.end:
        packed += nested(10, attribute(1, element.end))
    if SETS[element.of].is_limit:
        packed += text(9, element.value)
    elif element.value:
        packed += nested(2, verdict_data(Verdict.JUMP, element.value))
    return packed


def _parse(name: str, item: bytes) -> Element:
    fields = wire.attributes_of(item)
    key, end = (wire.attributes_of(fields.get(kind, b"")).get(1, b"") for kind in (1, 10))
    value = fields.get(9, b"")
    if 2 in fields:
        value = wire.attributes_of(wire.attributes_of(fields[2]).get(2, b"")).get(2, b"")
    return Element(name, key, end, value.rstrip(b"\0").decode())
