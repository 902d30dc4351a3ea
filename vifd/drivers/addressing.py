"""How a network is addressed: what is the host's own on it, and what it hands out. Pure; the keys are the configuration's."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from vifd.errors import Violation

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Addressing(Struct, frozen=True):
    """The addresses of a network.

    Args:
        segment: what its frames reach, like a bridge's name: networks of one driver with the same segment share their addresses,
        and no two endpoints of them have the same. Empty: the network is alone.
        interfaces: the host's addresses, with prefix lengths: its subnets, and the guests' gateways.
        pool: what is handed out, see `parse_range`.
        dns_servers: what guests are told; empty: their gateways, if there is DHCP.
        dhcp: whether guests are told by DHCP.
        public_pool: which public addresses endpoints may have, see `parse_range`; empty: its kinds offer none.
    """

    segment: str = ""
    interfaces: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dhcp: bool = False
    public_pool: tuple[str, ...] = ()


class Range(NamedTuple):
    """Addresses one after the other, as numbers; the last is one of them."""

    version: int
    first: int
    last: int


def parse_range(text: str) -> Range:
    """Read "10.0.0.10-10.0.0.99", "10.0.0.0/24" or "10.0.0.7".

    Raises:
        ValueError: it is none of them; the text says why.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    if "-" not in text:
        network = ipaddress.ip_network(text)
        return Range(network.version, int(network[0]), int(network[-1]))
    first, last = (ipaddress.ip_address(part.strip()) for part in text.split("-", 1))
    if first.version != last.version:
        raise ValueError(f"{text!r} begins in one family and ends in another")
    if int(first) > int(last):
        raise ValueError(f"{text!r} ends before it begins")
    return Range(first.version, int(first), int(last))


def interfaces_of(addressing: Addressing) -> list[Interface]:
    """Give the host's addresses on a network, with their subnets."""
    return [ipaddress.ip_interface(text) for text in addressing.interfaces]


def own_addresses(interfaces: Sequence[Interface]) -> set[tuple[int, int]]:
    """Give what no endpoint can have, as version and number.

    It is the host's addresses; of an IPv4 subnet its network and broadcast address (RFC 919), of an IPv6 subnet its
    Subnet-Router anycast address (RFC 4291, 2.6.1). Subnets for two or less have neither (RFC 3021, RFC 6164).
    """
    own: set[tuple[int, int]] = {(interface.version, int(interface.ip)) for interface in interfaces}
    for network in (interface.network for interface in interfaces):
        if network.num_addresses > 2:
            own.add((network.version, int(network.network_address)))
            if network.version == 4:
                own.add((4, int(network.broadcast_address)))
    return own


def check(addressing: Addressing) -> list[Violation]:
    """Say what is wrong with a network's keys `addresses`, `pool` and `dns`."""
    problems = [
        Violation("addresses", f"{text!r} is no address with a prefix length, like 10.0.0.1/24")
        for text in addressing.interfaces
        if not _is_interface(text)
    ]
    problems += [
        Violation("dns", f"{text!r} is no address of a DNS server, like 192.0.2.53")
        for text in addressing.dns_servers
        if not _is_address(text)
    ]
    interfaces = [ipaddress.ip_interface(text) for text in addressing.interfaces if _is_interface(text)]
    ranges: list[Range] = []
    for text in addressing.pool:
        try:
            found = parse_range(text)
        except ValueError as error:
            problems.append(Violation("pool", f"{error}; a pool has ranges 10.0.0.10-10.0.0.99, prefixes 10.0.0.0/24, addresses"))
            continue
        problems += [Violation("pool", message) for message in _misplaced(text, found, interfaces, ranges)]
        ranges.append(found)
    return problems or [Violation("pool", message) for message in _used_up(ranges, own_addresses(interfaces))]


def check_public_pool(public_pool: Sequence[str], interfaces: Sequence[str]) -> Iterator[Violation]:
    """Say what is wrong with a network's key `public_pool`."""
    subnets = [ipaddress.ip_interface(text).network for text in interfaces if _is_interface(text)]
    for text in public_pool:
        try:
            found = parse_range(text)
        except ValueError as error:
            message = f"{error}; a pool has ranges 192.0.2.10-192.0.2.99, prefixes 192.0.2.0/24, addresses"
            yield Violation("public_pool", message)
            continue
        inside = [s for s in subnets if s.version == found.version and int(s[0]) <= found.last and found.first <= int(s[-1])]
        if inside:
            yield Violation("public_pool", f"{text} overlaps {inside[0]}, which is the guests' own subnet")


def _misplaced(text: str, found: Range, interfaces: Sequence[Interface], before: Sequence[Range]) -> Iterator[str]:
    """Say what is wrong with a range's place."""
    subnets = [interface.network for interface in interfaces if interface.version == found.version]
    if not any(int(subnet[0]) <= found.first and found.last <= int(subnet[-1]) for subnet in subnets):
        gateways = ", ".join(map(str, interfaces)) or "there are none"
        yield f"{text} is in no subnet of addresses ({gateways}): guests that get it would have no gateway"
    if any(one.version == found.version and one.first <= found.last and found.first <= one.last for one in before):
        yield f"{text} overlaps what is listed before it"


def _used_up(ranges: Sequence[Range], own: set[tuple[int, int]]) -> Iterator[str]:
    """Say which family's part of a pool has nothing beside the network's own addresses."""
    for version in sorted({one.version for one in ranges}):
        of_family = [one for one in ranges if one.version == version]
        if not any(_has_other(one, own) for one in of_family):
            yield f"has no IPv{version} address to hand out: all of them are the network's own"


def _has_other(one: Range, own: set[tuple[int, int]]) -> bool:
    return one.last - one.first >= len(own) or any((one.version, n) not in own for n in range(one.first, one.last + 1))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_interface(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "/" in text and "%" not in text
