"""The asyncio client. Its methods are the rows of `vifclient.calls`, made to be awaited."""

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from vif.v1.endpoint_pb2 import Endpoint
from vif.v1.endpoint_service_pb2 import ListEndpointsResponse, WatchEndpointsResponse
from vifclient import errors, queues, sockets
from vifclient.calls import Call, Calls
from vifclient.channel import OPTIONS, Connection, document, translate
from vifclient.queues import QueueFds

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_CALLS = Calls()


class Watch:
    """The events of `watch_endpoints`: an asynchronous iterator, and a context manager that ends the watch."""

    def __init__(self, stream: Any, socket_path: str) -> None:
        self._stream = stream
        self._events = aiter(stream)
        self._closed = False
        self._socket_path = socket_path

    def close(self) -> None:
        """End the watch; its iterator stops."""
        self._closed = True
        self._stream.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEndpointsResponse:
        try:
            event: WatchEndpointsResponse = await anext(self._events)
        except grpc.RpcError as error:
            raise translate(error, self._socket_path) from error
        except asyncio.CancelledError:
            if self._closed and not _is_being_cancelled():  # the stream was cancelled by close(), and not the task
                raise StopAsyncIteration from None
            raise
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _unary(
    row: Callable[Concatenate[Calls, _Args], Call[_Result]],
) -> "Callable[Concatenate[Client, _Args], Coroutine[Any, Any, _Result]]":
    @functools.wraps(row)
    async def method(self: "Client", /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        call = row(_CALLS, *args, **kwargs)
        return call.result(await self._call(call))

    document(method)
    return method


def _pages(
    row: Callable[Concatenate[Calls, _Args], Call[ListEndpointsResponse]],
) -> "Callable[Concatenate[Client, _Args], AsyncIterator[Endpoint]]":
    @functools.wraps(row)
    async def method(self: "Client", /, *args: _Args.args, **kwargs: _Args.kwargs) -> AsyncIterator[Endpoint]:
        call = row(_CALLS, *args, **kwargs)
        more = True
        while more:
            page = call.result(await self._call(call))
            for endpoint in page.endpoints:
                yield endpoint
            call.request.page_token = page.next_page_token
            more = bool(page.next_page_token)

    document(method, AsyncIterator[Endpoint])
    return method


def _stream(
    row: Callable[Concatenate[Calls, _Args], Call[WatchEndpointsResponse]],
) -> "Callable[Concatenate[Client, _Args], Watch]":
    @functools.wraps(row)
    def method(self: "Client", /, *args: _Args.args, **kwargs: _Args.kwargs) -> Watch:
        return self._watch(row(_CALLS, *args, **kwargs))

    document(method, Watch)
    return method


class Client(Connection):
    """A connection to this host's vifd for one event loop; make it while that loop runs.

    Every method raises the errors of `vifclient.errors`. A call that vifd answers with UNAVAILABLE, or that doesn't reach it,
    is made again as `retry` says, until its time is over: all calls are idempotent. Cancelling a task cancels its call,
    which vifd may still finish: repeat it to know, or release the id.

    Args: those of `vifclient.channel.Connection`.
    """

    def _open_channel(self, target: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(target, options=OPTIONS)

    request_endpoint = _unary(Calls.request_endpoint)
    release_endpoint = _unary(Calls.release_endpoint)
    batch_request_endpoints = _unary(Calls.batch_request_endpoints)
    batch_release_endpoints = _unary(Calls.batch_release_endpoints)
    get_endpoint = _unary(Calls.get_endpoint)
    update_endpoint = _unary(Calls.update_endpoint)
    activate_endpoint = _unary(Calls.activate_endpoint)
    check_endpoint = _unary(Calls.check_endpoint)
    collect_garbage = _unary(Calls.collect_garbage)
    get_host_info = _unary(Calls.get_host_info)
    list_endpoints = _pages(Calls.list_endpoints)
    watch_endpoints = _stream(Calls.watch_endpoints)

    async def acquire_fds(self, endpoint_id: str, count: int = 0, *, timeout_s: float | None = None) -> QueueFds:
        """Get open queues of an endpoint; see `vifclient.Client.acquire_fds`.

        Args:
            endpoint_id: The endpoint, a tap.
            count: How many queues. 0: all of them.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The queues, a context manager (`with`, not `async with`) that closes them.
        """
        attempts = self._begin(timeout_s)
        path = await self._find_fd_socket_path(attempts.remaining_s)
        return await self._repeat(lambda remaining_s: _acquire(path, endpoint_id, count, remaining_s), attempts.remaining_s)

    async def close(self) -> None:
        """Close the connection. Calls that are under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _call(self, call: Call[Any]) -> Any:
        stub = self._stubs[call.rpc]

        async def attempt(remaining_s: float) -> Any:
            try:
                return await stub(call.request, timeout=remaining_s)
            except grpc.RpcError as error:
                raise translate(error, self.socket_path) from error

        return await self._repeat(attempt, call.timeout_s)

    async def _repeat(self, attempt: Callable[[float], Awaitable[_Result]], timeout_s: float | None) -> _Result:
        attempts = self._begin(timeout_s)
        while True:
            try:
                return await attempt(attempts.remaining_s)
            except errors.VifError as error:
                delay_s = attempts.delay_after(error)
            await asyncio.sleep(delay_s)

    def _watch(self, call: Call[Any]) -> Watch:
        return Watch(self._stubs[call.rpc](call.request, timeout=call.timeout_s), self.socket_path)

    async def _find_fd_socket_path(self, timeout_s: float | None) -> str:
        if not self._fd_socket_path:
            self._fd_socket_path = sockets.require_fd_socket((await self.get_host_info(timeout_s=timeout_s)).fd_socket_path)
        return self._fd_socket_path


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _acquire(path: str, endpoint_id: str, count: int, timeout_s: float) -> QueueFds:
    with queues.send_request(path, endpoint_id, count) as connection:
        try:
            async with asyncio.timeout(timeout_s):
                await _until_readable(connection)
        except TimeoutError as error:
            raise queues.too_late(timeout_s) from error
        return queues.receive_queues(connection)


async def _until_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not readable.done():  # it may have been cancelled in the same turn of the loop
            readable.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await readable
    finally:
        loop.remove_reader(connection)
