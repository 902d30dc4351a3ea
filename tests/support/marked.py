"""Frames with a mark, and who counts them: the kernel, so that none is missed, however many there are."""

from __future__ import annotations

import ctypes
import socket
import struct

from tests.support import frames, kernel
from tests.support.frames import REPLY, REQUEST, arp, ethernet, tagged
from tests.support.spoofs import FOREIGN_MAC, NO_MAC

#: The last four bytes of an ARP packet, and the same place of other frames.
FORGED, LEGAL, MARK_AT = "66.79.82.71", "76.69.71.65", 38
_FOREIGN = "10.91.0.66"
_SOL_PACKET, _PACKET_STATISTICS, _SO_ATTACH_FILTER, _ETH_P_ALL = 263, 6, 26, 3


class Count:
    """What the kernel counts of frames with a mark at some devices, from any direction."""

    def __init__(self, netns: str, mark: str, *devices: str) -> None:
        self._sockets = [kernel.inside(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) for _ in devices]
        wanted = struct.unpack(">I", frames.ip_bytes(mark))[0]
        lines = [(0x20, 0, 0, MARK_AT), (0x15, 0, 1, wanted), (0x06, 0, 0, 64), (0x06, 0, 0, 0)]  # load, compare, return
        packed = b"".join(struct.pack("=HBBI", *line) for line in lines)
        buffer = ctypes.create_string_buffer(packed, len(packed))
        program = struct.pack("HL", len(lines), ctypes.addressof(buffer))
        for one, device in zip(self._sockets, devices, strict=True):
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            one.bind((device, _ETH_P_ALL))
        self.take()

    def take(self) -> int:
        """How many there were since the last call."""
        statistics = [one.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8) for one in self._sockets]
        return sum(struct.unpack("II", part)[0] for part in statistics)

    def close(self) -> None:
        """Stop counting."""
        for one in self._sockets:
            one.close()


def forgeries(mac: str) -> list[bytes]:
    """Frames that no guarded VM may send, each with the mark."""
    end = bytes(24) + frames.ip_bytes(FORGED) + bytes(18)
    return [
        arp(FOREIGN_MAC, REPLY, (FOREIGN_MAC, _FOREIGN), (NO_MAC, FORGED)),
        arp(mac, REPLY, (FOREIGN_MAC, _FOREIGN), (NO_MAC, FORGED)),
        ethernet(FOREIGN_MAC, 0x88B5, end),
        ethernet(FOREIGN_MAC, 0x88CC, end, "01:80:c2:00:00:0e"),
        tagged(ethernet(mac, 0x88B5, end), (0x8100, 5)),
    ]


def legals(mac: str) -> list[bytes]:
    """Frames that every VM may send, each with the other mark."""
    return [arp(mac, REQUEST, (mac, "0.0.0.0"), (NO_MAC, LEGAL))]
