"""Announces a VM that runs here now: frames in its name, out of its network's uplink, so that switches and neighbours know.

QEMU does so itself, with the frames of the virtual card; who resumes a VM in another way, or passes a device through, doesn't.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from vifd.kernel import macvtap, names, netlink, ops
from vifd.kernel.authority import Authority, BridgeGrant, FunctionGrant, UplinkGrant, VdpaGrant
from vifd.kernel.marks import is_device_of, look_up
from vifd.kernel.netlink import Ifla, Link, RtnlSocket
from vifd.model import Port

_BROADCAST, _ALL_NODES_MAC, _ALL_NODES = b"\xff" * 6, bytes.fromhex("333300000001"), ipaddress.IPv6Address("ff02::1")
_ARP, _RARP, _IPV6, _TAG = 0x0806, 0x8035, 0x86DD, 0x8100
_ARP_REQUEST, _REVERSE_REQUEST = 1, 3
_ICMPV6, _ADVERTISEMENT, _OVERRIDE, _TARGET_MAC = 58, 136, 0x20, 2
_NO_ADDRESS = bytes(4)
_LEAST_BYTES = 60  # IEEE 802.3, without the checksum


def open_packet_socket() -> socket.socket | None:
    """Open a socket that can send frames and receives none (packet(7), protocol 0). It takes CAP_NET_RAW, to send doesn't.

    It waits for nobody: an uplink that sends nothing more, for the other end has paused it, would keep the helper from its work.

    Returns:
        The socket. None: this process may not have one, so nothing is announced.
    """
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EAFNOSUPPORT):
            return None
        raise


def frames(port: Port, *, tagged: bool) -> Iterator[bytes]:
    """Give the frames that announce a VM: a reverse ARP request as QEMU's, and for each address that is known what makes
    neighbours correct theirs: an ARP announcement (RFC 5227, section 3), or an unsolicited advertisement (RFC 4861, 7.2.6).

    Args:
        port: what the VM has; of whole prefixes nobody knows which addresses it uses.
        tagged: whether frames of its VLAN carry a tag there.
    """
    mac = bytes.fromhex(port.mac.replace(":", ""))
    vid = port.vlan.vid if port.vlan is not None and tagged else 0
    yield _frame(_BROADCAST, mac, vid, _RARP, _arp(_REVERSE_REQUEST, mac, _NO_ADDRESS, mac, _NO_ADDRESS))
    for text in port.addresses:
        interface = ipaddress.ip_interface(text)
        if interface.network.num_addresses > 1:
            continue
        address = interface.ip
        if isinstance(address, ipaddress.IPv4Address):
            yield _frame(_BROADCAST, mac, vid, _ARP, _arp(_ARP_REQUEST, mac, address.packed, bytes(6), address.packed))
        else:
            yield _frame(_ALL_NODES_MAC, mac, vid, _IPV6, _advertisement(mac, address))


class Announcer:
    """Sends what announces VMs.

    Args:
        rtnl: the socket to ask through.
        packets: the socket to send from; None: there is none.
    """

    def __init__(self, rtnl: RtnlSocket, packets: socket.socket | None) -> None:
        self._rtnl, self._packets = rtnl, packets

    def announce(self, plan: ops.Plan, authority: Authority) -> str:
        """Announce the VM of one endpoint.

        Nothing of the plan is believed but what the kernel has too: it goes out for a device with the endpoint's mark and MAC
        that is on the network, by the uplink that the configuration names.

        Args:
            plan: the one that made the endpoint, already checked.
            authority: what the configuration says.

        Returns:
            Why it couldn't be; empty: it was, or there is nothing to announce it to.
        """
        op = next((op for op in plan if isinstance(op, ops.ConfigurePort)), None)
        if op is None or (op.port.vlan is not None and op.port.vlan.trunk_vids):
            return ""  # which of a trunk's VLANs the VM uses, it alone knows
        grant = authority[op.network]
        if isinstance(grant, FunctionGrant | VdpaGrant) or not grant.uplink:
            return ""
        link = look_up(self._rtnl, [op.endpoint_id])[0].link
        if not is_device_of(link, op.endpoint_id):
            return f"{op.ifname} is gone"
        uplink = self._find_uplink(link, op.port, grant)
        if isinstance(uplink, str):
            return uplink
        if self._packets is None:
            return "vifd was started without CAP_NET_RAW, or without AF_PACKET (RestrictAddressFamilies=)"
        try:
            for frame in frames(op.port, tagged=isinstance(grant, BridgeGrant)):
                self._packets.sendto(frame, (uplink.text(Ifla.IFNAME), 0))
        except OSError as error:
            return f"{grant.uplink}: {os.strerror(error.errno or 0)}"
        return ""

    def _find_uplink(self, link: Link, port: Port, grant: BridgeGrant | UplinkGrant) -> Link | str:
        """Give what a device's frames leave by, if it is on its network with its own MAC; or what differs."""
        mac = link.attributes.get(Ifla.ADDRESS, b"").hex(":")
        is_macvtap = link.kind == macvtap.KIND
        if mac != (port.mac if is_macvtap else names.host_mac(port.mac)):
            return f"{link.text(Ifla.IFNAME)} has the MAC {mac}"
        if is_macvtap != isinstance(grant, UplinkGrant):
            return f"{link.text(Ifla.IFNAME)} is no device of this network"
        if isinstance(grant, UplinkGrant):
            lower = self._rtnl.ask(netlink.get_link(ifindex=link.number(Ifla.LINK))).link
            return lower if lower is not None else "its uplink is gone"
        ifname = grant.uplink_port
        uplink = self._rtnl.ask(netlink.get_link(ifname=ifname)).link
        if uplink is None or not link.number(Ifla.MASTER) or uplink.number(Ifla.MASTER) != link.number(Ifla.MASTER):
            return f"{link.text(Ifla.IFNAME)} and uplink {ifname} aren't on one bridge"
        return uplink


def _frame(to: bytes, source: bytes, vid: int, kind: int, payload: bytes) -> bytes:
    tag = struct.pack(">HH", _TAG, vid) if vid else b""
    return (to + source + tag + struct.pack(">H", kind) + payload).ljust(_LEAST_BYTES, b"\0")


def _arp(operation: int, sender: bytes, sender_address: bytes, target: bytes, target_address: bytes) -> bytes:
    """Pack ARP or reverse ARP for Ethernet and IPv4 (RFC 826, RFC 903)."""
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + sender + sender_address + target + target_address


def _advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Pack an unsolicited neighbour advertisement that overrides what is known (RFC 4861, 4.4), with its IPv6 header."""
    body = address.packed + bytes([_TARGET_MAC, 1]) + mac
    head = struct.pack(">BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE << 24)
    ends, length = address.packed + _ALL_NODES.packed, len(head) + len(body)
    pseudo = ends + struct.pack(">II", length, _ICMPV6)
    head = struct.pack(">BBHI", _ADVERTISEMENT, 0, _checksum(pseudo + head + body), _OVERRIDE << 24)
    return struct.pack(">IHBB", 6 << 28, length, _ICMPV6, 255) + ends + head + body


def _checksum(data: bytes) -> int:
    """Give the Internet checksum (RFC 1071) of an even number of bytes."""
    words: tuple[int, ...] = struct.unpack(f">{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
