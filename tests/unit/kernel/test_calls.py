"""Calls over oslo.privsep's own channel: pins what vifd relies on there."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_privsep import comm

from vifd.kernel.calls import Calls
from vifd.kernel.room import HelperLostError


class FakeHelper:
    """The other end of the channel, in a thread: answers each call with what a function makes of it."""

    def __init__(self) -> None:
        front, self._socket = socket.socketpair()
        self.channel = comm.ClientChannel(front)
        self._front = front
        self._server = comm.ServerChannel(self._socket)
        self.answer: Callable[[str, tuple[Any, ...]], Any] = lambda name, arguments: (comm.Message.RET.value, (name, arguments))
        self.lost: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self.channel.send_recv((comm.Message.CALL.value, "ready", (), {}))[0] == comm.Message.RET.value

    def calls(self) -> Calls:
        context: Any = SimpleNamespace(channel=self.channel)
        return Calls(context, "vifd.kernel.helper", self.lost.append)

    def die(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.channel.close()
        self._thread.join()
        self._front.close()
        self._socket.close()

    def _serve(self) -> None:
        for message_id, (_, name, arguments, _) in self._server:
            answer = self.answer(name, arguments)
            if answer is None:
                self.die()
                return
            self._server.send((message_id, answer))
        self.die()


@pytest.fixture
def helper() -> Iterator[FakeHelper]:
    one = FakeHelper()
    yield one
    one.close()


async def test_a_call_is_answered(helper: FakeHelper) -> None:
    assert await helper.calls().call("apply", b"plan", 3) == ("vifd.kernel.helper.apply", (b"plan", 3))


async def test_calls_at_once_get_each_its_own_answer(helper: FakeHelper) -> None:
    calls = helper.calls()
    answers = await asyncio.gather(*(calls.call("inspect", number) for number in range(50)))
    assert [arguments for _, arguments in answers] == [(number,) for number in range(50)]


async def test_an_answer_to_nobody_disturbs_nobody(helper: FakeHelper) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def answer(_name: str, arguments: tuple[Any, ...]) -> Any:
        asked.set()
        may_answer.wait()
        return comm.Message.RET.value, arguments

    helper.answer = answer
    calls = helper.calls()
    waiting = asyncio.create_task(calls.call("inspect", 1))
    await asyncio.to_thread(asked.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    may_answer.set()
    assert await calls.call("inspect", 2) == (2,)


async def test_an_entry_point_that_raised_is_a_lost_helper(helper: FakeHelper) -> None:
    helper.answer = lambda _name, _arguments: (comm.Message.ERR.value, "builtins.ValueError", ("too many plans",))
    with pytest.raises(HelperLostError, match="too many plans"):
        await helper.calls().call("apply", b"")
    assert len(helper.lost) == 1


async def test_a_helper_that_dies_in_the_middle_is_lost(helper: FakeHelper) -> None:
    helper.answer = lambda _name, _arguments: None
    with pytest.raises(HelperLostError):
        await helper.calls().call("apply", b"")
    assert len(helper.lost) == 1


async def test_a_helper_that_is_dead_is_lost(helper: FakeHelper) -> None:
    helper.die()
    helper.channel.reader_thread.join()
    with pytest.raises(HelperLostError, match="it is gone"):
        await helper.calls().call("apply", b"")
    assert helper.lost == ["it is gone"]
