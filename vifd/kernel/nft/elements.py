"""What the guard's table has of a port: elements of its sets and maps."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from struct import pack, unpack_from
from typing import NamedTuple

from vifd.kernel.netlink import attribute
from vifd.kernel.nft import sets
from vifd.kernel.nft.chains import IP, IPV6, LIMITED
from vifd.kernel.nft.rules import Verdict, verdict_data
from vifd.kernel.nft.sets import SETS
from vifd.kernel.nft.wire import attributes_of, nested, text


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


def guarded(ifindex: int, macs: Sequence[str], addresses: Iterable[str], *, trunk: bool, is_limited: bool = False) -> Elements:
    """Give what keeps a port to its MACs and addresses.

    Args:
        ifindex: the port.
        macs: the MACs that its VM may send with.
        addresses: the addresses and prefixes that it may send from; none: any.
        trunk: whether 802.1Q tags pass.
        is_limited: whether the table limits what it sends.
    """
    port = pack("=I", ifindex)
    networks = [ipaddress.ip_network(address) for address in addresses]
    if any(network.version == 6 for network in networks):
        networks += [ipaddress.ip_network(link_local(mac)) for mac in macs]
    single = [network for network in networks if network.prefixlen == network.max_prefixlen]
    chain = "trunk" if trunk else "prefixed" if len(single) < len(networks) else "listed" if networks else "anywhere"
    elements = {
        Element(sets.PORTS, port, value=f"{LIMITED}_{chain}" if is_limited else chain),
        Element(sets.DROPS, port),
        *(Element(sets.MACS, port + _octets(mac) + bytes(2)) for mac in macs),
        *(_address(ifindex, network) for network in networks),
    }
    if networks:
        elements.add(Element(sets.LISTED, port))
    if chain in {"anywhere", "prefixed"}:
        elements |= {Element(sets.SENDERS, port + _octets(mac) + kind) for mac in macs for kind in (IP, IPV6)}
    if chain in {"listed", "prefixed"}:
        elements |= {_sender(port, mac, network) for mac in macs for network in single}
    return frozenset(elements)


def only_limited(ifindex: int) -> Element:
    """Give what leads a port without a guard to its limits."""
    return Element(sets.PORTS, pack("=I", ifindex), value=LIMITED)


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
    octets = _octets(mac)
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _sender(port: bytes, mac: str, address: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Element:
    of, kind = (sets.SENDERS4, IP) if address.version == 4 else (sets.SENDERS6, IPV6)
    return Element(of, port + _octets(mac) + kind + address.network_address.packed)


def _address(ifindex: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Element:
    first, last = network.network_address.packed, network.broadcast_address.packed
    if first == last:
        return Element(sets.IP4 if network.version == 4 else sets.IP6, pack("=I", ifindex) + first)
    # Where there are ranges, numbers are compared byte by byte from the left.
    port = pack(">I", ifindex)
    of = sets.IP4_PREFIXES if network.version == 4 else sets.IP6_PREFIXES
    return Element(of, port + first, port + last)


def port_of(element: Element) -> int:
    """Give the index of the interface that an element is about."""
    index: int = unpack_from(">I" if SETS[element.of].is_interval else "=I", element.key)[0]
    return index


def pack_element(element: Element) -> bytes:
    """Pack an element as a message has it."""
    packed = nested(1, attribute(1, element.key))
    if element.end:
        packed += nested(10, attribute(1, element.end))
    if SETS[element.of].is_limit:
        packed += text(9, element.value)
    elif element.value:
        packed += nested(2, verdict_data(Verdict.GOTO, element.value))
    return packed


def parse_element(name: str, item: bytes) -> Element:
    """Read an element of a set from an answer."""
    fields = attributes_of(item)
    key, end = (attributes_of(fields.get(kind, b"")).get(1, b"") for kind in (1, 10))
    value = fields.get(9, b"")
    if 2 in fields:
        value = attributes_of(attributes_of(fields[2]).get(2, b"")).get(2, b"")
    return Element(name, key, end, value.rstrip(b"\0").decode())
