"""A socket filter that keeps events away that say nothing new.

A request causes seven of its device, and each would wake the process that waits for its end.

It is classic BPF (Documentation/networking/filter.rst), which everybody may attach to an own socket. An endpoint's device is
known by its name, or, when somebody has renamed it, by its mark. What passes:
- the end of such a device, and of any bridge;
- a state of such a device that has carrier;
- one that is down and was up until now;
- one that is up, not running, and didn't just change its flags: so the kernel tells, within a second, that carrier is lost
  (net/core/link_watch.c), and so it does not tell of a device that is being set up;
- the same states of a port with an endpoint's name, as its bridge tells them;
- that a bridge has learned an address, and answers to questions;
- every change of traffic control that another program made: it names no device but by its index.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

from vifd.kernel.learning import AF_BRIDGE, RTM_NEWNEIGH, STATIC
from vifd.kernel.names import DEVICE_PREFIX
from vifd.kernel.netlink import OWN_PORTS, RTM_DELLINK, RTM_NEWLINK, Ifla
from vifd.kernel.tc import EVENTS

_SO_ATTACH_FILTER = 26
_LOAD_WORD, _LOAD_BYTE, _EQUAL, _BITS, _RETURN = 0x20, 0x30, 0x15, 0x45, 0x06  # linux/bpf_common.h
_SET, _SET_INDEX, _TO_INDEX, _LOAD_WORD_THERE, _LOAD_BYTE_THERE = 0x00, 0x01, 0x07, 0x40, 0x50
# linux/filter.h, SKF_AD_NLATTR and SKF_AD_NLATTR_NEST: from where the accumulator says, or in the attribute there, where is that
# of the index register's type? 0: nowhere.
_FIND, _FIND_INSIDE = 0xFFFFF00C, 0xFFFFF010
_LITTLE = sys.byteorder == "little"
# Where a message has what (struct nlmsghdr, struct ifinfomsg, struct nlattr), by bytes, for BPF's words are big-endian.
_TYPE, _FAMILY, _CHANGE, _ATTRIBUTES, _NAME = 4 if _LITTLE else 5, 16, 28, 32, 36
_PORT_UPPER, _PORT_LOWER = (15, 14) if _LITTLE else (12, 13)
_UP, _LOWER_UP = (24, 26) if _LITTLE else (27, 25)
_LEAST_BYTE = 0 if _LITTLE else 3
_FLAGS, _NEIGHBOUR_STATE = (6, 24) if _LITTLE else (7, 25)  # struct ndmsg
_NLM_F_MULTI = 2
_IFF_UP, _IFF_RUNNING = 0x01, 0x40  # linux/if.h
_INFO_KIND, _VALUE = 1, 4
# An endpoint's mark: "vifd:", and a UUID with its first "-" there; the marks of bridges and ifbs have none there.
_MARK, _DASH_AT = int.from_bytes(b"vifd", "big"), 13
_BRIDGE = int.from_bytes(b"brid", "big")
_ALL, _NOTHING = 0xFFFFFFFF, 0

#: Each line: the operation, its number, and where to go on: (if true, if false).
_Lines = dict[str, tuple[int, int, str, str]]


def attach(connection: socket.socket) -> None:
    """Attach the filter to an rtnetlink socket.

    Raises:
        OSError: the kernel refuses.
    """
    program = _assemble()
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a length, and a pointer to the instructions.
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer)))


def _sort() -> _Lines:
    """Tell traffic control, ports of bridges and devices apart."""
    first, second = DEVICE_PREFIX
    changes: _Lines = {f"tc{kind}": (_EQUAL, kind, "by", "") for kind in EVENTS}
    upper, lower = divmod(OWN_PORTS, 1 << 8)
    return {
        "start": (_LOAD_BYTE, _FLAGS, "", ""),
        "is_answer": (_BITS, _NLM_F_MULTI, "pass", ""),
        "type": (_LOAD_BYTE, _TYPE, "", ""),
        **changes,
        "learned": (_EQUAL, RTM_NEWNEIGH, "", "is_new"),
        "neighbour": (_LOAD_BYTE, _FAMILY, "", ""),
        "of_bridge": (_EQUAL, AF_BRIDGE, "", "drop"),
        "neighbour_state": (_LOAD_BYTE, _NEIGHBOUR_STATE, "", ""),
        "is_static": (_BITS, STATIC, "drop", "pass"),
        "is_new": (_EQUAL, RTM_NEWLINK, "family", ""),
        "is_end": (_EQUAL, RTM_DELLINK, "family", "drop"),
        "by": (_LOAD_BYTE, _PORT_UPPER, "", ""),
        "by_upper": (_EQUAL, upper, "", "pass"),
        "by_lower": (_LOAD_BYTE, _PORT_LOWER, "", ""),
        "by_us": (_EQUAL, lower, "drop", "pass"),
        "family": (_LOAD_BYTE, _FAMILY, "", ""),
        "unspec": (_EQUAL, socket.AF_UNSPEC, "device", ""),
        "bridge": (_EQUAL, AF_BRIDGE, "", "drop"),
        "port": (_LOAD_BYTE, _TYPE, "", ""),
        "is_port": (_EQUAL, RTM_NEWLINK, "", "drop"),
        "port_name": (_LOAD_BYTE, _NAME, "", ""),
        "port_v": (_EQUAL, first, "", "drop"),
        "port_second": (_LOAD_BYTE, _NAME + 1, "", ""),
        "port_d": (_EQUAL, second, "carrier", "drop"),
        "device": (_LOAD_BYTE, _NAME, "", ""),
        "v": (_EQUAL, first, "", "find_mark"),
        "second": (_LOAD_BYTE, _NAME + 1, "", ""),
        "d": (_EQUAL, second, "own", ""),
    }


def _find_out_whose() -> _Lines:
    """Find a renamed device's mark; of a device that is none of vifd's, only a bridge's end is told."""
    return {
        "find_mark": (_SET, _ATTRIBUTES, "", ""),
        "of_alias": (_SET_INDEX, Ifla.IFALIAS, "", ""),
        "mark_at": (_LOAD_WORD, _FIND, "", ""),
        "no_mark": (_EQUAL, 0, "other", ""),
        "mark_there": (_TO_INDEX, 0, "", ""),
        "mark": (_LOAD_WORD_THERE, _VALUE, "", ""),
        "is_mark": (_EQUAL, _MARK, "", "other"),
        "dash": (_LOAD_BYTE_THERE, _VALUE + _DASH_AT, "", ""),
        "has_dash": (_EQUAL, ord("-"), "own", ""),
        "other": (_LOAD_BYTE, _TYPE, "", ""),
        "other_end": (_EQUAL, RTM_DELLINK, "", "drop"),
        "find_info": (_SET, _ATTRIBUTES, "", ""),
        "of_info": (_SET_INDEX, Ifla.LINKINFO, "", ""),
        "info_at": (_LOAD_WORD, _FIND, "", ""),
        "no_info": (_EQUAL, 0, "drop", ""),
        "of_kind": (_SET_INDEX, _INFO_KIND, "", ""),
        "kind_at": (_LOAD_WORD, _FIND_INSIDE, "", ""),
        "no_kind": (_EQUAL, 0, "drop", ""),
        "kind_there": (_TO_INDEX, 0, "", ""),
        "kind": (_LOAD_WORD_THERE, _VALUE, "", ""),
        "is_bridge": (_EQUAL, _BRIDGE, "pass", "drop"),
    }


def _judge() -> _Lines:
    """Tell what says something new of an endpoint's device."""
    return {
        "own": (_LOAD_BYTE, _TYPE, "", ""),
        "deleted": (_EQUAL, RTM_DELLINK, "pass", ""),
        "carrier": (_LOAD_BYTE, _LOWER_UP, "", ""),
        "has_carrier": (_BITS, 1, "pass", ""),
        "up": (_LOAD_BYTE, _UP, "", ""),
        "is_up": (_BITS, _IFF_UP, "", "downed"),
        "is_running": (_BITS, _IFF_RUNNING, "drop", ""),
        "change": (_LOAD_WORD, _CHANGE, "", ""),
        "unchanged": (_EQUAL, 0, "pass", "drop"),
        "downed": (_LOAD_BYTE, _CHANGE + _LEAST_BYTE, "", ""),
        "was_up": (_BITS, _IFF_UP, "", "drop"),
        "made": (_LOAD_BYTE, _CHANGE + 3 - _LEAST_BYTE, "", ""),
        "is_new_device": (_EQUAL, 0xFF, "drop", "pass"),
        "pass": (_RETURN, _ALL, "", ""),
        "drop": (_RETURN, _NOTHING, "", ""),
    }


def _assemble() -> bytes:
    lines = _sort() | _find_out_whose() | _judge()
    place = {name: index for index, name in enumerate(lines)}

    def distance(index: int, target: str) -> int:
        return place[target] - index - 1 if target else 0

    return b"".join(
        struct.pack("=HBBI", code, distance(index, true), distance(index, false), number)
        for index, (code, number, true, false) in enumerate(lines.values())
    )
