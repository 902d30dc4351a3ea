"""Ethernet frames, packed by hand: what guests send, and what they must not.

Layouts: RFC 826 (ARP), 903 (RARP), 791 (IPv4), 768 (UDP), 793 (TCP), 792 (ICMP), 8200 (IPv6 and its extension headers),
4861 (neighbour discovery), 3810 (MLD); IEEE 802.1Q (tags), 802.3 (pause), 802.1D (BPDU), 802.1AB (LLDP).
"""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES, ALL_ROUTERS, ALL_DHCP, ALL_MLD = "ff02::1", "ff02::2", "ff02::1:2", "ff02::16"
ARP, RARP, IPV4, IPV6 = 0x0806, 0x8035, 0x0800, 0x86DD
TCP, UDP, ICMP, IGMP, ICMPV6 = 6, 17, 1, 2, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT, REDIRECT = 133, 134, 135, 136, 137
SOURCE_MAC, TARGET_MAC, NONCE = 1, 2, 14
REQUEST, REPLY, REVERSE_REQUEST, REVERSE_REPLY = 1, 2, 3, 4


def mac_bytes(mac: str) -> bytes:
    """Give a MAC as frames have it."""
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(address: str) -> bytes:
    """Give an address as packets have it."""
    return ipaddress.ip_address(address).packed


def ethernet(source: str, kind: int, payload: bytes, to: str = BROADCAST) -> bytes:
    """Give a frame; a tap's holder may send one shorter than 60 bytes."""
    return mac_bytes(to) + mac_bytes(source) + struct.pack(">H", kind) + payload


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """Put tags in a frame.

    Args:
        frame: without tags.
        tags: type and number, the outermost first.
    """
    return frame[:12] + b"".join(struct.pack(">HH", kind, vid) for kind, vid in tags) + frame[12:]


def llc(source: str, to: str, payload: bytes) -> bytes:
    """Give a frame of IEEE 802.3: with its length in the place of a type."""
    return ethernet(source, len(payload), payload, to)


# --- ARP


def arp(source: str, operation: int, sender: tuple[str, str], target: tuple[str, str], *, kind: int = ARP) -> bytes:
    """Give an ARP packet.

    Args:
        source: the frame's MAC.
        operation: REQUEST and so on.
        sender: MAC and IPv4 address.
        target: MAC and IPv4 address.
        kind: ARP or RARP.
    """
    body = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    body += b"".join(mac_bytes(mac) + ip_bytes(address) for mac, address in (sender, target))
    return ethernet(source, kind, body)


def probe(source: str, number: int) -> bytes:
    """Give an ARP probe (RFC 5227), which a guarded VM may always send; a number tells it from others."""
    return arp(source, REQUEST, (source, "0.0.0.0"), ("00:00:00:00:00:00", str(ipaddress.IPv4Address(0x0A000000 + number))))


# --- IPv4


def checksum(data: bytes) -> int:
    """Give the checksum of the internet (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(
    source: str, sender: str, receiver: str, protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0
) -> bytes:
    """Give a frame with an IPv4 packet.

    Args:
        source: the frame's MAC.
        sender: the packet's source.
        receiver: the packet's destination.
        protocol: of the payload.
        payload: what comes after the header.
        options: of the header, in multiples of four bytes.
        fragment: flags and offset.
    """
    length, words = 20 + len(options) + len(payload), 5 + len(options) // 4

    def header(checked: int) -> bytes:
        fixed = struct.pack(">BBHHHBBH", 4 << 4 | words, 0, length, 7, fragment, 64, protocol, checked)
        return fixed + ip_bytes(sender) + ip_bytes(receiver) + options

    return ethernet(source, IPV4, header(checksum(header(0))) + payload)


def udp(source_port: int, port: int, payload: bytes = bytes(16)) -> bytes:
    """Give a UDP datagram without a checksum."""
    return struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload


def tcp(source_port: int, port: int) -> bytes:
    """Give a TCP segment that opens a connection."""
    return struct.pack(">HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 0xFFFF, 0, 0)


def echo() -> bytes:
    """Give an ICMP echo request."""
    return struct.pack(">BBHHH", 8, 0, 0xF7FE, 0, 1)


def igmp_query(source: str, sender: str) -> bytes:
    """Give an IGMPv2 question to all (RFC 2236): who has joined what? To be answered within a tenth of a second."""
    body = bytes([0x11, 1, 0, 0]) + bytes(4)
    message = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    frame = ip4(source, sender, "224.0.0.1", IGMP, message, options=bytes([0x94, 4, 0, 0]))
    return mac_bytes("01:00:5e:00:00:01") + frame[6:]


# --- IPv6


def ip6(source: str, sender: str, receiver: str, protocol: int, payload: bytes) -> bytes:
    """Give a frame with an IPv6 packet.

    Args:
        source: the frame's MAC.
        sender: the packet's source.
        receiver: the packet's destination.
        protocol: of what comes next.
        payload: what comes next.
    """
    to = ip_bytes(receiver)
    header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255)
    mac = f"33:33:{to[12:].hex(':')}" if to[0] == 0xFF else BROADCAST
    return ethernet(source, IPV6, header + ip_bytes(sender) + to + payload, mac)


def options_header(following: int) -> bytes:
    """Give a header of hop-by-hop or destination options, with nothing but padding."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0])


def alert_header(following: int) -> bytes:
    """Give a header of hop-by-hop options with a router alert, as MLD has it."""
    return bytes([following, 0, 5, 2, 0, 0, 1, 0])


def fragment_header(following: int, *, offset: int = 0, more: bool = False) -> bytes:
    """Give the header of a fragment.

    Args:
        following: the protocol of what is in fragments.
        offset: in bytes, a multiple of eight.
        more: whether there are more.
    """
    return struct.pack(">BBHI", following, 0, offset | more, 99)


def icmp6(sender: str, receiver: str, kind: int, body: bytes) -> bytes:
    """Give an ICMPv6 message with its checksum."""

    def message(checked: int) -> bytes:
        return struct.pack(">BBH", kind, 0, checked) + body

    pseudo = ip_bytes(sender) + ip_bytes(receiver) + struct.pack(">II", 4 + len(body), ICMPV6)
    return message(checksum(pseudo + message(0)))


def option(kind: int, mac: str) -> bytes:
    """Give an option of neighbour discovery with a MAC, or with anything else of six bytes."""
    return bytes([kind, 1]) + mac_bytes(mac)


def discovery(source: str, sender: str, kind: int, body: bytes = b"", *options: bytes, to: str = ALL_NODES) -> bytes:
    """Give a frame with a message of neighbour discovery.

    Args:
        source: the frame's MAC.
        sender: the packet's source.
        kind: of message.
        body: what comes before the options, without the first four reserved bytes: a target, or nothing.
        options: from `option`.
        to: the packet's destination.
    """
    return ip6(source, sender, to, ICMPV6, icmp6(sender, to, kind, bytes(4) + body + b"".join(options)))


def multicast_report(source: str, sender: str, group: str = "ff02::1:ff00:1") -> bytes:
    """Give an MLDv2 report that joins a group."""
    record = struct.pack(">HHBBH", 0, 1, 4, 0, 0) + ip_bytes(group)
    message = icmp6(sender, ALL_MLD, 143, record)
    return ip6(source, sender, ALL_MLD, HOP_BY_HOP, alert_header(ICMPV6) + message)


def multicast_query(source: str, sender: str) -> bytes:
    """Give an MLD question to all (RFC 2710): who has joined what? To be answered within a tenth of a second."""
    message = icmp6(sender, ALL_NODES, 130, struct.pack(">HH", 100, 0) + bytes(16))
    return ip6(source, sender, ALL_NODES, HOP_BY_HOP, alert_header(ICMPV6) + message)


def router_advertisement(source: str, sender: str) -> bytes:
    """Give an advertisement of a router."""
    return discovery(source, sender, ROUTER_ADVERTISEMENT, bytes(8), option(SOURCE_MAC, source))


def redirect(source: str, sender: str, target: str) -> bytes:
    """Give a redirect of all traffic to a target."""
    return discovery(source, sender, REDIRECT, ip_bytes(target) + ip_bytes(target))


# --- what isn't IP


def bpdu(source: str, to: str = "01:80:c2:00:00:00") -> bytes:
    """Give a configuration BPDU of a root bridge."""
    return llc(source, to, bytes.fromhex("424203") + bytes(35))


def snap(source: str, to: str, kind: int) -> bytes:
    """Give a frame of Cisco's (CDP 0x2000, PVST+ 0x010b)."""
    return llc(source, to, bytes.fromhex("aaaa0300000c") + struct.pack(">H", kind) + bytes(30))


def lldp(source: str, to: str = "01:80:c2:00:00:0e") -> bytes:
    """Give an LLDP frame."""
    return ethernet(source, 0x88CC, bytes.fromhex("0207040000000000010403000001060200780000") + bytes(26), to)


def lacp(source: str, to: str = "01:80:c2:00:00:02") -> bytes:
    """Give a frame of a slow protocol."""
    return ethernet(source, 0x8809, bytes([1, 1]) + bytes(108), to)


def pause(source: str, to: str = "01:80:c2:00:00:01") -> bytes:
    """Give a pause frame."""
    return ethernet(source, 0x8808, struct.pack(">HH", 1, 0xFFFF) + bytes(42), to)
