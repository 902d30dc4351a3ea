"""Notices that somebody else changed the guard's table, or that of networks with NAT.

nfnetlink lets only CAP_NET_ADMIN listen, so the socket is made while the process is root. A filter keeps away what the helper has
caused itself, and what is about no family of theirs: the process that waits for requests isn't woken by them.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from logging import getLogger

from vifd.kernel.nft import natrules, ruleset
from vifd.kernel.nft.wire import NETLINK_NETFILTER, SUBSYSTEM, Family

_log = getLogger(__name__)
_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER = 26
_LOAD_WORD, _LOAD_BYTE, _EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06  # linux/bpf_common.h
_PACKET_BYTES = 1 << 16
_FAMILIES = (Family.BRIDGE, Family.NETDEV, natrules.FAMILY)
_NAMES = [
    name.encode() + b"\0" for name in (ruleset.TABLE, natrules.TABLE)
]  # each message names its table; another program's may be changed all the time
_SUBSYSTEM_AT, _PORT_ID_AT, _FAMILY_AT = 5 if sys.byteorder == "little" else 4, 12, 16


def listen(own_port_ids: Sequence[int]) -> socket.socket:
    """Open a socket that tells of changes by others. Needs CAP_NET_ADMIN.

    Args:
        own_port_ids: whose changes are not told.

    Raises:
        OSError: the kernel refuses.
    """
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    listener.setblocking(False)
    program = _filter(own_port_ids)
    packed = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    fprog = struct.pack("HL", len(program), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    listener.bind((0, 0))
    listener.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    return listener


def _filter(own_port_ids: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Give the program of a filter for what others change in a family of vifd's tables (linux/filter.h: code, jt, jf, k)."""
    families, owners = len(_FAMILIES), len(own_port_ids)
    lines = [(_LOAD_BYTE, 0, 0, _SUBSYSTEM_AT), (_EQUAL, 0, owners + families + 2, SUBSYSTEM), (_LOAD_WORD, 0, 0, _PORT_ID_AT)]
    for index, port_id in enumerate(own_port_ids):
        # A word of BPF is big-endian; the number in the message is the host's.
        swapped = int.from_bytes(struct.pack("=I", port_id), "big")
        lines.append((_EQUAL, owners - index + families, 0, swapped))
    lines.append((_LOAD_BYTE, 0, 0, _FAMILY_AT))
    lines += [(_EQUAL, families - index, 0, family) for index, family in enumerate(_FAMILIES)]
    return [*lines, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)]


class RulesetMonitor:
    """Calls when others have changed something of the families of vifd's tables.

    Args:
        listener: from `listen`.
        on_change: called for each burst of changes that name a table; it finds out what they are.
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
                message = self._listener.recv(_PACKET_BYTES)
                concerned |= any(name in message for name in _NAMES)
            except BlockingIOError:
                break
            except OSError as error:
                # ENOBUFS: events were lost, and what was lost may be about a table.
                _log.warning("events of nftables were lost", extra={"error": str(error)})
                concerned = True
        if concerned:
            self._on_change()
