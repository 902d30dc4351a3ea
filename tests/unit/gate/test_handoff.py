import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.messages import ID
from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vifd.errors import UnknownEndpoint
from vifd.gate.handoff import Handoff
from vifd.model import Caller, TapDevice

CALLER = Caller(1000, 1000)


class Taps:
    """Opens the reading ends of pipes as queues, and knows which it opened."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, str, int]] = []
        self.opened: list[int] = []

    async def open(self, caller: Caller, endpoint_id: str, count: int) -> tuple[list[int], TapDevice]:
        self.asked.append((caller, endpoint_id, count))
        if endpoint_id != ID:
            raise UnknownEndpoint("there is none")
        self.opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(count or 2)]
        return list(self.opened), TapDevice("vdt", 7, 2, vnet_hdr=True)


@contextlib.asynccontextmanager
async def connected(taps: Taps) -> AsyncIterator[socket.socket]:
    client, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setblocking(False)
    task = asyncio.create_task(Handoff(taps.open).serve(connection, CALLER))
    with connection:
        with client:
            yield client
        await task


async def ask(client: socket.socket, packet: bytes) -> tuple[AcquireFdsResponse, int]:
    """Send a packet; give the answer, and how many descriptors came with it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, packet)
    readable = loop.create_future()
    loop.add_reader(client, readable.set_result, None)
    await readable
    loop.remove_reader(client)
    data, fds, _, _ = socket.recv_fds(client, 4096, 256)
    for fd in fds:
        os.close(fd)
    return AcquireFdsResponse.FromString(data), len(fds)


def request(endpoint_id: str = ID, count: int = 0) -> bytes:
    return AcquireFdsRequest(endpoint_id=endpoint_id, count=count).SerializeToString()


async def test_queues_come_with_the_answer(run: object) -> None:
    taps = Taps()
    async with connected(taps) as client:
        answer, count = await ask(client, request(count=3))
    assert (answer.count, answer.vnet_hdr, answer.code, answer.reason, count) == (3, True, 0, "", 3)
    assert taps.asked == [(CALLER, ID, 3)]


async def test_no_descriptor_stays_open_in_vifd(run: object) -> None:
    taps = Taps()
    async with connected(taps) as client:
        await ask(client, request())
        for fd in taps.opened:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


async def test_a_connection_is_used_again(run: object) -> None:
    async with connected(Taps()) as client:
        for count in (1, 2, 3):
            assert (await ask(client, request(count=count)))[1] == count


async def test_a_refusal_is_answered_and_the_connection_goes_on(run: object) -> None:
    async with connected(Taps()) as client:
        answer, count = await ask(client, request("aaaaaaaa-2222-4333-8444-555555555555"))
        assert (answer.code, answer.reason, answer.message, count) == (5, "UNKNOWN_ENDPOINT", "there is none", 0)
        assert (await ask(client, request()))[0].code == 0


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        request("", count=1),
        request("../etc/passwd"),
        request(ID.replace("1", "A")),
        request(count=254),
        request(count=2**32 - 1),
        b"x" * 8192,
    ],
)
async def test_what_is_no_good_request_is_answered_so(run: object, packet: bytes) -> None:
    taps = Taps()
    async with connected(taps) as client:
        answer, count = await ask(client, packet)
    assert (answer.code, answer.reason, count) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "INVALID_FIELD", 0)
    assert answer.message
    assert taps.asked == []
