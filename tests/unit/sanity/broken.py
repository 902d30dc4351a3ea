"""A vifd that breaks the contract in one place, so that the suite can be seen to notice it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from vifd.errors import VifdError
from vifd.server.middleware import abort

Proceed = Callable[[Any], Awaitable[Any]]
#: Answers a request in the daemon's place, or raises its error: the request, and what the daemon would answer it.
Unary = Callable[[Any, Proceed], Awaitable[Any]]
Stream = Callable[[AsyncIterator[Any]], AsyncIterator[Any]]


class Broken(grpc.aio.ServerInterceptor):
    """Puts something else in the place of one RPC.

    Args:
        rpc: its name.
        unary: what answers it.
        stream: what its events go through.
    """

    def __init__(self, rpc: str, *, unary: Unary | None = None, stream: Stream | None = None) -> None:
        self._rpc, self._answer, self._filter = rpc, unary, stream

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.endswith(f"/{self._rpc}"):
            return handler
        codec = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
        if self._answer is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), **codec)
        return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream), **codec)

    def _unary(self, proceed: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async def as_it_should(message: Any) -> Any:
                return await proceed(message, context)

            assert self._answer is not None
            try:
                return await self._answer(request, as_it_should)
            except VifdError as error:
                return await abort(context, self._rpc, None, error)

        return call

    def _stream(self, proceed: Any) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            assert self._filter is not None
            async for event in self._filter(proceed(request, context)):
                yield event

        return call
