"""The guests of a network: who gets which addresses and name, as lines that dnsmasq reads.

What a line is made of comes from strangers, so it is made of parsed values only: a MAC of six bytes, addresses, and a name of
letters, digits and hyphens. A name never stands in a line of DHCP, where words like "ignore" and "5m" have a meaning.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from msgspec import Struct

from vifd.dhcp.network import IPv4Or6

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NOT_OF_A_LABEL = re.compile(r"[^a-z0-9]+")
_LABEL_CHARACTERS = 63
#: What programs look up by themselves and then believe (VU#598349), or take for this host.
_RESERVED = frozenset({"localhost", "wpad", "isatap"})


class Host(Struct, frozen=True):
    """A guest's port.

    Args:
        mac: its MAC address.
        addresses: its addresses, without prefix lengths.
        name: what its owner calls the VM; anything.
    """

    mac: str
    addresses: tuple[str, ...]
    name: str = ""


class Entry(Struct, frozen=True):
    """A host as it is written.

    Args:
        mac: six bytes in hexadecimal.
        addresses: parsed, and each a single guest's.
        label: a DNS label, or empty.
        dhcp_line: what --dhcp-hostsfile reads: MAC, one IPv4 address, IPv6 addresses in brackets.
        name_lines: what --addn-hosts reads: address and name.
    """

    mac: str
    addresses: tuple[IPv4Or6, ...]
    label: str
    dhcp_line: str
    name_lines: str


def entry(host: Host) -> Entry:
    """Check and parse a host.

    Raises:
        ValueError: its MAC or an address is none.
    """
    mac, name = host.mac.lower(), label(host.name)
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{host.mac!r} is no MAC address")
    addresses = tuple(map(_parse, dict.fromkeys(host.addresses)))
    ipv4 = [str(address) for address in addresses if address.version == 4]
    ipv6 = [f"[{address}]" for address in addresses if address.version == 6]
    dhcp_line = ",".join([mac, *ipv4[:1], *ipv6]) + "\n"
    return Entry(mac, addresses, name, dhcp_line, "".join(f"{address} {name}\n" for address in addresses if name))


def label(name: str) -> str:
    """Make a DNS label (RFC 1123, 2.1) of a VM's name; empty where nothing of it is left, or only digits."""
    made = _NOT_OF_A_LABEL.sub("-", name.lower()).strip("-")[:_LABEL_CHARACTERS].rstrip("-")
    return "" if made in _RESERVED or made.replace("-", "").isdecimal() else made


def files(entries: Iterable[Entry]) -> tuple[str, str]:
    """Give the text of both files. Of entries with one MAC, address or name, the first has it."""
    macs: set[str] = set()
    labels: set[str] = set()
    addresses: set[IPv4Or6] = set()
    dhcp, names = [], []
    for one in entries:
        if one.mac in macs or not addresses.isdisjoint(one.addresses) or not one.addresses:
            continue
        macs.add(one.mac)
        addresses.update(one.addresses)
        dhcp.append(one.dhcp_line)
        if one.label and one.label not in labels:
            labels.add(one.label)
            names.append(one.name_lines)
    return "".join(dhcp), "".join(names)


def _parse(text: str) -> IPv4Or6:
    address = ipaddress.ip_address(text)
    unusable = address.is_multicast or address.is_unspecified or address.is_loopback
    if unusable or (isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None):
        raise ValueError(f"{text!r} is no address of a guest")
    return address
