"""The synchronous client. Its methods are the rows of `vifclient.calls`, made to block."""

import functools
import select
import time
from collections.abc import Callable, Iterator
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
    """The events of `watch_endpoints`: an iterator, and a context manager that ends the watch."""

    def __init__(self, stream: Any, socket_path: str) -> None:
        self._stream = stream
        self._socket_path = socket_path

    def close(self) -> None:
        """End the watch; its iterator stops. May be called from another thread."""
        self._stream.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEndpointsResponse:
        try:
            event: WatchEndpointsResponse = next(self._stream)
        except grpc.RpcError as error:
            if self._stream.cancelled():
                raise StopIteration from None
            raise translate(error, self._socket_path) from error
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _unary(row: Callable[Concatenate[Calls, _Args], Call[_Result]]) -> "Callable[Concatenate[Client, _Args], _Result]":
    @functools.wraps(row)
    def method(self: "Client", /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        call = row(_CALLS, *args, **kwargs)
        return call.result(self._call(call))

    document(method)
    return method


def _pages(
    row: Callable[Concatenate[Calls, _Args], Call[ListEndpointsResponse]],
) -> "Callable[Concatenate[Client, _Args], Iterator[Endpoint]]":
    @functools.wraps(row)
    def method(self: "Client", /, *args: _Args.args, **kwargs: _Args.kwargs) -> Iterator[Endpoint]:
        call = row(_CALLS, *args, **kwargs)
        page = call.result(self._call(call))
        yield from page.endpoints
        while page.next_page_token:
            call.request.page_token = page.next_page_token
            page = call.result(self._call(call))
            yield from page.endpoints

    document(method, Iterator[Endpoint])
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
    """A connection to this host's vifd. Methods may be called from several threads at once.

    Every method raises the errors of `vifclient.errors`. A call that vifd answers with UNAVAILABLE, or that doesn't reach it,
    is made again as `retry` says, until its time is over: all calls are idempotent.

    Args: those of `vifclient.channel.Connection`.
    """

    def _open_channel(self, target: str) -> grpc.Channel:
        return grpc.insecure_channel(target, options=OPTIONS)

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

    def acquire_fds(self, endpoint_id: str, count: int = 0, *, timeout_s: float | None = None) -> QueueFds:
        """Get open queues of an endpoint, for a hypervisor that can't open its device itself.

        Args:
            endpoint_id: The endpoint, a tap.
            count: How many queues. 0: all of them.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The queues, a context manager that closes them.

        Raises:
            NotFound: There is no such endpoint, or none that the caller may see.
            Unsupported: The endpoint has no queues to hand over, or vifd has no fd socket.
            FdsTruncated: This process may open too few files.
        """
        attempts = self._begin(timeout_s)
        path = self._find_fd_socket_path(attempts.remaining_s)
        return self._repeat(lambda remaining_s: _acquire(path, endpoint_id, count, remaining_s), attempts.remaining_s)

    def close(self) -> None:
        """Close the connection. Calls that are under way fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, call: Call[Any]) -> Any:
        stub = self._stubs[call.rpc]

        def attempt(remaining_s: float) -> Any:
            try:
                return stub(call.request, timeout=remaining_s)
            except grpc.RpcError as error:
                raise translate(error, self.socket_path) from error

        return self._repeat(attempt, call.timeout_s)

    def _repeat(self, attempt: Callable[[float], _Result], timeout_s: float | None) -> _Result:
        attempts = self._begin(timeout_s)
        while True:
            try:
                return attempt(attempts.remaining_s)
            except errors.VifError as error:
                delay_s = attempts.delay_after(error)
            time.sleep(delay_s)

    def _watch(self, call: Call[Any]) -> Watch:
        return Watch(self._stubs[call.rpc](call.request, timeout=call.timeout_s), self.socket_path)

    def _find_fd_socket_path(self, timeout_s: float | None) -> str:
        if not self._fd_socket_path:
            self._fd_socket_path = sockets.require_fd_socket(self.get_host_info(timeout_s=timeout_s).fd_socket_path)
        return self._fd_socket_path


def _acquire(path: str, endpoint_id: str, count: int, timeout_s: float) -> QueueFds:
    with queues.send_request(path, endpoint_id, count) as connection:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise queues.too_late(timeout_s)
        return queues.receive_queues(connection)
