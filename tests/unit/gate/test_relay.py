import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from vifd.gate.relay import Relay, _End
from vifd.model import Caller

CALLER = Caller(1000, 1000)
MANY = bytes(range(256)) * (16 << 10)  # 4 MiB: more than any buffer on the way

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def relayed(
    folder: Path, handler: Handler, relay: Relay | None = None
) -> AsyncIterator[tuple[socket.socket, asyncio.Task[None]]]:
    """Connect a client to a server through a relay: the client's socket, and the relaying."""
    relay = relay or Relay(folder / "grpc")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handler(reader, writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(handle, folder / "grpc")
    client, connection = socket.socketpair()
    client.setblocking(False)
    connection.setblocking(False)

    async def serve() -> None:
        with connection:  # as the door does
            await relay.serve(connection, CALLER)

    task = asyncio.create_task(serve())
    try:
        with client:
            yield client, task
    finally:
        server.close()
        task.cancel()
        await asyncio.wait([task])


async def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
        parts.append(part)
    return b"".join(parts)


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, data)


async def test_bytes_go_both_ways(run: object, folder: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readexactly(5)).upper())

    async with relayed(folder, answer) as (client, _):
        await send(client, b"hello")
        assert await read_all(client) == b"HELLO"


async def test_what_the_server_says_first_arrives(run: object, folder: Path) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"settings")

    async with relayed(folder, greet) as (client, _):
        assert await read_all(client) == b"settings"


def stale_sockets() -> list[socket.socket]:
    """Find those that take a descriptor for theirs that isn't open."""
    sockets = [one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() >= 0]
    return [one for one in sockets if not Path(f"/proc/self/fd/{one.fileno()}").exists()]


async def test_a_client_that_leaves_at_once_leaves_no_descriptor_that_is_closed_a_second_time(run: object, folder: Path) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"settings")

    for _ in range(20):
        async with relayed(folder, greet) as (client, task):
            client.close()
            await asyncio.wait([task])
        (folder / "grpc").unlink()
    assert stale_sockets() == []


async def test_many_bytes_go_both_ways_at_once(run: object, folder: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = asyncio.create_task(reader.readexactly(len(MANY)))
        writer.write(MANY[::-1])
        await writer.drain()
        writer.write(b"same" if await got == MANY else b"other")

    async with relayed(folder, answer) as (client, _):
        sending = asyncio.create_task(send(client, MANY))
        assert await read_all(client) == MANY[::-1] + b"same"
        await sending


async def test_what_the_server_said_before_it_left_arrives(run: object, folder: Path) -> None:
    async def say(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MANY)

    async with relayed(folder, say) as (client, task):
        assert await read_all(client) == MANY
        await task


async def test_what_a_client_said_before_it_left_arrives(run: object, folder: Path) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.read())

    async with relayed(folder, listen) as (client, task):
        await send(client, b"goodbye")
        client.close()
        assert await got == b"goodbye"
        await task


async def test_a_client_that_will_say_no_more_is_let_go(run: object, folder: Path) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.read())

    async with relayed(folder, listen) as (client, task):
        await send(client, b"goodbye")
        client.shutdown(socket.SHUT_WR)
        assert await got == b"goodbye"
        assert await read_all(client) == b""
        await task


async def test_a_caller_is_known_by_the_servers_peer_as_long_as_it_is_there(run: object, folder: Path) -> None:
    relay = Relay(folder / "grpc")
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("socket").getpeername()
        seen.set_result(f"unix-abstract:{name[1:].decode()}")  # as grpc writes it
        await reader.read()

    async with relayed(folder, look, relay) as (client, task):
        peer = await seen
        assert relay.find_caller(peer) == CALLER
        client.close()
        await task
        assert relay.find_caller(peer) is None


@pytest.mark.parametrize(
    "peer",
    ["", "unix:", "unix:/run/vifd/grpc", "unix-abstract:", "unix-abstract:vifd-peer-", "unix-abstract:other", "ipv4:1.2.3.4:5"],
)
async def test_nobody_is_known_who_didnt_come_through_the_relay(folder: Path, peer: str) -> None:
    assert Relay(folder / "grpc").find_caller(peer) is None


async def test_a_server_that_isnt_there_leaves_nothing_behind(run: object, folder: Path) -> None:
    relay = Relay(folder / "grpc")
    client, connection = socket.socketpair()
    with client, connection:
        with pytest.raises(OSError, match=r"No such file|nonexistent|ENOENT"):
            await relay.serve(connection, CALLER)
        assert relay._callers == {}


async def test_a_relay_that_is_ended_closes_both_ends(run: object, folder: Path) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        got.set_result(await reader.read())

    async with relayed(folder, listen) as (client, task):
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b"x"
        task.cancel()
        assert await got == b""


class FakeTransport(asyncio.Transport):
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[object] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def is_closing(self) -> bool:
        return "close" in self.done

    def close(self) -> None:
        self.done.append("close")


def ends() -> tuple[_End, _End]:
    one, other = _End(), _End()
    one.other, other.other = other, one
    return one, other


async def test_an_end_whose_other_cant_write_reads_no_more_until_it_can() -> None:
    one, other = ends()
    reading, writing = FakeTransport(), FakeTransport()
    one.connection_made(reading)
    other.connection_made(writing)
    other.pause_writing()
    other.resume_writing()
    assert (reading.done, writing.done) == (["pause", "resume"], [])


async def test_an_end_keeps_what_comes_before_it_is_there() -> None:
    one, other = ends()
    one.connection_made(FakeTransport())
    one.data_received(b"early")
    one.data_received(b"bird")
    late = FakeTransport()
    other.connection_made(late)
    one.data_received(b"later")
    assert late.done == [b"early", b"bird", b"later"]


async def test_nothing_is_written_to_an_end_that_closes() -> None:
    one, other = ends()
    closing = FakeTransport()
    other.connection_made(closing)
    other.close()
    one.data_received(b"late")
    one.pause_writing()
    one.resume_writing()
    assert closing.done == ["close"]
