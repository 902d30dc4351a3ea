"""What a VM may send and what it may not: frames, by what a guard makes of them, whatever kind of device the VM has.

Who sends is `me`, with the addresses `IP4` to `PREFIX6` where it has any; `you` is the VM that it pretends to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tests.support import frames
from tests.support.frames import (
    ADVERTISEMENT,
    ALL_ROUTERS,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    ICMPV6,
    NONCE,
    RARP,
    REPLY,
    REQUEST,
    REVERSE_REPLY,
    REVERSE_REQUEST,
    ROUTER_SOLICITATION,
    SOLICITATION,
    SOURCE_MAC,
    TARGET_MAC,
    TCP,
    UDP,
    arp,
    discovery,
    ethernet,
    icmp6,
    ip4,
    ip6,
    option,
    options_header,
    tagged,
    udp,
)
from vifd.kernel.nft.elements import link_local

#: The addresses that a VM with addresses may send from, and some in its prefixes.
IP4, PREFIX4, IP6, PREFIX6 = "10.91.0.10", "10.92.0.0/24", "fd00:91::10", "fd00:92::/64"
IN_PREFIX4, IN_PREFIX6 = "10.92.0.77", "fd00:92::77"
#: Another VM's, and nobody's.
IP4_OTHER, IP6_OTHER, FOREIGN4, FOREIGN6 = "10.91.0.11", "fd00:91::11", "10.93.0.1", "fd00:93::1"
NOWHERE4, NOWHERE6, NO_MAC, FOREIGN_MAC = "0.0.0.0", "::", "00:00:00:00:00:00", "02:00:00:00:00:66"


class Vm(Protocol):
    """Who sends, or who it pretends to be."""

    mac: str


Frame = Callable[[Vm, Vm], bytes]


def solicits(me: Vm, target: str, *options: bytes, sender: str = "", source: str = "", kind: int = SOLICITATION) -> bytes:
    """A neighbour's question or answer about a target."""
    return discovery(source or me.mac, sender or link_local(me.mac), kind, frames.ip_bytes(target), *options)


def with_headers(me: Vm, message: bytes, *headers: int, sender: str = "", to: str = frames.ALL_NODES) -> bytes:
    """An ICMPv6 message behind extension headers with nothing in them."""
    packed, following = message, ICMPV6
    for kind in reversed(headers):
        packed, following = options_header(following) + packed, kind
    return ip6(me.mac, sender or link_local(me.mac), to, following, packed)


def message(me: Vm, kind: int, body: bytes) -> bytes:
    return icmp6(link_local(me.mac), frames.ALL_NODES, kind, body)


def adverts(me: Vm, target: str, mac: str) -> bytes:
    """The message alone: an answer that claims a MAC for a target."""
    return message(me, ADVERTISEMENT, bytes(4) + frames.ip_bytes(target) + option(TARGET_MAC, mac))


def towards(mac: str, frame: bytes) -> bytes:
    """Give a frame to another MAC."""
    return frames.mac_bytes(mac) + frame[6:]


def changed(frame: bytes, offset: int, value: int) -> bytes:
    """A frame with another byte."""
    return frame[:offset] + bytes([value]) + frame[offset + 1 :]


#: What no guarded VM may send, by why it is dropped and what it is.
NEVER: dict[tuple[str, str], Frame] = {
    ("mac", "nobody's MAC"): lambda me, _: ip4(FOREIGN_MAC, IP4, IP4_OTHER, UDP, udp(1, 2)),
    ("mac", "another VM's MAC"): lambda _, you: ip4(you.mac, IP4_OTHER, IP4, UDP, udp(1, 2)),
    ("mac", "another VM's MAC in ARP"): lambda me, you: arp(you.mac, REPLY, (you.mac, IP4_OTHER), (me.mac, IP4)),
    ("mac", "the bridge's kind of frame with a foreign MAC"): lambda me, _: ethernet(FOREIGN_MAC, 0x88B5, bytes(46)),
    ("mac", "IPv6 with another VM's MAC"): lambda me, you: ip6(you.mac, IP6_OTHER, frames.ALL_NODES, UDP, udp(1, 2)),
    ("arp", "another VM's MAC as sender"): lambda me, you: arp(me.mac, REPLY, (you.mac, IP4), (me.mac, IP4)),
    ("arp", "a probe with another VM's MAC"): lambda me, you: arp(me.mac, REQUEST, (you.mac, NOWHERE4), (NO_MAC, IP4)),
    ("arp", "a foreign hardware type"): lambda me, _: changed(arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4)), 15, 6),
    ("arp", "a foreign protocol type"): lambda me, _: changed(arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4)), 16, 9),
    ("arp", "addresses of another length"): lambda me, _: changed(arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4)), 19, 8),
    ("arp", "cut in its first bytes"): lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4))[:18],
    ("arp", "cut in the sender's MAC"): lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4))[:24],
    ("arp", "cut in the sender's address"): lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4))[:30],
    ("rarp", "another VM's MAC"): lambda me, you: arp(
        me.mac, REVERSE_REQUEST, (you.mac, NOWHERE4), (you.mac, NOWHERE4), kind=RARP
    ),
    ("rarp", "an answer"): lambda me, _: arp(me.mac, REVERSE_REPLY, (me.mac, NOWHERE4), (me.mac, IP4), kind=RARP),
    ("rarp", "a question of ARP"): lambda me, _: arp(me.mac, REQUEST, (me.mac, NOWHERE4), (me.mac, IP4), kind=RARP),
    ("rarp", "cut"): lambda me, _: arp(me.mac, REVERSE_REQUEST, (me.mac, NOWHERE4), (me.mac, IP4), kind=RARP)[:20],
    ("discovery", "an answer with another VM's MAC"): lambda me, you: solicits(
        me, link_local(me.mac), option(TARGET_MAC, you.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "a question with another VM's MAC"): lambda me, you: solicits(me, IP6_OTHER, option(SOURCE_MAC, you.mac)),
    ("discovery", "a router's question with another VM's MAC"): lambda me, you: discovery(
        me.mac, link_local(me.mac), ROUTER_SOLICITATION, b"", option(SOURCE_MAC, you.mac), to=ALL_ROUTERS
    ),
    ("discovery", "a second option with another VM's MAC"): lambda me, you: solicits(
        me, link_local(me.mac), option(TARGET_MAC, me.mac), option(TARGET_MAC, you.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "another option before"): lambda me, you: solicits(
        me, link_local(me.mac), option(NONCE, you.mac), option(TARGET_MAC, you.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "another option alone"): lambda me, you: solicits(me, IP6_OTHER, option(5, you.mac)),
    ("discovery", "an answer with the question's option"): lambda me, you: solicits(
        me, link_local(me.mac), option(SOURCE_MAC, you.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "behind hop-by-hop options"): lambda me, you: with_headers(
        me, adverts(me, link_local(me.mac), you.mac), HOP_BY_HOP
    ),
    ("discovery", "behind three headers"): lambda me, you: with_headers(
        me, adverts(me, link_local(me.mac), you.mac), HOP_BY_HOP, DESTINATION, DESTINATION
    ),
    ("discovery", "in a fragment"): lambda me, you: ip6(
        me.mac,
        link_local(me.mac),
        frames.ALL_NODES,
        FRAGMENT,
        frames.fragment_header(ICMPV6, more=True) + adverts(me, link_local(me.mac), you.mac)[:24],
    ),
    ("router", "an advertisement"): lambda me, _: frames.router_advertisement(me.mac, link_local(me.mac)),
    ("router", "an advertisement behind headers"): lambda me, _: with_headers(
        me, message(me, frames.ROUTER_ADVERTISEMENT, bytes(12)), HOP_BY_HOP, DESTINATION
    ),
    ("router", "an advertisement in a fragment"): lambda me, _: ip6(
        me.mac,
        link_local(me.mac),
        frames.ALL_NODES,
        FRAGMENT,
        frames.fragment_header(ICMPV6, more=True) + message(me, frames.ROUTER_ADVERTISEMENT, bytes(12)),
    ),
    ("router", "a redirect"): lambda me, you: frames.redirect(me.mac, link_local(me.mac), link_local(you.mac)),
    ("router", "a redirect behind headers"): lambda me, _: with_headers(me, message(me, frames.REDIRECT, bytes(36)), DESTINATION),
    ("malformed", "a fragment whose headers go on in the next"): lambda me, _: ip6(
        me.mac,
        link_local(me.mac),
        frames.ALL_NODES,
        FRAGMENT,
        frames.fragment_header(DESTINATION, more=True) + bytes([ICMPV6, 3, 1, 4, 0, 0, 0, 0]),
    ),
    ("malformed", "a fragment that ends before its ICMPv6 header"): lambda me, _: ip6(
        me.mac,
        link_local(me.mac),
        frames.ALL_NODES,
        FRAGMENT,
        frames.fragment_header(DESTINATION, more=True) + options_header(ICMPV6),
    ),
    ("malformed", "a fragment that ends before its UDP header"): lambda me, _: ip6(
        me.mac,
        link_local(me.mac),
        frames.ALL_NODES,
        FRAGMENT,
        frames.fragment_header(DESTINATION, more=True) + options_header(UDP),
    ),
    ("malformed", "IPv6 that says it is longer"): lambda me, _: ip6(me.mac, link_local(me.mac), frames.ALL_NODES, UDP, udp(1, 2))[
        :-8
    ],
    ("malformed", "IPv4 that says it is longer"): lambda me, _: ip4(me.mac, IP4, IP4_OTHER, UDP, udp(1, 2))[:-8],
    ("malformed", "IPv4 of version 6"): lambda me, _: changed(ip4(me.mac, IP4, IP4_OTHER, UDP, udp(1, 2)), 14, 0x65),
    ("dhcp_server", "an answer"): lambda me, _: ip4(me.mac, IP4, "255.255.255.255", UDP, udp(67, 68)),
    ("dhcp_server", "an answer behind IPv4 options"): lambda me, _: ip4(
        me.mac, IP4, "255.255.255.255", UDP, udp(67, 68), options=b"\x01" * 8
    ),
    ("dhcp_server", "an answer in a fragment"): lambda me, _: ip4(
        me.mac, IP4, "255.255.255.255", UDP, udp(67, 68), fragment=0x2000
    ),
    ("dhcp_server", "an answer from another port"): lambda me, _: ip4(me.mac, IP4, "255.255.255.255", UDP, udp(4011, 68)),
    ("dhcp_server", "a relay's"): lambda me, _: ip4(me.mac, IP4, IP4_OTHER, UDP, udp(67, 67)),
    ("dhcp_server", "an answer of DHCPv6"): lambda me, _: ip6(me.mac, link_local(me.mac), frames.ALL_NODES, UDP, udp(547, 546)),
    ("dhcp_server", "an answer of DHCPv6 from another port"): lambda me, _: ip6(
        me.mac, link_local(me.mac), frames.ALL_NODES, UDP, udp(4011, 546)
    ),
    ("dhcp_server", "an answer of DHCPv6 behind headers"): lambda me, _: ip6(
        me.mac, link_local(me.mac), frames.ALL_NODES, DESTINATION, options_header(UDP) + udp(547, 546)
    ),
    ("tag", "802.1Q"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x8100, 5)),
    ("tag", "a priority tag"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x8100, 7 << 13)),
    ("tag", "802.1ad"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x88A8, 5)),
    ("tag", "QinQ"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x88A8, 5), (0x8100, 6)),
    ("tag", "two tags"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x8100, 5), (0x8100, 6)),
    ("tag", "the old QinQ"): lambda me, _: tagged(frames.probe(me.mac, 0), (0x9100, 5)),
    ("tag", "a priority tag before an advertisement"): lambda me, _: tagged(
        frames.router_advertisement(me.mac, link_local(me.mac)), (0x8100, 0)
    ),
    ("control", "a BPDU"): lambda me, _: frames.bpdu(me.mac),
    ("control", "a BPDU with another VM's MAC"): lambda _, you: frames.bpdu(you.mac),
    ("control", "LLDP"): lambda me, _: frames.lldp(me.mac),
    ("control", "LLDP to a nearest bridge"): lambda me, _: frames.lldp(me.mac, "01:80:c2:00:00:03"),
    ("control", "LLDP to everybody"): lambda me, _: frames.lldp(me.mac, frames.BROADCAST),
    ("control", "LACP"): lambda me, _: frames.lacp(me.mac),
    ("control", "LACP to one VM"): lambda me, you: frames.lacp(me.mac, you.mac),
    ("control", "pause to everybody"): lambda me, _: frames.pause(me.mac, frames.BROADCAST),
    ("control", "CDP"): lambda me, _: frames.snap(me.mac, "01:00:0c:cc:cc:cc", 0x2000),
    ("control", "PVST+"): lambda me, _: frames.snap(me.mac, "01:00:0c:cc:cc:cd", 0x010B),
    **{
        ("control", f"IP to the reserved group {last}"): lambda me, _, last=last: towards(
            f"01:80:c2:00:00:{last}", ip4(me.mac, IP4, IP4_OTHER, UDP, udp(1, 2))
        )
        for last in ("00", "02", "0e")
    },
    ("control", "IPv6 to a reserved group"): lambda me, _: towards(
        "01:80:c2:00:00:00", ip6(me.mac, IP6, IP6_OTHER, TCP, frames.tcp(1, 2))
    ),
    ("router", "an advertisement to one VM"): lambda me, you: towards(
        you.mac, frames.router_advertisement(me.mac, link_local(me.mac))
    ),
    ("discovery", "another VM's MAC told to one VM"): lambda me, you: towards(
        you.mac, solicits(me, IP6, option(TARGET_MAC, you.mac), sender=IP6, kind=ADVERTISEMENT)
    ),
    ("mac", "another VM's datagram"): lambda _, you: ip4(you.mac, IP4, IP4_OTHER, UDP, udp(1, 2)),
    ("mac", "another VM's segment"): lambda _, you: ip6(you.mac, IP6, IP6_OTHER, TCP, frames.tcp(1, 2)),
    ("tag", "802.1Q before a datagram"): lambda me, _: tagged(ip4(me.mac, IP4, IP4_OTHER, UDP, udp(1, 2)), (0x8100, 5)),
    ("tag", "a priority tag before a datagram"): lambda me, _: tagged(ip4(me.mac, IP4, IP4_OTHER, UDP, udp(1, 2)), (0x8100, 0)),
    ("tag", "802.1ad before a segment"): lambda me, _: tagged(ip6(me.mac, IP6, IP6_OTHER, TCP, frames.tcp(1, 2)), (0x88A8, 5)),
    ("control", "a VLAN bridge's BPDU"): lambda me, _: frames.bpdu(me.mac, "01:80:c2:00:00:08"),
}

#: What a VM without addresses may send and one with addresses may not.
FOREIGN: dict[tuple[str, str], Frame] = {
    ("address", "nobody's IPv4"): lambda me, _: ip4(me.mac, FOREIGN4, IP4_OTHER, UDP, udp(1, 2)),
    ("address", "another VM's IPv4"): lambda me, _: ip4(me.mac, IP4_OTHER, IP4, TCP, frames.tcp(1, 2)),
    ("address", "another VM's IPv4 in a later fragment"): lambda me, _: ip4(me.mac, IP4_OTHER, IP4, UDP, bytes(16), fragment=2),
    ("address", "IPv4 just outside of the prefix"): lambda me, _: ip4(me.mac, "10.92.1.0", IP4_OTHER, UDP, udp(1, 2)),
    ("address", "no IPv4 but to a DHCP server"): lambda me, _: ip4(me.mac, NOWHERE4, IP4_OTHER, UDP, udp(68, 69)),
    ("address", "no IPv4 and ICMP"): lambda me, _: ip4(me.mac, NOWHERE4, IP4_OTHER, ICMP, frames.echo()),
    ("address", "nobody's IPv6"): lambda me, _: ip6(me.mac, FOREIGN6, frames.ALL_NODES, UDP, udp(1, 2)),
    ("address", "another VM's IPv6"): lambda me, _: ip6(me.mac, IP6_OTHER, frames.ALL_NODES, TCP, frames.tcp(1, 2)),
    ("address", "another VM's link-local IPv6"): lambda me, you: ip6(
        me.mac, link_local(you.mac), frames.ALL_NODES, UDP, udp(1, 2)
    ),
    ("address", "another VM's IPv6 behind headers"): lambda me, _: ip6(
        me.mac, IP6_OTHER, frames.ALL_NODES, HOP_BY_HOP, options_header(UDP) + udp(1, 2)
    ),
    ("address", "no IPv6"): lambda me, _: ip6(me.mac, NOWHERE6, frames.ALL_NODES, UDP, udp(1, 2)),
    ("arp", "nobody's IPv4 as sender"): lambda me, _: arp(me.mac, REPLY, (me.mac, FOREIGN4), (NO_MAC, IP4_OTHER)),
    ("arp", "another VM's IPv4 as sender"): lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4_OTHER), (NO_MAC, IP4_OTHER)),
    ("discovery", "an answer for another VM's IPv6"): lambda me, _: solicits(
        me, IP6_OTHER, option(TARGET_MAC, me.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "an answer for another VM's link-local"): lambda me, you: solicits(
        me, link_local(you.mac), option(TARGET_MAC, me.mac), kind=ADVERTISEMENT
    ),
    ("discovery", "an answer from another VM's IPv6"): lambda me, _: solicits(
        me, IP6, option(TARGET_MAC, me.mac), sender=IP6_OTHER, kind=ADVERTISEMENT
    ),
    ("discovery", "a question from another VM's IPv6"): lambda me, _: solicits(
        me, IP6, option(SOURCE_MAC, me.mac), sender=IP6_OTHER
    ),
    ("discovery", "a search for duplicates of another VM's IPv6"): lambda me, _: solicits(me, IP6_OTHER, sender=NOWHERE6),
    ("discovery", "an echo from nobody's IPv6"): lambda me, _: ip6(
        me.mac, FOREIGN6, frames.ALL_NODES, ICMPV6, icmp6(FOREIGN6, frames.ALL_NODES, 128, bytes(4))
    ),
    ("discovery", "a multicast report from nobody's IPv6"): lambda me, _: frames.multicast_report(me.mac, "fe80::66"),
    ("ethertype", "an experiment's frame"): lambda me, _: ethernet(me.mac, 0x88B5, bytes(46)),
    ("ethertype", "PPPoE"): lambda me, _: ethernet(me.mac, 0x8863, bytes(46)),
    ("ethertype", "LLC"): lambda me, you: frames.llc(me.mac, you.mac, bytes.fromhex("f0f003") + bytes(43)),
}

#: What every guarded VM may send.
ALWAYS: dict[str, Frame] = {
    "its IPv4": lambda me, _: ip4(me.mac, IP4, "10.91.0.255", UDP, udp(1000, 2000)),
    "TCP": lambda me, _: ip4(me.mac, IP4, "10.91.0.255", TCP, frames.tcp(1000, 2000)),
    "ICMP": lambda me, _: ip4(me.mac, IP4, "10.91.0.255", ICMP, frames.echo()),
    "IPv4 of its prefix": lambda me, _: ip4(me.mac, IN_PREFIX4, "10.91.0.255", UDP, udp(1000, 2000)),
    "a later fragment": lambda me, _: ip4(me.mac, IP4, "10.91.0.255", UDP, bytes(64), fragment=20),
    "a DHCP client without an address": lambda me, _: ip4(me.mac, NOWHERE4, "255.255.255.255", UDP, udp(68, 67, bytes(300))),
    "a DHCP client with its address": lambda me, _: ip4(me.mac, IP4, "255.255.255.255", UDP, udp(68, 67, bytes(300))),
    "an ARP question": lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4_OTHER)),
    "an ARP answer": lambda me, you: arp(me.mac, REPLY, (me.mac, IP4), (you.mac, IP4_OTHER)),
    "an ARP answer of its prefix": lambda me, you: arp(me.mac, REPLY, (me.mac, IN_PREFIX4), (you.mac, IP4_OTHER)),
    "an ARP announcement": lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4)),
    "an ARP probe": lambda me, _: arp(me.mac, REQUEST, (me.mac, NOWHERE4), (NO_MAC, IP4)),
    "an ARP question with padding": lambda me, _: arp(me.mac, REQUEST, (me.mac, IP4), (NO_MAC, IP4_OTHER)).ljust(60, b"\0"),
    "QEMU's announcement": lambda me, _: arp(me.mac, REVERSE_REQUEST, (me.mac, NOWHERE4), (me.mac, NOWHERE4), kind=RARP).ljust(
        60, b"\0"
    ),
    "its IPv6": lambda me, _: ip6(me.mac, IP6, frames.ALL_NODES, UDP, udp(1000, 2000)),
    "IPv6 of its prefix": lambda me, _: ip6(me.mac, IN_PREFIX6, frames.ALL_NODES, TCP, frames.tcp(1000, 2000)),
    "its link-local IPv6": lambda me, _: ip6(me.mac, link_local(me.mac), frames.ALL_NODES, UDP, udp(1000, 2000)),
    "IPv6 behind headers": lambda me, _: ip6(me.mac, IP6, frames.ALL_NODES, DESTINATION, options_header(UDP) + udp(1000, 2000)),
    "IPv6's first fragment": lambda me, _: ip6(
        me.mac, IP6, frames.ALL_NODES, FRAGMENT, frames.fragment_header(UDP, more=True) + udp(1000, 2000, bytes(64))
    ),
    "IPv6's later fragment": lambda me, _: ip6(
        me.mac, IP6, frames.ALL_NODES, FRAGMENT, frames.fragment_header(UDP, offset=72) + bytes(8)
    ),
    "a later fragment of an echo": lambda me, _: ip6(
        me.mac, IP6, frames.ALL_NODES, FRAGMENT, frames.fragment_header(ICMPV6, offset=72) + bytes(8)
    ),
    "a later fragment of what begins with options": lambda me, _: ip6(
        me.mac, IP6, frames.ALL_NODES, FRAGMENT, frames.fragment_header(DESTINATION, offset=72) + bytes(8)
    ),
    "a DHCPv6 client": lambda me, _: ip6(me.mac, link_local(me.mac), frames.ALL_DHCP, UDP, udp(546, 547)),
    "a search for duplicates": lambda me, _: solicits(me, IP6, sender=NOWHERE6),
    "a search for duplicates with a nonce": lambda me, _: solicits(me, IP6, option(NONCE, FOREIGN_MAC), sender=NOWHERE6),
    "a search for duplicates of its link-local": lambda me, _: solicits(me, link_local(me.mac), sender=NOWHERE6),
    "a neighbour's question": lambda me, _: solicits(me, IP6_OTHER, option(SOURCE_MAC, me.mac), sender=IP6),
    "a neighbour's answer": lambda me, _: solicits(me, IP6, option(TARGET_MAC, me.mac), sender=IP6, kind=ADVERTISEMENT),
    "a neighbour's answer from its link-local": lambda me, _: solicits(
        me, IN_PREFIX6, option(TARGET_MAC, me.mac), kind=ADVERTISEMENT
    ),
    "a question for routers": lambda me, _: discovery(
        me.mac, link_local(me.mac), ROUTER_SOLICITATION, b"", option(SOURCE_MAC, me.mac), to=ALL_ROUTERS
    ),
    "a question for routers from nowhere": lambda me, _: discovery(me.mac, NOWHERE6, ROUTER_SOLICITATION, to=ALL_ROUTERS),
    "a multicast report": lambda me, _: frames.multicast_report(me.mac, link_local(me.mac)),
    "a multicast report from nowhere": lambda me, _: frames.multicast_report(me.mac, NOWHERE6),
    "an echo": lambda me, _: ip6(me.mac, IP6, frames.ALL_NODES, ICMPV6, icmp6(IP6, frames.ALL_NODES, 128, bytes(4))),
}


#: What a bridge itself drops, before the guard and before it learns (net/bridge/br_input.c, br_handle_frame); by why a guard
#: does so where no bridge is.
AT_THE_BRIDGE: dict[tuple[str, str], Frame] = {
    ("control", "pause"): lambda me, _: frames.pause(me.mac),
    ("control", "pause with a foreign MAC"): lambda *_: frames.pause(FOREIGN_MAC),
    ("mac", "a group's MAC"): lambda *_: ip4("33:33:00:00:00:01", IP4, IP4_OTHER, UDP, udp(1, 2)),
    ("mac", "no MAC"): lambda *_: ip4(NO_MAC, IP4, IP4_OTHER, UDP, udp(1, 2)),
}
