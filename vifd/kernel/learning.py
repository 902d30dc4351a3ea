"""What bridges learn: the kernel tells of each MAC address that a bridge has seen a frame from, and on which port
(net/bridge/br_fdb.c, br_fdb_update). So the first frame of a VM is noticed without looking at any.
"""

from __future__ import annotations

from struct import Struct, unpack_from

from vifd.kernel.netlink import request

AF_BRIDGE = 7  # linux/socket.h
RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30  # linux/rtnetlink.h
_NLM_F_DUMP = 0x300
#: States of what a bridge didn't learn: NUD_NOARP and NUD_PERMANENT (linux/neighbour.h).
STATIC = 0xC0
_HEADER_BYTES = 16
_NDMSG = Struct("=BxHiHBB")  # linux/neighbour.h, struct ndmsg


def list_learned() -> bytes:
    """Pack the question what all bridges have learned until now."""
    return request(_RTM_GETNEIGH, _NLM_F_DUMP, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0, 0))


def ports_that_learned(packet: bytes) -> list[int]:
    """Give the indexes of the devices that a packet of messages says an address was learned on."""
    found, offset = [], 0
    while offset + _HEADER_BYTES + _NDMSG.size <= len(packet):
        length, kind = unpack_from("=IH", packet, offset)
        if length < _HEADER_BYTES:
            break
        if kind == RTM_NEWNEIGH:
            family, _, ifindex, state, _, _ = _NDMSG.unpack_from(packet, offset + _HEADER_BYTES)
            if family == AF_BRIDGE and not state & STATIC:
                found.append(ifindex)
        offset += (length + 3) & ~3
    return found
