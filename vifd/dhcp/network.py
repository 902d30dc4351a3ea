"""What the configuration says of a network's DHCP, and what can be wrong with it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from msgspec import Struct

from vifd.errors import Violation

IPv4Or6 = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DOMAIN_CHARACTERS = 200  # with a host's label before it, a name stays within DNS's 253
_MAX_IPV4_PREFIX = 30  # one for the host, one for a guest, and the two that aren't anybody's
_IPV6_PREFIXES = range(64, 127)  # dnsmasq refuses less than 64 (option.c, "prefix length must be at least 64")


class DhcpNetwork(Struct, frozen=True):
    """A network whose guests are served.

    Args:
        bridge: where they are.
        addresses: the host's addresses there, with prefix lengths: each one's prefix is served.
        mtu_bytes: what guests are told to use.
        dns: the DNS servers that guests are told; empty: the host's address on the bridge.
        domain: what guests' names end with; empty: they have no end.
    """

    bridge: str
    addresses: tuple[str, ...]
    mtu_bytes: int = 1500
    dns: tuple[str, ...] = ()
    domain: str = ""

    @property
    def interfaces(self) -> list[Interface]:
        """The addresses, parsed."""
        return [ipaddress.ip_interface(address) for address in self.addresses]


def check(network: DhcpNetwork, *, served: bool) -> Iterator[Violation]:
    """Say what is wrong with a network's keys.

    Args:
        network: what they come to; addresses that aren't any are told by whoever else needs them.
        served: whether DHCP is wanted.
    """
    if served and not network.addresses:
        yield Violation("dhcp", 'needs "addresses": DHCP is served on the prefixes of the host\'s addresses on the bridge')
    for address in network.addresses if served else ():
        yield from _check_address(address)
    if network.domain and not (_DOMAIN.fullmatch(network.domain) and len(network.domain) <= _DOMAIN_CHARACTERS):
        yield Violation("domain", f"{network.domain!r} is no DNS domain, like vms.example.org, in lower case")


def _check_address(text: str) -> Iterator[Violation]:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return
    length = interface.network.prefixlen
    if interface.version == 4 and length > _MAX_IPV4_PREFIX:
        yield Violation("dhcp", f"the prefix of {text} has no room for guests; it takes /{_MAX_IPV4_PREFIX} or shorter")
    if interface.version == 6 and length not in _IPV6_PREFIXES:
        bounds = f"/{_IPV6_PREFIXES[0]} to /{_IPV6_PREFIXES[-1]}"
        yield Violation("dhcp", f"the prefix of {text} can't be served by DHCPv6; it takes {bounds}")
