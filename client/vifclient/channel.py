"""What both clients need of gRPC: the target, the channel's options, the stubs by name, and errors in vifd's words."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, get_args
from urllib.parse import quote

import grpc

from vif.v1.endpoint_service_pb2_grpc import EndpointServiceStub
from vif.v1.host_service_pb2_grpc import HostServiceStub
from vifclient import errors, sockets
from vifclient.retry import Attempts, RetryPolicy

DEFAULT_TIMEOUT_S = 30.0

OPTIONS = (
    # vifclient.retry does it, and gRPC's own would multiply the attempts.
    ("grpc.enable_retries", 0),
    # Each client has its own connection: closing one doesn't keep another's socket, and identity, alive.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC's waits after a failed connect start at 1 s and grow to 120 s, and calls fail without a try in between: too slow for a
    # daemon on the same host that restarts in a moment.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in fact, how long a connection may take at least: a busy vifd needs more than 20
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A page of 1,000 endpoints with long labels is larger than the default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
)


class Connection(ABC):
    """What both clients are made of.

    Args:
        socket_path: vifd's socket. None: the environment's VIFD_SOCKET, else /run/vifd/vifd.sock.
        fd_socket_path: vifd's fd socket. None: the environment's VIFD_FD_SOCKET, else vifd is asked.
        timeout_s: How long a call may take in seconds, with all repetitions, where it doesn't say otherwise.
        retry: How calls are repeated. `vifclient.retry.NO_RETRY`: not at all.
    """

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        fd_socket_path: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.socket_path = sockets.find_socket_path(socket_path)
        self._fd_socket_path = sockets.find_fd_socket_path(fd_socket_path)
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._channel = self._open_channel(make_target(self.socket_path))
        self._stubs = make_stubs(self._channel)

    @abstractmethod
    def _open_channel(self, target: str) -> Any:
        """Open the channel of this kind of client."""

    def _begin(self, timeout_s: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout_s if timeout_s is None else timeout_s)


def make_target(path: str) -> str:
    """Make gRPC's target for a Unix socket.

    Args:
        path: The socket's path, absolute or relative.

    Returns:
        The target.
    """
    return "unix:" + quote(path)


def make_stubs(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Callable[..., Any]]:
    """Make the stubs of every RPC.

    Args:
        channel: The channel, synchronous or asyncio.

    Returns:
        The stubs by the RPC's name; no name occurs in both services.
    """
    # The stubs' types tell the two sorts of channel apart; by name all that is left of the type is that it is callable.
    return {**vars(EndpointServiceStub(channel)), **vars(HostServiceStub(channel))}


def translate(error: grpc.RpcError, socket_path: str) -> errors.VifError:
    """Say in vifd's words why a call failed.

    Args:
        error: What grpc raised.
        socket_path: The socket of the call.

    Returns:
        The error. Where vifd itself didn't speak, it says what is wrong with the socket.
    """
    failure = errors.from_rpc(error)
    # A connect that is still under way when the time is over ends as DEADLINE_EXCEEDED.
    if isinstance(failure, errors.Unavailable | errors.DeadlineExceeded) and not failure.reason:
        return sockets.find_obstacle(socket_path) or failure
    return failure


def document(method: Callable[..., Any], returns: object = None) -> None:
    """Let `help()` show what a client's method returns, where the table's row returns a Call.

    Args:
        method: The method, which wraps a row of the table.
        returns: What it returns. None: the result of the row's Call.
    """
    signature = inspect.signature(method)
    result = returns or get_args(signature.return_annotation)[0]
    # inspect looks for this attribute, though the type of functions doesn't have it.
    vars(method)["__signature__"] = signature.replace(return_annotation=result)
