"""The relay: bytes between a caller and grpc's own socket, under a name that says who the caller is.

grpcio tells a servicer nothing of a Unix socket's peer, but it tells the peer's address. So the connection to grpc is bound to an
abstract name with a fresh nonce, and the nonce is looked up when a call comes. A test pins this, for grpc doesn't promise it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from pathlib import Path
from typing import cast

from vifd.model import Caller

_PREFIX = "vifd-peer-"
_PEER = f"unix-abstract:{_PREFIX}"


class Relay:
    """Copies bytes both ways for each admitted connection, and knows who is behind each.

    Args:
        upstream: the socket that grpc listens on, in a directory that only vifd's user can enter.
    """

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._callers: dict[str, Caller] = {}

    def find_caller(self, peer: str) -> Caller | None:
        """Tell who is behind a `context.peer()`; None for whatever didn't come through the gate."""
        return self._callers.get(peer.removeprefix(_PEER)) if peer.startswith(_PEER) else None

    async def serve(self, connection: socket.socket, caller: Caller) -> None:
        """Copy bytes until either side leaves."""
        loop = asyncio.get_running_loop()
        nonce = secrets.token_hex(16)
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._callers[nonce] = caller
        inner, outer = _End(), _End()
        inner.other, outer.other = outer, inner
        try:
            upstream.bind(f"\0{_PREFIX}{nonce}")
            await loop.sock_connect(upstream, self._upstream)
            # uvloop's create_unix_connection forgets, where the other side leaves meanwhile, that the descriptor is closed: the
            # socket object closes its number again, when it may be somebody else's. This one takes hold of the object first.
            await loop.connect_accepted_socket(lambda: inner, upstream)
            await loop.connect_accepted_socket(lambda: outer, connection.dup())
            await asyncio.wait([inner.closed, outer.closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            inner.close()
            outer.close()
            upstream.close()
            del self._callers[nonce]


class _End(asyncio.Protocol):
    """One end of a relay: what it reads, the other writes."""

    other: _End

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for data in self._early:
            self._transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        self.other.send(data)

    def send(self, data: bytes) -> None:
        """Write, or keep what came before this end was there."""
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        self.other.resume_reading()

    def pause_reading(self) -> None:
        """Read no more until the other end has written what it has."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self) -> None:
        """Close this end, after what it still has to write."""
        if self._transport is not None:
            self._transport.close()


def refuse(connection: socket.socket, message: str) -> None:
    """Tell a gRPC client why it isn't admitted, without letting grpc see a byte of its: SETTINGS and GOAWAY (RFC 9113, 6.5 and
    6.8).

    The client's call ends with UNAVAILABLE and this text.
    """
    payload = struct.pack(">II", 0, 0) + message.encode()  # no stream was processed, NO_ERROR
    settings, goaway = _frame(4, b""), _frame(7, payload)
    connection.setblocking(False)
    try:
        connection.send(settings + goaway)
    except OSError:
        return  # whoever leaves before it is told needs no telling


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, 0, 0) + payload
