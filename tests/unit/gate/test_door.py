import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.sockets import connect, ordinary_user
from vifd.gate import door as door_module
from vifd.gate.door import Door
from vifd.gate.listeners import Access, listen
from vifd.model import Caller


class House:
    """What is behind the door: callers stay until the test lets them go, or they say something."""

    def __init__(self, folder: Path, *, admits: Callable[[Caller], bool] = lambda _caller: True) -> None:
        self.path = folder / "s"
        self.door = Door(admits)
        self.inside: asyncio.Queue[Caller] = asyncio.Queue()
        self.errors: list[Exception] = []

    async def serve(self, connection: socket.socket, caller: Caller) -> None:
        self.inside.put_nowait(caller)
        if self.errors:
            raise self.errors.pop()
        connection.setblocking(False)
        while data := await asyncio.get_running_loop().sock_recv(connection, 100):
            await asyncio.get_running_loop().sock_sendall(connection, data)

    @staticmethod
    def refuse(connection: socket.socket, message: str) -> None:
        connection.send(message.encode())

    async def say(self, client: socket.socket, data: bytes = b"hello") -> bytes:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(client, data)
        return await asyncio.get_running_loop().sock_recv(client, 4096)


@contextlib.asynccontextmanager
async def opened(house: House, listener: socket.socket | None = None) -> AsyncIterator[House]:
    with listener or listen(house.path, socket.SOCK_STREAM, Access(None, 0o666)) as made:
        house.door.open(made, house.serve, house.refuse)
        yield house
        await house.door.close()


async def test_who_is_admitted_is_served(run: object, folder: Path) -> None:
    async with opened(House(folder)) as house:
        with connect(house.path) as client:
            assert await house.say(client) == b"hello"


async def test_who_serves_is_told_who_is_there(run: object, folder: Path) -> None:
    async with opened(House(folder)) as house:
        with ordinary_user() as uid, connect(house.path):
            assert (await house.inside.get()).uid == uid


async def test_who_is_in_no_rule_is_told_so(run: object, folder: Path) -> None:
    async with opened(House(folder, admits=lambda _caller: False)) as house:
        with connect(house.path) as client:
            assert b"ask the administrator" in await house.say(client)
        assert house.inside.empty()


async def test_who_has_too_many_connections_is_told_so(run: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_CONNECTIONS_A_UID", 2)
    async with opened(House(folder)) as house:
        with ordinary_user(), connect(house.path), connect(house.path):
            for _ in range(2):
                await house.inside.get()
            with connect(house.path) as third:
                assert b"2 connections open already; close some" in await house.say(third)


async def test_who_closes_one_may_come_again(run: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_CONNECTIONS_A_UID", 1)
    left = asyncio.Event()
    house = House(folder)

    async def serve(connection: socket.socket, caller: Caller) -> None:
        try:
            await House.serve(house, connection, caller)
        finally:
            asyncio.get_running_loop().call_soon(left.set)

    house.serve = serve
    async with opened(house):
        with ordinary_user():
            with connect(house.path) as first:
                assert await house.say(first) == b"hello"
            await left.wait()
            with connect(house.path) as second:
                assert await house.say(second) == b"hello"


@pytest.mark.parametrize("error", [OSError("it broke"), ValueError("a bug")])
async def test_an_error_with_one_caller_is_no_other_callers(run: object, folder: Path, error: Exception) -> None:
    house = House(folder)
    house.errors = [error]
    async with opened(house):
        with connect(house.path) as first:
            first.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(first, 1) == b""
        with connect(house.path) as second:
            assert await house.say(second) == b"hello"


class BrokenOnce(socket.socket):
    """A listener whose first accept fails, as when a caller has left already or no descriptor is free."""

    broken = False

    def accept(self) -> tuple[socket.socket, object]:
        if not self.broken:
            self.broken = True
            raise ConnectionAbortedError(103, "Software caused connection abort")
        return super().accept()


async def test_an_error_of_one_accept_doesnt_end_the_loop(run: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_PAUSE_SECONDS", 0.0)
    house = House(folder)
    made = listen(house.path, socket.SOCK_STREAM, Access(None, 0o666))
    listener = BrokenOnce(fileno=made.detach())
    listener.setblocking(False)
    async with opened(house, listener):
        with connect(house.path) as client:
            assert await house.say(client) == b"hello"
    assert listener.broken


async def test_a_shut_door_keeps_those_who_are_in(run: object, folder: Path) -> None:
    async with opened(House(folder)) as house:
        with connect(house.path) as client:
            await house.inside.get()
            house.door.shut()
            assert await house.say(client) == b"hello"


async def test_a_closed_door_keeps_nobody(run: object, folder: Path) -> None:
    async with opened(House(folder)) as house:
        with connect(house.path) as client:
            await house.inside.get()
            await house.door.close()
            client.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_who_comes_in_as_the_door_closes_is_let_go(run: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel_at_once(task: asyncio.Task[None]) -> None:
        task.cancel()

    async with opened(House(folder)) as house:
        monkeypatch.setattr(house.door, "_keep", cancel_at_once)
        with connect(house.path) as client:
            client.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        assert house.inside.empty()


@pytest.mark.parametrize("steps", range(6))
async def test_who_comes_in_while_the_door_closes_is_let_go(run: object, folder: Path, steps: int) -> None:
    async with opened(House(folder)) as house:
        await asyncio.sleep(0)
        client = connect(house.path)
        for _ in range(steps):  # each time the connection is at another step on its way in
            await asyncio.sleep(0)
    with client, contextlib.suppress(ConnectionResetError):  # where it was never accepted
        assert await asyncio.to_thread(client.recv, 1) == b""


async def test_who_is_refused_may_write_on_and_still_read_why(run: object, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    async with opened(House(folder, admits=lambda _caller: False)) as house:
        with connect(house.path) as client:
            client.setblocking(False)
            for _ in range(3):
                await loop.sock_sendall(client, b"x" * 100)
            assert b"ask the administrator" in await loop.sock_recv(client, 4096)
            assert await loop.sock_recv(client, 4096) == b""


async def write_for_ever(client: socket.socket) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(client, b"x")
        await asyncio.sleep(0)


async def test_who_is_refused_and_stays_is_shut_out_in_the_end(
    run: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_LINGER_SECONDS", 0.01)
    async with opened(House(folder, admits=lambda _caller: False)) as house:
        with connect(house.path) as client:
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                await write_for_ever(client)


async def test_who_is_refused_when_many_linger_is_shut_out_at_once(
    run: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_LINGERING", 0)
    monkeypatch.setattr(door_module, "_LINGER_SECONDS", 600)
    async with opened(House(folder, admits=lambda _caller: False)) as house:
        with connect(house.path) as client:
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                await write_for_ever(client)
