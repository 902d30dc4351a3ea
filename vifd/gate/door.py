"""Admission: who may come in, how often, and the table of who is in."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from logging import getLogger

from vifd.gate.peer import identify
from vifd.model import Caller

_log = getLogger(__name__)
_CONNECTIONS_A_UID = 128
_PAUSE_SECONDS = 0.1
_LINGER_SECONDS, _LINGERING, _DISCARD_BYTES = 1.0, 64, 4096


class Refused(Exception):
    """A connection isn't admitted; the text says why."""


class Door:
    """Accepts connections on listeners and hands the admitted ones on. An error in one never ends the loop.

    Args:
        admits: tells whether the policy lets a caller talk to vifd at all.
    """

    def __init__(self, admits: Callable[[Caller], bool]) -> None:
        self._admits = admits
        self._connections: Counter[int] = Counter()
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._lingering = 0

    def open(
        self,
        listener: socket.socket,
        serve: Callable[[socket.socket, Caller], Awaitable[None]],
        refuse: Callable[[socket.socket, str], None],
    ) -> None:
        """Begin to accept.

        Args:
            listener: where.
            serve: talks to an admitted caller until one of them leaves; the connection is closed then.
            refuse: tells a caller why it isn't admitted.
        """
        task = asyncio.get_running_loop().create_task(self._accept(listener, serve, refuse))
        self._accepting.append(task)
        self._keep(task)

    async def shut(self) -> None:
        """Accept no more; those who are in stay."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)

    async def close(self) -> None:
        """Accept no more, and end what is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(
        self,
        listener: socket.socket,
        serve: Callable[[socket.socket, Caller], Awaitable[None]],
        refuse: Callable[[socket.socket, str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # ECONNABORTED is the caller's affair; EMFILE and ENFILE pass when somebody leaves.
                _log.warning("a connection could not be accepted", extra={"error": str(error)})
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            task = loop.create_task(self._handle(connection, serve, refuse))
            # Also where the task is cancelled before its first step.
            task.add_done_callback(functools.partial(_close, connection))
            self._keep(task)

    async def _handle(
        self,
        connection: socket.socket,
        serve: Callable[[socket.socket, Caller], Awaitable[None]],
        refuse: Callable[[socket.socket, str], None],
    ) -> None:
        try:
            caller = identify(connection)
            self._admit(caller)
        except Refused as error:
            _log.warning("a connection is refused", extra={"reason": str(error)})
            refuse(connection, str(error))
            await self._linger(connection)
            return
        self._connections[caller.uid] += 1
        try:
            await serve(connection, caller)
        except OSError as error:
            _log.info("a connection broke", extra={"uid": caller.uid, "error": str(error)})
        finally:
            self._connections -= Counter({caller.uid: 1})

    async def _linger(self, connection: socket.socket) -> None:
        """Throw away what a refused caller sends until it leaves, for a while.

        Closed at once, its first write would fail before it had read why.
        """
        if self._lingering >= _LINGERING:
            return
        self._lingering += 1
        try:
            connection.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LINGER_SECONDS):
                while await asyncio.get_running_loop().sock_recv(connection, _DISCARD_BYTES):
                    pass
        except (OSError, TimeoutError):
            return  # it has left, or had its time
        finally:
            self._lingering -= 1

    def _admit(self, caller: Caller) -> None:
        if not self._admits(caller):
            raise Refused(f"no [[policy]] of vifd's configuration is for uid {caller.uid}; ask the administrator")
        if caller.uid and self._connections[caller.uid] >= _CONNECTIONS_A_UID:
            raise Refused(f"uid {caller.uid} has {_CONNECTIONS_A_UID} connections open already; close some")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection ended with a bug", exc_info=error)


def _close(connection: socket.socket, _task: asyncio.Task[None]) -> None:
    connection.close()
