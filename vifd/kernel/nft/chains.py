"""The rules of the guard's table, see `ruleset`."""

from __future__ import annotations

from collections.abc import Iterable

from vifd.kernel.nft.rules import (
    L4PROTO,
    PKTTYPE,
    PROTOCOL,
    Field,
    accept,
    be16,
    count,
    differ,
    done,
    drop,
    equal,
    exists,
    extension,
    goto,
    limited_by,
    link,
    member,
    network,
    transport,
)
from vifd.kernel.nft.sets import (
    DROPS,
    FROM_VM,
    IP4,
    IP4_PREFIXES,
    IP6,
    IP6_PREFIXES,
    LISTED,
    MACS,
    SENDERS,
    SENDERS4,
    SENDERS6,
)

Chains = dict[str, tuple[bytes, ...]]

#: The chain for a port that has limits alone, and with what the names begin of those for ports with limits and a guard.
LIMITED = "limited"
#: Types of what follows the link-layer header.
IP, IPV6 = be16(0x0800), be16(0x86DD)

_ETHERTYPE, _TO, _FROM, _SECOND_TAG = link(12, 2), link(0, 6), link(6, 6), link(16, 2)
_TO_BEGIN, _FROM_AND_TYPE = link(0, 4), link(6, 8)
_TO_GROUP = b"\x02"  # linux/if_packet.h, PACKET_MULTICAST
_ARP, _RARP = be16(0x0806), be16(0x8035)
_TAG, _OTHER_TAGS = 0x8100, (0x88A8, 0x9100, 0x9200)  # IEEE 802.1Q; 802.1ad, older QinQ
# IEEE 802.1D table 7-10: what a bridge never forwards; Cisco's CDP and PVST+; IEEE 802.3 MAC control, slow protocols, LLDP.
_RESERVED, _RESERVED_MASK = bytes.fromhex("0180c2000000"), bytes.fromhex("fffffffffff0")
_CISCO, _CISCO_MASK = bytes.fromhex("01000ccccccc"), bytes.fromhex("fffffffffffe")
_CONTROL_TYPES = (0x8808, 0x8809, 0x88CC)
_UDP, _ICMPV6 = b"\x11", b"\x3a"
_DHCP_SERVER, _DHCP6_SERVER = (be16(67), be16(68)), (be16(547), be16(546))  # the ports that a server sends from and to
_IP4_SOURCE, _IP6_SOURCE = network(12, 4), network(8, 16)
_SOURCE_PORT, _PORT, _BOTH_PORTS, _ICMP_TYPE = transport(0, 2), transport(2, 2), transport(0, 4), transport(0, 1)
_FRAGMENT, _OFFSET_MASK = extension(44, 2, 2), be16(0xFFF8)
_ARP_FORM, _ARP_ETHER_IP, _ARP_END = network(0, 6), bytes.fromhex("000108000604"), network(24, 4)
_ARP_OPERATION, _ARP_MAC, _ARP_SENDER = network(6, 2), network(8, 6), network(14, 4)
_REVERSE_REQUEST = be16(3)
# RFC 4861: router solicitation and advertisement, neighbour solicitation and advertisement, redirect
_RS, _RA, _NS, _NA, _REDIRECT = (bytes([n]) for n in (133, 134, 135, 136, 137))
_TARGET = transport(8, 16)
_SOURCE_OPTION, _TARGET_OPTION, _NONCE_OPTION = b"\x01", b"\x02", b"\x0e"
_ANY4, _ANY6 = bytes(4), bytes(16)


def _dropped(why: str) -> bytes:
    return count(why) + goto("drop")


def chains_of(port: Field, *, is_group_known: bool) -> Chains:
    """Give the chains by name, those that are gone to before those that go.

    Args:
        port: what names the port of a frame that a VM sends.
        is_group_known: whether the kernel has noted of each frame that it is to a group, as it does of what comes in.
    """
    swapped = port._replace(swapped=True)
    chains = {
        "drop": (member(DROPS, port) + drop(), drop()),
        **_arp_chains(port, swapped),
        "icmp6": _discovery(port, swapped),
        **_ip4_chains(port, swapped),
        **_ip6_chains(port, swapped),
        **_link_chains(port),
    }
    to_one = differ(PKTTYPE, _TO_GROUP) if is_group_known else differ(_TO_BEGIN, _RESERVED[:4])
    entries = {"trunk": chains["trunk"], **_quick_chains(port, swapped, to_one)}
    limited = {f"{LIMITED}_{name}": (*over_limits(FROM_VM, port), goto(name)) for name in entries}
    return chains | entries | {LIMITED: over_limits(FROM_VM, port)} | limited


def over_limits(maps: Iterable[str], port: Field) -> tuple[bytes, ...]:
    """Give the rules that drop what is too much, a map each."""
    return tuple(limited_by(name, port) + count("rate") + drop() for name in sorted(maps))


def _quick_chains(port: Field, swapped: Field, to_one: bytes) -> Chains:
    """Give the chains that let the commonest frames pass: those that all the others would let pass, too.

    They are IP without a tag, of the VM's MAC and address, to one station or not to a reserved group, with ports behind the IP
    header that aren't DHCP's; so they are as long as they say, and no later fragments.
    """
    (from4, to4), (from6, to6) = _DHCP_SERVER, _DHCP6_SERVER
    ip4 = equal(PROTOCOL, IP) + differ(_SOURCE_PORT, from4) + differ(_PORT, to4) + to_one
    ip6 = equal(PROTOCOL, IPV6) + differ(_SOURCE_PORT, from6) + differ(_PORT, to6) + differ(L4PROTO, _ICMPV6) + to_one
    sender = member(SENDERS, port, _FROM_AND_TYPE)
    listed = (
        ip4 + member(SENDERS4, port, _FROM_AND_TYPE, _IP4_SOURCE) + accept(),
        ip6 + member(SENDERS6, port, _FROM_AND_TYPE, _IP6_SOURCE) + accept(),
    )
    prefixed = (
        ip4 + sender + member(IP4_PREFIXES, swapped, _IP4_SOURCE) + accept(),
        ip6 + sender + member(IP6_PREFIXES, swapped, _IP6_SOURCE) + accept(),
    )
    others = goto("access")
    return {
        "anywhere": (ip4 + sender + accept(), ip6 + sender + accept(), others),
        "listed": (*listed, others),
        "prefixed": (*listed, *prefixed, others),
    }


def _link_chains(port: Field) -> Chains:
    is_tagged = equal(_ETHERTYPE, be16(_TAG))
    return {
        "sender": (
            equal(_TO, _RESERVED, mask=_RESERVED_MASK) + _dropped("control"),
            member(MACS, port, _FROM, negate=True) + _dropped("mac"),
            equal(PROTOCOL, IP) + goto("ip4"),
            equal(PROTOCOL, IPV6) + goto("ip6"),
            equal(PROTOCOL, _ARP) + goto("arp"),
            equal(PROTOCOL, _RARP) + goto("rarp"),
            equal(_TO, _CISCO, mask=_CISCO_MASK) + _dropped("control"),
            *(equal(PROTOCOL, be16(kind)) + _dropped("control") for kind in _CONTROL_TYPES),
            member(LISTED, port) + _dropped("ethertype"),
            done(),
        ),
        # Most frames are IP, and that is told from a tag first.
        "access": (
            *(equal(_ETHERTYPE, kind) + goto("sender") for kind in (IP, IPV6)),
            *(equal(_ETHERTYPE, be16(tag)) + _dropped("tag") for tag in (_TAG, *_OTHER_TAGS)),
            goto("sender"),
        ),
        "trunk": (
            *(equal(_ETHERTYPE, be16(tag)) + _dropped("tag") for tag in _OTHER_TAGS),
            *(is_tagged + equal(_SECOND_TAG, be16(tag)) + _dropped("tag") for tag in (_TAG, *_OTHER_TAGS)),
            goto("sender"),
        ),
    }


def _arp_chains(port: Field, swapped: Field) -> Chains:
    of_own_mac = equal(_ARP_FORM, _ARP_ETHER_IP) + exists(_ARP_END) + member(MACS, port, _ARP_MAC)
    return {
        "arp_sender": (
            member(LISTED, port, negate=True) + done(),
            equal(_ARP_SENDER, _ANY4) + done(),  # RFC 5227: a probe
            member(IP4, port, _ARP_SENDER) + done(),
            member(IP4_PREFIXES, swapped, _ARP_SENDER) + done(),
            _dropped("arp"),
        ),
        "arp": (of_own_mac + goto("arp_sender"), _dropped("arp")),
        # QEMU announces a VM that has moved with a reverse request of its own.
        "rarp": (equal(_ARP_OPERATION, _REVERSE_REQUEST) + of_own_mac + done(), _dropped("rarp")),
    }


def _ip4_chains(port: Field, swapped: Field) -> Chains:
    udp = equal(L4PROTO, _UDP)
    return {
        "ip4_source": (
            # A client takes an answer from whatever port it comes.
            *(udp + equal(*end) + _dropped("dhcp_server") for end in zip((_SOURCE_PORT, _PORT), _DHCP_SERVER, strict=True)),
            member(LISTED, port, negate=True) + done(),
            member(IP4, port, _IP4_SOURCE) + done(),
            member(IP4_PREFIXES, swapped, _IP4_SOURCE) + done(),
            equal(_IP4_SOURCE, _ANY4) + udp + equal(_BOTH_PORTS, be16(68) + be16(67)) + done(),
            _dropped("address"),
        ),
        "ip4": (exists(L4PROTO) + goto("ip4_source"), _dropped("malformed")),
    }


def _ip6_chains(port: Field, swapped: Field) -> Chains:
    """Give the chains for IPv6.

    The kernel finds the last header behind extension headers and in first fragments. A first fragment that ends before it is
    dropped (RFC 7112): in the next could be anything. Of later ones, the source alone is looked at: without the first they are
    nothing.
    """
    udp, icmp6 = equal(L4PROTO, _UDP), equal(L4PROTO, _ICMPV6)
    return {
        "ip6_source": (
            member(LISTED, port, negate=True) + done(),
            member(IP6, port, _IP6_SOURCE) + done(),
            member(IP6_PREFIXES, swapped, _IP6_SOURCE) + done(),
            _dropped("address"),
        ),
        "ip6": (
            differ(_FRAGMENT, bytes(2), mask=_OFFSET_MASK) + goto("ip6_source"),
            icmp6 + exists(_BOTH_PORTS) + goto("icmp6"),
            icmp6 + _dropped("malformed"),
            *(udp + equal(*end) + _dropped("dhcp_server") for end in zip((_SOURCE_PORT, _PORT), _DHCP6_SERVER, strict=True)),
            udp + exists(_BOTH_PORTS) + goto("ip6_source"),
            udp + _dropped("malformed"),
            exists(L4PROTO) + goto("ip6_source"),
            _dropped("malformed"),
        ),
    }


def _discovery(port: Field, swapped: Field) -> tuple[bytes, ...]:
    """Give the rules for ICMPv6: no router's messages, no foreign MAC in an option, no foreign address as target or source.

    An option that claims a MAC has to be the first and only one (RFC 4861, section 4): a second would not be looked at here.
    """

    def options(kind: bytes, offset: int, allowed: bytes) -> tuple[bytes, ...]:
        is_kind = equal(_ICMP_TYPE, kind)
        option, claimed = transport(offset, 1), transport(offset + 2, 6)
        is_allowed = equal(option, allowed)
        return (
            is_kind + exists(transport(offset + 8, 1)) + _dropped("discovery"),
            is_kind + is_allowed + member(MACS, port, claimed, negate=True) + _dropped("discovery"),
            is_kind + differ(option, allowed) + differ(option, _NONCE_OPTION) + _dropped("discovery"),
        )

    def mine(field: Field) -> tuple[bytes, bytes]:
        return member(IP6, port, field), member(IP6_PREFIXES, swapped, field)

    from_nowhere = equal(_IP6_SOURCE, _ANY6)
    return (
        equal(_ICMP_TYPE, _RA) + _dropped("router"),
        equal(_ICMP_TYPE, _REDIRECT) + _dropped("router"),
        # RFC 6980: none of these comes in fragments; an option could be in the next.
        *(equal(_ICMP_TYPE, kind) + exists(_FRAGMENT) + _dropped("discovery") for kind in (_RS, _NS, _NA)),
        *options(_RS, 8, _SOURCE_OPTION),
        *options(_NS, 24, _SOURCE_OPTION),
        *options(_NA, 24, _TARGET_OPTION),
        member(LISTED, port, negate=True) + done(),
        # RFC 4862: to find out whether an address is free, one asks for it from no address.
        *(from_nowhere + equal(_ICMP_TYPE, _NS) + target + done() for target in mine(_TARGET)),
        from_nowhere + equal(_ICMP_TYPE, _RS) + done(),
        from_nowhere + equal(_ICMP_TYPE, b"\x8f") + done(),  # RFC 3590: a multicast report before there is an address
        *(differ(_ICMP_TYPE, _NA) + source + done() for source in mine(_IP6_SOURCE)),
        *(equal(_ICMP_TYPE, _NA) + source + target + done() for source in mine(_IP6_SOURCE) for target in mine(_TARGET)),
        _dropped("discovery"),
    )
