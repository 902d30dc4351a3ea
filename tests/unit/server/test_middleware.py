import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from vifd.errors import Overloaded, UnknownNetwork
from vifd.kernel.room import HelperLostError
from vifd.model import Caller
from vifd.server.middleware import stream, unary

CALLER = Caller(1000, 1000)


class Aborted(Exception):
    """What grpc's abort raises."""


class FakeContext:
    """A call's context: who is there, and how it was aborted."""

    def __init__(self, peer: str = "unix-abstract:vifd-peer-known") -> None:
        self._peer = peer
        self.code: grpc.StatusCode | None = None
        self.message = ""
        self.status = Status()

    def peer(self) -> str:
        return self._peer

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> None:
        self.code, self.message = code, message
        ((key, value),) = trailers
        assert key == "grpc-status-details-bin"
        self.status.ParseFromString(value)
        raise Aborted


class Service:
    """A servicer with a method for each way to end."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    @staticmethod
    def find_caller(peer: str) -> Caller | None:
        return CALLER if peer.endswith("known") else None

    @unary
    async def Ask(self, message: str, caller: Caller) -> str:  # noqa: N802  named as an RPC is
        if self.error is not None:
            raise self.error
        return f"{message} {caller.uid}"

    @stream
    async def Watch(self, message: str, caller: Caller) -> AsyncIterator[str]:  # noqa: N802  named as an RPC is
        yield f"{message} {caller.uid}"
        if self.error is not None:
            raise self.error


def failing(error: Exception) -> Service:
    service = Service()
    service.error = error
    return service


async def watched(service: Service, context: FakeContext) -> list[str]:
    return [answer async for answer in service.Watch("hello", context)]


async def test_a_call_gets_its_caller_and_its_answer() -> None:
    assert await Service().Ask("hello", FakeContext()) == "hello 1000"


async def test_a_stream_gets_its_caller_and_its_answers() -> None:
    assert await watched(Service(), FakeContext()) == ["hello 1000"]


@pytest.mark.parametrize("peer", ["", "unix:", "unix:/run/vifd/grpc", "unix-abstract:vifd-peer-other", "ipv4:127.0.0.1:1"])
async def test_who_didnt_come_through_the_gate_is_nobody(peer: str) -> None:
    context = FakeContext(peer)
    with pytest.raises(Aborted):
        await Service().Ask("hello", context)
    assert context.code is grpc.StatusCode.UNAUTHENTICATED


async def test_who_didnt_come_through_the_gate_watches_nothing() -> None:
    context = FakeContext("unix:")
    with pytest.raises(Aborted):
        await watched(Service(), context)
    assert context.code is grpc.StatusCode.UNAUTHENTICATED


async def test_an_error_ends_a_call_with_its_status_and_details() -> None:
    context = FakeContext()
    with pytest.raises(Aborted):
        await failing(UnknownNetwork("no network 'x'")).Ask("hello", context)
    assert (context.code, context.message) == (grpc.StatusCode.NOT_FOUND, "no network 'x'")
    assert (context.status.code, context.status.message, len(context.status.details)) == (5, "no network 'x'", 1)


async def test_an_error_ends_a_stream_after_what_was_said() -> None:
    context = FakeContext()
    answers = failing(Overloaded("too slow")).Watch("hello", context)
    assert await anext(answers) == "hello 1000"
    with pytest.raises(Aborted):
        await anext(answers)
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_bug_says_nothing_of_itself_to_a_stranger(caplog: pytest.LogCaptureFixture) -> None:
    context = FakeContext()
    with pytest.raises(Aborted):
        await failing(ZeroDivisionError("the secret")).Ask("hello", context)
    assert context.code is grpc.StatusCode.INTERNAL
    assert "the secret" not in context.message
    assert "the secret" in caplog.text


async def test_a_lost_helper_means_to_try_again() -> None:
    context = FakeContext()
    with pytest.raises(Aborted):
        await failing(HelperLostError("it died")).Ask("hello", context)
    assert context.code is grpc.StatusCode.UNAVAILABLE


async def test_a_failure_is_logged_with_method_and_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(Aborted):
        await failing(UnknownNetwork("x")).Ask("hello", FakeContext())
    record = caplog.records[-1]
    assert (record.message, record.method, record.uid, record.reason) == ("call failed", "Ask", 1000, "UNKNOWN_NETWORK")


async def test_a_call_is_logged_with_its_time_when_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await Service().Ask("hello", FakeContext())
    record = caplog.records[-1]
    assert (record.message, record.method, record.milliseconds >= 0) == ("call", "Ask", True)
