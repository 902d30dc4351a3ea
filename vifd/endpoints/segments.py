"""One segment's addresses: who has which, and which are free. What is asked costs the same however many there are."""

from __future__ import annotations

import socket
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Generic, NamedTuple, TypeVar

from vifd.drivers.addressing import Addressing, interfaces_of, own_addresses, parse_range
from vifd.endpoints.intervals import Intervals

_K = TypeVar("_K", bound=Hashable)
#: Holds what is the network's own; no endpoint has this id.
NETWORK = ""


class Prefix(NamedTuple):
    """An address, or all that begin with the same bits."""

    version: int
    first: int
    length: int

    @property
    def last(self) -> int:
        """The last address, as a number."""
        return self.first | ((1 << (_bits(self.version) - self.length)) - 1)

    @property
    def is_single(self) -> bool:
        """Whether it is one address."""
        return self.length == _bits(self.version)

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 link-local one (RFC 4291, 2.5.6), which no network hands out."""
        return self.version == 6 and self.length >= 10 and self.first >> 118 == 0xFE80 >> 6

    def covers(self, other: Prefix) -> bool:
        """Tell whether all of another prefix is in this one."""
        return self.version == other.version and self.first <= other.first and other.last <= self.last

    def __str__(self) -> str:
        address = socket.inet_ntoa(self.first.to_bytes(4)) if self.version == 4 else str(IPv6Address(self.first))
        return address if self.is_single else f"{address}/{self.length}"


def _bits(version: int) -> int:
    return 32 if version == 4 else 128


@lru_cache(4096)
def parse_prefix(text: str) -> Prefix:
    """Read "10.0.0.7" or "10.0.0.0/24". What was checked before it came here; ipaddress takes ten times as long."""
    address, _, length_text = text.partition("/")
    version, family = (6, socket.AF_INET6) if ":" in address else (4, socket.AF_INET)
    length = int(length_text or _bits(version))
    free_bits = _bits(version) - length
    return Prefix(version, int.from_bytes(socket.inet_pton(family, address)) >> free_bits << free_bits, length)


class Holders(Generic[_K]):
    """Who has what. More than one can have the same: what the journal says is taken as it is, and an endpoint that changes has
    the old and the new.
    """

    def __init__(self) -> None:
        self._holders: dict[_K, tuple[str, ...]] = {}

    def add(self, key: _K, holder: str) -> bool:
        """Add a holder; tell whether it is the first."""
        before = self._holders.get(key, ())
        self._holders[key] = (*before, holder)
        return not before

    def remove(self, key: _K, holder: str) -> bool:
        """Remove a holder; tell whether it was the last."""
        left = list(self._holders[key])
        left.remove(holder)
        if left:
            self._holders[key] = tuple(left)
        else:
            del self._holders[key]
        return not left

    def find(self, key: _K, but: str) -> str | None:
        """Give a holder other than one, or None."""
        return next((holder for holder in self._holders.get(key, ()) if holder != but), None)

    def __contains__(self, key: _K) -> bool:
        return key in self._holders

    def __len__(self) -> int:
        return len(self._holders)


class _Family:
    """The prefixes of one family that somebody has; two of them are apart, or one is in the other.

    What is around a prefix is looked up by its first bits, once for each length that is in use; what is in it stands side by
    side in the sorted list.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        self._by_length: dict[int, Holders[int]] = {}
        self._sorted: list[tuple[int, int]] = []

    def add(self, prefix: Prefix, holder: str) -> None:
        if self._by_length.setdefault(prefix.length, Holders()).add(prefix.first, holder):
            insort(self._sorted, (prefix.first, prefix.length))

    def remove(self, prefix: Prefix, holder: str) -> None:
        of_length = self._by_length[prefix.length]
        if of_length.remove(prefix.first, holder):
            del self._sorted[bisect_left(self._sorted, (prefix.first, prefix.length))]
            if not of_length:
                del self._by_length[prefix.length]

    def find(self, prefix: Prefix, but: str) -> tuple[Prefix, str] | None:
        """Give what overlaps a prefix and whose it is, unless it is this holder's."""
        for known in self.overlapping(prefix):
            if (holder := self._by_length[known.length].find(known.first, but)) is not None:
                return known, holder
        return None

    def overlapping(self, prefix: Prefix) -> Iterator[Prefix]:
        """Give every prefix that somebody has and that overlaps one."""
        for length, holders in self._by_length.items():
            if length <= prefix.length:
                free_bits = _bits(self._version) - length
                first = prefix.first >> free_bits << free_bits
                if first in holders:
                    yield Prefix(self._version, first, length)
        if not prefix.is_single:
            for i in range(bisect_left(self._sorted, (prefix.first, prefix.length + 1)), len(self._sorted)):
                first, length = self._sorted[i]
                if first > prefix.last:
                    return
                if length > prefix.length:
                    yield Prefix(self._version, first, length)

    def __iter__(self) -> Iterator[Prefix]:
        return (Prefix(self._version, first, length) for first, length in self._sorted)


class _Pool:
    """What is handed out of one family: the next after the one before, so that what was given back rests for a while."""

    def __init__(self, members: Intervals, text: str) -> None:
        self.members, self.text = members, text
        self.free = Intervals(members.within(0, 1 << 128))
        self.next = 0

    def take(self, prefix: Prefix) -> None:
        self.free.discard(prefix.first, prefix.last)

    def give_back(self, prefix: Prefix, still_taken: Iterator[Prefix]) -> None:
        for first, last in self.members.within(prefix.first, prefix.last):
            self.free.add(first, last)
        for taken in still_taken:
            self.take(taken)

    def has(self, prefix: Prefix) -> bool:
        return prefix.is_single and bool(self.members.within(prefix.first, prefix.last))


class Subnet(NamedTuple):
    """A subnet of a network, and the host's address in it."""

    prefix: Prefix
    gateway: str


class Segment:
    """What reaches each other: networks with the same bridge."""

    def __init__(self) -> None:
        self.addressing = Addressing()
        self.subnets: list[Subnet] = []
        self.macs: Holders[str] = Holders()
        self._families = {version: _Family(version) for version in (4, 6)}
        self._pools: dict[int, _Pool] = {}
        self._own: list[Prefix] = []

    @property
    def hands_out(self) -> bool:
        """Whether guests get their addresses from vifd."""
        return bool(self.addressing.pool or self.addressing.dhcp)

    def configure(self, addressing: Addressing) -> None:
        """Take what the configuration says now; those who have addresses keep them."""
        if addressing == self.addressing:
            return
        for prefix in self._own:
            self.remove(prefix, NETWORK)
        interfaces = interfaces_of(addressing)
        self.addressing = addressing
        self.subnets = [
            Subnet(Prefix(one.version, int(one.network[0]), one.network.prefixlen), str(one.ip)) for one in interfaces
        ]
        self._own = [Prefix(version, number, _bits(version)) for version, number in sorted(own_addresses(interfaces))]
        self._pools = self._make_pools(addressing)
        for prefix in self._own:
            self.add(prefix, NETWORK)

    def _make_pools(self, addressing: Addressing) -> dict[int, _Pool]:
        pools = {}
        ranges = {text: parse_range(text) for text in addressing.pool}
        for version in sorted({one.version for one in ranges.values()}):
            texts = [text for text, one in ranges.items() if one.version == version]
            pool = _Pool(Intervals((ranges[text].first, ranges[text].last) for text in texts), ", ".join(texts))
            pool.next = self._pools[version].next if version in self._pools else 0
            for prefix in self._families[version]:
                pool.take(prefix)
            pools[version] = pool
        return pools

    def add(self, prefix: Prefix, holder: str) -> None:
        """Note that somebody has a prefix."""
        self._families[prefix.version].add(prefix, holder)
        if (pool := self._pools.get(prefix.version)) is not None:
            pool.take(prefix)

    def remove(self, prefix: Prefix, holder: str) -> None:
        """Note that somebody has a prefix no more."""
        family = self._families[prefix.version]
        family.remove(prefix, holder)
        if (pool := self._pools.get(prefix.version)) is not None:
            pool.give_back(prefix, family.overlapping(prefix))

    def find(self, prefix: Prefix, but: str) -> tuple[Prefix, str] | None:
        """Give what overlaps a prefix and whose it is, unless it is this holder's."""
        return self._families[prefix.version].find(prefix, but)

    def is_own(self, prefix: Prefix) -> bool:
        """Tell whether an address is the network's own."""
        return prefix in self._own

    def pools(self) -> dict[int, str]:
        """Give the pools as they are written, by family."""
        return {version: pool.text for version, pool in self._pools.items()}

    def has_in_pool(self, prefix: Prefix) -> bool:
        """Tell whether an address is one of those that are handed out."""
        return prefix.version in self._pools and self._pools[prefix.version].has(prefix)

    def next_free(self, version: int) -> Prefix | None:
        """Give the address that is handed out next, or None: all are taken."""
        pool = self._pools[version]
        number = pool.free.next_from(pool.next)
        return None if number is None else Prefix(version, number, _bits(version))

    def go_on_after(self, prefix: Prefix) -> None:
        """Hand out what comes after an address next."""
        if self.has_in_pool(prefix):
            self._pools[prefix.version].next = prefix.first + 1
