"""A socket filter that keeps link events away that say nothing new.

A request causes seven, and each would wake the process that waits for its end.

It is classic BPF (Documentation/networking/filter.rst), which everybody may attach to an own socket. What passes:
- the end of a device with vifd's prefix;
- a state of such a device that has carrier;
- one that is down and was up until now;
- one that is up, not running, and didn't just change its flags: so the kernel tells, within a second, that carrier is lost
  (net/core/link_watch.c), and so it does not tell of a device that is being set up.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

from vifd.kernel.names import DEVICE_PREFIX
from vifd.kernel.netlink import RTM_DELLINK, RTM_NEWLINK

_SO_ATTACH_FILTER = 26
_LOAD_WORD, _LOAD_BYTE, _EQUAL, _BITS, _RETURN = 0x20, 0x30, 0x15, 0x45, 0x06  # linux/bpf_common.h
_LITTLE = sys.byteorder == "little"
# Where a message has what (struct nlmsghdr, struct ifinfomsg, struct nlattr), by bytes, for BPF's words are big-endian.
_TYPE, _FAMILY, _CHANGE, _NAME = 4 if _LITTLE else 5, 16, 28, 36
_UP, _LOWER_UP = (24, 26) if _LITTLE else (27, 25)
_LEAST_BYTE = 0 if _LITTLE else 3
_IFF_UP, _IFF_RUNNING = 0x01, 0x40  # linux/if.h
_ALL, _NOTHING = 0xFFFFFFFF, 0


def attach(connection: socket.socket) -> None:
    """Attach the filter to an rtnetlink socket.

    Raises:
        OSError: the kernel refuses.
    """
    program = _assemble()
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a length, and a pointer to the instructions.
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer)))


def _assemble() -> bytes:
    """Each line: the operation, its number, and where to go on: (if true, if false)."""
    first, second = DEVICE_PREFIX
    lines: dict[str, tuple[int, int, str, str]] = {
        "start": (_LOAD_BYTE, _NAME, "", ""),
        "v": (_EQUAL, first, "second", "drop"),
        "second": (_LOAD_BYTE, _NAME + 1, "", ""),
        "d": (_EQUAL, second, "family", "drop"),
        "family": (_LOAD_BYTE, _FAMILY, "", ""),
        "unspec": (_EQUAL, socket.AF_UNSPEC, "type", "drop"),
        "type": (_LOAD_BYTE, _TYPE, "", ""),
        "deleted": (_EQUAL, RTM_DELLINK, "pass", "new"),
        "new": (_EQUAL, RTM_NEWLINK, "carrier", "drop"),
        "carrier": (_LOAD_BYTE, _LOWER_UP, "", ""),
        "has_carrier": (_BITS, 1, "pass", "up"),
        "up": (_LOAD_BYTE, _UP, "", ""),
        "is_up": (_BITS, _IFF_UP, "is_running", "downed"),
        "is_running": (_BITS, _IFF_RUNNING, "drop", "change"),
        "change": (_LOAD_WORD, _CHANGE, "", ""),
        "unchanged": (_EQUAL, 0, "pass", "drop"),
        "downed": (_LOAD_BYTE, _CHANGE + _LEAST_BYTE, "", ""),
        "was_up": (_BITS, _IFF_UP, "made", "drop"),
        "made": (_LOAD_BYTE, _CHANGE + 3 - _LEAST_BYTE, "", ""),
        "is_new": (_EQUAL, 0xFF, "drop", "pass"),
        "pass": (_RETURN, _ALL, "", ""),
        "drop": (_RETURN, _NOTHING, "", ""),
    }
    place = {name: index for index, name in enumerate(lines)}

    def distance(index: int, target: str) -> int:
        return place[target] - index - 1 if target else 0

    return b"".join(
        struct.pack("=HBBI", code, distance(index, true), distance(index, false), number)
        for index, (code, number, true, false) in enumerate(lines.values())
    )
