"""What dnsmasq has leased, and how it is told that a lease is over.

A released address may be another guest's at once, but dnsmasq gives it to nobody else until the lease ends. So vifd says in the
place of the guest that is gone what that should have said: DHCPRELEASE (RFC 2131, 4.4.6) or Release (RFC 8415, 18.2.7).
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from vifd.dhcp.network import DhcpNetwork, IPv4Or6

_DHCP_PORT, _DHCPV6_PORT = 67, 547
_DHCPV6_SERVERS = "ff02::1:2"
_MAX_BYTES = 4 << 20
_DHCP_MAGIC = bytes([99, 130, 83, 99])
_RELEASE_OPTIONS = bytes([53, 1, 7, 54, 4])  # message type DHCPRELEASE; server identifier, whose 4 bytes follow
_DHCPV6_RELEASE = 8
_CLIENT_ID, _SERVER_ID, _IA_NA, _IA_ADDRESS, _ELAPSED_TIME = 1, 2, 3, 5, 8


class Lease(Struct, frozen=True):
    """A line of dnsmasq's lease file.

    Args:
        address: what is leased.
        mac: to whom, for IPv4.
        client: to whom, for IPv6: its DUID.
        iaid: to which of its interfaces, for IPv6.
    """

    address: IPv4Or6
    mac: str = ""
    client: bytes = b""
    iaid: int = 0


class Leases(Struct, frozen=True):
    """A lease file: the leases, and the server's DUID."""

    leases: tuple[Lease, ...] = ()
    server: bytes = b""


def read(path: Path) -> Leases:
    """Read a lease file that dnsmasq may be writing: a line that is cut off or strange counts as none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Leases()  # dnsmasq hasn't been there yet
    with open(fd, "rb") as file:  # noqa: PTH123  a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Leases()
        return parse(file.read(_MAX_BYTES).decode(errors="replace"))


def parse(text: str) -> Leases:
    """Parse a lease file (dnsmasq's lease.c, lease_update_file)."""
    leases, server = [], b""
    for line in text.splitlines(keepends=True):
        words = line.split()
        if line.endswith("\n") and len(words) == 2 and words[0] == "duid":
            server = _bytes(words[1]) or b""
        elif line.endswith("\n") and len(words) == 5 and (lease := _parse(*words)):
            leases.append(lease)
    return Leases(tuple(leases), server)


def _parse(_expires: str, whose: str, address: str, _name: str, client: str) -> Lease | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if parsed.version == 4:
        return Lease(parsed, mac=whose)
    duid = _bytes(client)
    return Lease(parsed, client=duid, iaid=int(whose)) if duid and whose.isdecimal() and int(whose) < 1 << 32 else None


def _bytes(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return None


def release(network: DhcpNetwork, found: Leases, ended: Sequence[Lease]) -> None:
    """Tell dnsmasq that leases are over. It needs no privilege, since Linux 5.7 (sock_setsockopt, SO_BINDTODEVICE).

    Args:
        network: whose they are.
        found: the lease file that they are in.
        ended: which.

    Raises:
        OSError: a packet can't be sent.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        packets = list(_packets(network, found, ended, family))
        if not packets:
            continue
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            # From the bridge, or dnsmasq takes it for a packet of lo's.
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, network.bridge.encode())
            for packet, to in packets:
                sender.sendto(packet, to)


def _packets(
    network: DhcpNetwork, found: Leases, ended: Sequence[Lease], family: socket.AddressFamily
) -> Iterator[tuple[bytes, tuple[str, int]]]:
    for lease in ended:
        if family == socket.AF_INET and isinstance(lease.address, ipaddress.IPv4Address):
            for interface in network.interfaces:
                if lease.address in interface.network and isinstance(interface.ip, ipaddress.IPv4Address):
                    yield _dhcp_release(lease.address, lease.mac, interface.ip), (str(interface.ip), _DHCP_PORT)
        if family == socket.AF_INET6 and isinstance(lease.address, ipaddress.IPv6Address):
            yield _dhcpv6_release(lease, found.server), (_DHCPV6_SERVERS, _DHCPV6_PORT)


def _dhcp_release(address: ipaddress.IPv4Address, mac: str, server: ipaddress.IPv4Address) -> bytes:
    hardware = (_bytes(mac) or b"")[:6]
    fixed = struct.pack(
        "!BBBB4sHH4s4s4s4s16s192x", 1, 1, 6, 0, secrets.token_bytes(4), 0, 0, address.packed, b"", b"", b"", hardware
    )
    return fixed + _DHCP_MAGIC + _RELEASE_OPTIONS + server.packed + b"\xff"


def _dhcpv6_release(lease: Lease, server: bytes) -> bytes:
    address = _option(_IA_ADDRESS, lease.address.packed + bytes(8))
    options = [
        _option(_CLIENT_ID, lease.client),
        _option(_SERVER_ID, server),
        _option(_ELAPSED_TIME, bytes(2)),
        _option(_IA_NA, struct.pack("!III", lease.iaid, 0, 0) + address),
    ]
    return bytes([_DHCPV6_RELEASE]) + secrets.token_bytes(3) + b"".join(options)


def _option(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value
