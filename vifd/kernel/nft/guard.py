"""The guard's table in the kernel, and what it has of each port.

The helper is the only one that changes it, so it knows without asking what is there: a change of a port is the difference to what
it has, in one transaction. Where the kernel can (Linux 6.9), the helper owns the table: another program's `nft flush ruleset`
doesn't touch it, and it outlives the helper. Elsewhere others' changes are undone by `restore`.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from struct import unpack_from

from vifd.kernel.nft import ruleset, seals, sets, wire
from vifd.kernel.nft.elements import NOTHING, Element, Elements, pack_element, parse_element, port_of
from vifd.kernel.nft.ruleset import TABLE, Hook, Ruleset
from vifd.kernel.nft.sets import SETS
from vifd.kernel.nft.table import PERSIST, Table, open_table
from vifd.kernel.nft.wire import (
    NLM_F_CREATE,
    Kind,
    Message,
    NftError,
    listed,
    nested,
    number,
    number64,
    text,
)

_MOST_LATER = 40  # others have their places after that (linux/netfilter_bridge.h)
_LIMIT_OBJECT, _LIMIT_PACKETS, _LIMIT_BYTES, _LIMIT_OVER = 4, 0, 1, 1


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
        self._later = 0  # by how much chains are called later than the ruleset says
        self._hooks = Counter[str]()  # how many ports each chain that the kernel calls is there for

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
            self._hooks = Counter(hook for ifindex, elements in self._ports.items() for hook in self._hooks_of(ifindex, elements))
            self._own(lambda flags: self._taking(found, flags))

    def put(self, ports: Mapping[int, Elements]) -> None:
        """Let ports have what is given and nothing else, all in one transaction.

        Args:
            ports: by interface index; NOTHING: the guard has nothing to do with it (any more).

        Raises:
            NftError: the kernel refuses; nothing has changed.
        """
        with self._lock:
            removed, added, hooks = set[Element](), set[Element](), Counter[str]()
            for ifindex, wanted in ports.items():
                present = self._ports.get(ifindex, NOTHING)
                removed |= present - wanted
                added |= wanted - present
                hooks.update(self._hooks_of(ifindex, wanted))
                hooks.subtract(self._hooks_of(ifindex, present))
            spent = [name for name, more in hooks.items() if more < 0 and self._hooks[name] + more == 0]
            fresh = [name for name, more in hooks.items() if more > 0 and self._hooks[name] == 0]
            changes = [*self._removals(removed), *self._additions(added)]
            self._socket.commit([*self._unhooked(spent), *changes, *self._hooked(fresh)])
            self._hooks.update(hooks)
            for name in spent:
                del self._hooks[name]
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
        called = {name: (self._hook(name).rules, True) for name in self._hooks}
        return {name: (rules, False) for name, rules in self._rules.chains.items()} | called

    def _hook(self, name: str) -> Hook:
        return self._rules.hooks[name]

    def _hooks_of(self, ifindex: int, elements: Elements) -> Iterable[str]:  # noqa: ARG002  DeviceGuard has some for each port
        """Give the names of the chains that a port needs the kernel to call."""
        needs = {element.of for element in elements}
        return [name for name, hook in self._rules.hooks.items() if needs & hook.needed_for]

    def _hooked(self, names: Iterable[str]) -> list[Message]:
        return [message for name in names for message in self._rules.hook(name, self._placed(name))]

    def _placed(self, name: str) -> Hook:
        hook = self._hook(name)
        return hook._replace(priority=hook.priority + self._later)

    def _unhooked(self, names: Iterable[str]) -> list[Message]:
        return [self._rules.unhook(name) for name in names]

    def _taking(self, found: dict[int, bytes] | None, flags: int) -> list[Message]:
        is_persistent = found is not None and bool(unpack_from(">I", found.get(2, bytes(4)))[0] & PERSIST)
        if found is not None and self._is_whole(found) and is_persistent == bool(flags & PERSIST):
            return [self._rules.table(flags)]
        return self._replacing(found, flags)

    def _replacing(self, found: dict[int, bytes] | None, flags: int) -> list[Message]:
        """Give what makes the table anew with all that it has: each packet meets the old one or the new one.

        Each chain that a packet meets looks for itself whether the change has happened. Of equal priority the kernel calls the
        newest first (net/netfilter/core.c, nf_hook_entries_grow): a packet could pass it before the change, and the old one
        after. So the new chains are called later than the old ones.
        """
        placed = [self._find_priority(name) for name in self._hooks] if found is not None else []
        later = [
            there - self._hook(name).priority + 1 for name, there in zip(self._hooks, placed, strict=False) if there is not None
        ]
        self._later = max(later, default=0) % _MOST_LATER
        return [*([] if found is None else [self._deletion()]), *self._rules.messages(flags), *self._contents()]

    def _find_priority(self, name: str) -> int | None:
        chain = self._socket.ask(Message(Kind.GETCHAIN, self._family, text(1, TABLE) + text(3, name))) or {}
        priority = wire.attributes_of(chain.get(4, b"")).get(2)
        return None if priority is None else int(unpack_from(">i", priority)[0])

    def _contents(self) -> list[Message]:
        """Give what makes all that the table has of its ports."""
        elements = (element for elements in self._ports.values() for element in elements)
        return [*self._additions(elements), *self._hooked(self._hooks)]

    def _read_ports(self) -> dict[int, Elements]:
        ports: dict[int, set[Element]] = {}
        for name in SETS:
            for element in (parse_element(name, item) for item in self._read_set(name)):
                ports.setdefault(port_of(element), set()).add(element)
        return {ifindex: frozenset(elements) for ifindex, elements in ports.items()}

    def _is_there(self, element: Element) -> bool:
        payload = text(1, TABLE) + text(2, element.of) + nested(3, listed([pack_element(element)]))
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
        return [message for of, some in by_set.items() for message in self._elements(kind, of, list(map(pack_element, some)))]

    def _limit(self, element: Element) -> Message:
        rate, burst = (int(part) for part in element.value.split("-")[2:])
        counts = _LIMIT_PACKETS if element.of in {sets.PPS_FROM_VM, sets.PPS_TO_VM} else _LIMIT_BYTES
        limit = number64(1, rate) + number64(2, 1) + number(3, burst) + number(4, counts) + number(5, _LIMIT_OVER)
        return Message(Kind.NEWOBJ, self._rules.family, _object(element) + nested(4, limit), NLM_F_CREATE)


def _by_set(elements: Iterable[Element]) -> dict[str, list[Element]]:
    grouped: dict[str, list[Element]] = {}
    for element in elements:
        grouped.setdefault(element.of, []).append(element)
    return grouped


def _object(element: Element) -> bytes:
    return text(1, TABLE) + text(2, element.value) + number(3, _LIMIT_OBJECT)
