"""Calls that fail, or wait, because a test wants it: in front of the services, with the statuses that vifd itself would give."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from vif.v1 import endpoint_service_pb2, host_service_pb2
from vifd.errors import VifdError
from vifd.server.middleware import Context, abort

_PACKAGE = "/vif.v1."
_RPCS = {
    method.name: method
    for file in (endpoint_service_pb2.DESCRIPTOR, host_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
_Handler = Any  # grpc.RpcMethodHandler, whose type takes arguments that it does not take at run time


class Fault(NamedTuple):
    """A failure to come.

    Args:
        error: what the caller gets.
        lose_answer: the call is done all the same, and only its answer is lost.
    """

    error: VifdError
    lose_answer: bool = False


class Hold:
    """Calls of one RPC that wait at the door. It is used from the test's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._open = loop, asyncio.Event()
        self._arrivals = threading.Semaphore(0)

    def wait_for_call(self, timeout_s: float = 10.0) -> None:
        """Wait until one more call has come.

        Args:
            timeout_s: how long, in seconds.

        Raises:
            TimeoutError: none came.
        """
        if not self._arrivals.acquire(timeout=timeout_s):
            raise TimeoutError(f"no call came within {timeout_s} s")

    def release(self) -> None:
        """Let them go on, and whoever comes after them."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def wait(self) -> None:
        """Wait at the door; for the server's side."""
        self._arrivals.release()
        await self._open.wait()


class Faults(grpc.aio.ServerInterceptor):
    """Lets calls fail or wait, by the RPC's name."""

    def __init__(self) -> None:
        self._faults: dict[str, list[Fault]] = {}
        self._holds: dict[str, Hold] = {}

    def add(self, rpc: str, fault: Fault, times: int) -> None:
        """Let the next calls of an RPC fail."""
        _check_is_rpc(rpc)
        if fault.lose_answer and _RPCS[rpc].server_streaming:
            raise ValueError(f"{rpc} has no answer to lose: it streams")
        self._faults.setdefault(rpc, []).extend([fault] * times)

    def hold(self, rpc: str, hold: Hold) -> None:
        """Let calls of an RPC wait."""
        _check_is_rpc(rpc)
        if rpc in self._holds:
            raise ValueError(f"{rpc} is held already")
        self._holds[rpc] = hold

    def release(self, rpc: str) -> None:
        """Let the calls of an RPC go on that wait."""
        self._holds.pop(rpc).release()

    def release_all(self) -> None:
        """Let whatever waits go on."""
        for hold in self._holds.values():
            hold.release()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio.ServerInterceptor."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or not method.startswith(_PACKAGE):
            return handler
        rpc = method.rpartition("/")[2]
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(rpc, handler.unary_stream), **codec)
        return grpc.unary_unary_rpc_method_handler(self._unary(rpc, handler.unary_unary), **codec)

    def _unary(self, rpc: str, proceed: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            fault = await self._meet(rpc)
            if fault is None:
                return await proceed(request, context)
            if fault.lose_answer:
                await proceed(request, context)
            return await abort(context, rpc, None, fault.error)

        return call

    def _stream(self, rpc: str, proceed: Any) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            fault = await self._meet(rpc)
            if fault is not None:
                await abort(context, rpc, None, fault.error)
            async for answer in proceed(request, context):
                yield answer

        return call

    async def _meet(self, rpc: str) -> Fault | None:
        hold = self._holds.get(rpc)
        if hold is not None:
            await hold.wait()
        faults = self._faults.get(rpc)
        return faults.pop(0) if faults else None


def _check_is_rpc(name: str) -> None:
    if name not in _RPCS:  # else a test would wait, or pass, for nothing
        raise ValueError(f"there is no RPC {name!r}; there are {', '.join(sorted(_RPCS))}")
