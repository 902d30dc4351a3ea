"""The fd socket: hands open queues of an endpoint to its owner (protos/vif/v1/fd.proto)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError, Message

from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vifd.errors import InvalidRequest, VifdError, Violation
from vifd.kernel.names import is_endpoint_id
from vifd.model import Caller, MacvtapDevice, TapDevice
from vifd.server.status import code_of

_PACKET_BYTES = 4096
_MAX_QUEUES = 253  # SCM_MAX_FD, net/scm.h

OpenQueues = Callable[[Caller, str, int], Awaitable[tuple[list[int], TapDevice | MacvtapDevice]]]


class Handoff:
    """Answers the packets of one connection after the other's, each with the descriptors that it asks for.

    Args:
        open_queues: opens queues for a caller.
    """

    def __init__(self, open_queues: OpenQueues) -> None:
        self._open_queues = open_queues

    async def serve(self, connection: socket.socket, caller: Caller) -> None:
        """Answer packets until the caller leaves."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        while packet := await loop.sock_recv(connection, _PACKET_BYTES):
            fds: list[int] = []
            try:
                request = _parse(packet)
                fds, tap = await self._open_queues(caller, request.endpoint_id, request.count)
                answer = AcquireFdsResponse(count=len(fds), vnet_hdr=tap.vnet_hdr)
            except VifdError as error:
                answer = _failure(error)
            try:
                _send(connection, answer, fds)
            finally:
                for fd in fds:
                    os.close(fd)


def refuse(connection: socket.socket, message: str) -> None:
    """Tell a client why it isn't admitted."""
    answer = AcquireFdsResponse(code=7, reason="NOT_ALLOWED", message=message)  # google.rpc.Code PERMISSION_DENIED
    connection.setblocking(False)
    try:
        _send(connection, answer, [])
    except OSError:
        return  # whoever leaves before it is told needs no telling


def _parse(packet: bytes) -> AcquireFdsRequest:
    try:
        request = AcquireFdsRequest.FromString(packet)
    except DecodeError as error:
        raise InvalidRequest([Violation("packet", "is no AcquireFdsRequest")]) from error
    size = request.ByteSize()
    request.DiscardUnknownFields()
    if request.ByteSize() != size:
        raise InvalidRequest([Violation("packet", "has fields that this vifd doesn't know; leave them out")])
    if not is_endpoint_id(request.endpoint_id):
        raise InvalidRequest([Violation("endpoint_id", "has to be a UUID in canonical lower-case form")])
    if request.count > _MAX_QUEUES:
        raise InvalidRequest([Violation("count", f"has to be 0 to {_MAX_QUEUES}")])
    return request


def _failure(error: VifdError) -> AcquireFdsResponse:
    return AcquireFdsResponse(code=code_of(error), reason=error.reason, message=str(error))


def _send(connection: socket.socket, answer: Message, fds: list[int]) -> None:
    # An empty packet would read as the end of the connection; an answer never is one, for it has a count or a code.
    socket.send_fds(connection, [answer.SerializeToString()], fds)
