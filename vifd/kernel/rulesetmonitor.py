"""Notices that somebody else changed the guard's table.

nfnetlink lets only CAP_NET_ADMIN listen, so the socket is made while the process is root. A filter keeps away what the helper has
caused itself, and what is about no family of the guard's: the process that waits for requests isn't woken by them.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from logging import getLogger

from vifd.kernel.nft.ruleset import TABLE
from vifd.kernel.nft.wire import NETLINK_NETFILTER, SUBSYSTEM, Family

_log = getLogger(__name__)
_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER = 26
_LOAD_WORD, _LOAD_BYTE, _EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06  # linux/bpf_common.h
_PACKET_BYTES = 1 << 16
_NAME = TABLE.encode() + b"\0"  # each message names its table; another program's may be changed all the time
_SUBSYSTEM_AT, _PORT_ID_AT, _FAMILY_AT = 5 if sys.byteorder == "little" else 4, 12, 16


def listen(own_port_id: int) -> socket.socket:
    """Open a socket that tells of changes by others. Needs CAP_NET_ADMIN.

    Args:
        own_port_id: whose changes are not told.

    Raises:
        OSError: the kernel refuses.
    """
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    listener.setblocking(False)
    # A word of BPF is big-endian; the number in the message is the host's.
    swapped = int.from_bytes(struct.pack("=I", own_port_id), "big")
    program = [
        (_LOAD_BYTE, 0, 0, _SUBSYSTEM_AT),
        (_EQUAL, 0, 6, SUBSYSTEM),
        (_LOAD_WORD, 0, 0, _PORT_ID_AT),
        (_EQUAL, 4, 0, swapped),
        (_LOAD_BYTE, 0, 0, _FAMILY_AT),
        (_EQUAL, 1, 0, Family.BRIDGE),
        (_EQUAL, 0, 1, Family.NETDEV),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
    packed = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    fprog = struct.pack("HL", len(program), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    listener.bind((0, 0))
    listener.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    return listener


class RulesetMonitor:
    """Calls when others have changed something of the guard's family.

    Args:
        listener: from `listen`.
        on_change: called for each burst of changes that name the table; it finds out what they are.
    """

    def __init__(self, listener: socket.socket, on_change: Callable[[], None]) -> None:
        self._listener, self._on_change = listener, on_change

    def start(self) -> None:
        """Begin to tell, in the running loop."""
        asyncio.get_running_loop().add_reader(self._listener, self._read)

    def close(self) -> None:
        """Stop telling."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def _read(self) -> None:
        concerned = False
        while True:
            try:
                concerned |= _NAME in self._listener.recv(_PACKET_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                # ENOBUFS: events were lost, and what was lost may be about the table.
                _log.warning("events of nftables were lost", extra={"error": str(error)})
                concerned = True
        if concerned:
            self._on_change()
