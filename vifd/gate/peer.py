"""Who is on the other side of a Unix socket, as the kernel says (unix(7), socket(7))."""

from __future__ import annotations

import os
import socket
import struct
from logging import getLogger

from vifd.kernel.processes import inode_of
from vifd.model import Caller

_log = getLogger(__name__)
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77  # asm-generic/socket.h, since Linux 4.13 and 6.5
_GROUPS_BYTES = 1024  # what Python's getsockopt takes at most: 256 groups


def identify(connection: socket.socket) -> Caller:
    """Tell who connected: the credentials of that moment, with the supplementary groups.

    A process in more than 256 groups counts with its primary group alone.

    Raises:
        OSError: the kernel doesn't say.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        _log.warning("a caller's groups can't be read", extra={"uid": uid, "error": str(error)})
        data = b""
    return Caller(uid, gid, frozenset(struct.unpack(f"={len(data) // 4}I", data)), pid, _process_inode(connection))


def _process_inode(connection: socket.socket) -> int:
    """Tell the process that connected from every other, also from one that has its pid by now; 0 where the kernel doesn't."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel, or the process has ended already
        return 0
    try:
        return inode_of(pidfd)
    finally:
        os.close(pidfd)
