"""Calls that fail, or wait, because a test wants it: in front of the services, with the statuses that vifd itself would give."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from vifd.errors import VifdError
from vifd.server.middleware import Context, abort

_PACKAGE = "/vif.v1."
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
        self.holds: dict[str, Hold] = {}

    def add(self, rpc: str, fault: Fault, times: int) -> None:
        """Let the next calls of an RPC fail."""
        self._faults.setdefault(rpc, []).extend([fault] * times)

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
        hold = self.holds.get(rpc)
        if hold is not None:
            await hold.wait()
        faults = self._faults.get(rpc)
        return faults.pop(0) if faults else None
