"""Admission: who may come in, how often, and the table of who is in."""

from __future__ import annotations

import asyncio
import contextlib
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
    """Accepts connections on listeners and hands the admitted ones on. An error in one never ends the accepting.

    Args:
        admits: tells whether the policy lets a caller talk to vifd at all.
    """

    def __init__(self, admits: Callable[[Caller], bool]) -> None:
        self._admits = admits
        self._connections: Counter[int] = Counter()
        self._shutting = contextlib.ExitStack()
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
        waiting = _Waiting(listener, functools.partial(self._come_in, serve, refuse))
        self._shutting.callback(waiting.end)

    def shut(self) -> None:
        """Accept no more; those who are in stay."""
        self._shutting.close()

    async def close(self) -> None:
        """Accept no more, and end what is open."""
        self.shut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _come_in(
        self,
        serve: Callable[[socket.socket, Caller], Awaitable[None]],
        refuse: Callable[[socket.socket, str], None],
        connection: socket.socket,
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(connection, serve, refuse))
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


class _Waiting:
    """Waits for callers of one listener.

    A callback of the loop's and not a task around loop.sock_accept: cancelled between the accept and its next step, the task
    loses the connection, which nobody closes then.
    """

    def __init__(self, listener: socket.socket, come_in: Callable[[socket.socket], None]) -> None:
        self._loop, self._listener, self._come_in = asyncio.get_running_loop(), listener, come_in
        self._pause: asyncio.TimerHandle | None = None
        self._begin()

    def end(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    def _begin(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return  # the caller has left
        except OSError as error:
            # ECONNABORTED is the caller's affair; EMFILE and ENFILE pass when somebody leaves.
            _log.warning("a connection could not be accepted", extra={"error": str(error)})
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(_PAUSE_SECONDS, self._begin)
            return
        connection.setblocking(False)
        self._come_in(connection)
