"""The open queues of an endpoint, handed over by vifd's fd socket.

The protocol (`protos/vif/v1/fd.proto`): one AcquireFdsRequest as one packet of a SOCK_SEQPACKET socket, one AcquireFdsResponse
back, with the descriptors attached (SCM_RIGHTS, unix(7)). Nothing here waits: a client calls `send_request`, waits in its own
way until the socket is readable, and calls `receive_queues`.
"""

import array
import os
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, overload

from google.protobuf.message import DecodeError

from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vifclient import errors, sockets

_MAX_FDS = 253  # SCM_MAX_FD of include/net/scm.h
_MAX_PACKET_BYTES = 65536
_FD_BYTES = array.array("i").itemsize


class QueueFds(Sequence[int]):
    """Open queues of one endpoint, in queue order; closed at the end of the `with` block unless they are detached.

    They are close-on-exec: hand them to a child with `subprocess.Popen(..., pass_fds=queues)`.

    Attributes:
        vnet_hdr: Whether frames on them carry a virtio-net header.
    """

    def __init__(self, fds: Iterable[int], *, vnet_hdr: bool = False) -> None:
        self._fds = tuple(fds)
        self.vnet_hdr = vnet_hdr

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, in queue order. Empty once they are closed or detached."""
        return self._fds

    def detach(self) -> tuple[int, ...]:
        """Give the descriptors away: from now on the caller closes them.

        Returns:
            The descriptors, in queue order.
        """
        fds, self._fds = self._fds, ()
        return fds

    def close(self) -> None:
        """Close the descriptors. Closing twice does nothing."""
        close_all(self.detach())

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self._fds[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fds:
            warnings.warn(f"queues were never closed: {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"QueueFds({list(self._fds)}, vnet_hdr={self.vnet_hdr})"


def send_request(path: str, endpoint_id: str, count: int) -> socket.socket:
    """Connect to the fd socket and ask for queues.

    Args:
        path: The fd socket's path.
        endpoint_id: The endpoint.
        count: How many queues. 0: all.

    Returns:
        The socket, non-blocking: when it is readable, `receive_queues` has something to receive.

    Raises:
        VifError: Unreachable or SocketDenied.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)  # connecting to a Unix socket never waits, except for a full backlog
        connection.connect(path)
        connection.send(AcquireFdsRequest(endpoint_id=endpoint_id, count=count).SerializeToString())
    except OSError as error:
        connection.close()
        raise sockets.explain(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def receive_queues(connection: socket.socket) -> QueueFds:
    """Receive vifd's answer.

    Args:
        connection: The socket of `send_request`, readable.

    Returns:
        The queues.

    Raises:
        VifError: What vifd answered, or what became of the answer on its way. No descriptor is left open.
    """
    try:
        packet, ancillary, flags, _ = connection.recvmsg(
            _MAX_PACKET_BYTES, socket.CMSG_SPACE(_MAX_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError as error:
        raise errors.Unavailable(f"vifd broke the connection of its fd socket off: {error.strerror}") from error
    queues = QueueFds(_unpack_fds(ancillary))
    try:
        _check_answer(packet, flags, queues)
    except BaseException:
        queues.close()
        raise
    return queues


def too_late(timeout_s: float) -> errors.DeadlineExceeded:
    """Make the error of an answer that didn't come in time.

    Args:
        timeout_s: How long it was waited for, in seconds.

    Returns:
        The error.
    """
    return errors.DeadlineExceeded(f"vifd's fd socket didn't answer within {timeout_s:.3g} s")


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, all of them, also when one can't be closed.

    Args:
        fds: The descriptors.
    """
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # the others have to be closed all the same, and Linux has released this one (close(2))
            continue


def _unpack_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])  # a truncated message may end within a descriptor
    return fds.tolist()


def _check_answer(packet: bytes, flags: int, queues: QueueFds) -> None:
    if not packet:
        raise errors.Unavailable("vifd closed the connection of its fd socket without an answer")
    if flags & socket.MSG_CTRUNC:
        raise errors.FdsTruncated(
            f"only {len(queues)} of the endpoint's queues could be received: this process may open too few files; "
            "raise its limit (ulimit -n, LimitNOFILE=)"
        )
    answer = _parse(packet)
    if answer.code:
        raise errors.from_code_number(answer.code, answer.message, reason=answer.reason)
    if answer.count != len(queues):
        raise errors.ServerError(f"vifd announced {answer.count} queues and sent {len(queues)}")
    queues.vnet_hdr = answer.vnet_hdr


def _parse(packet: bytes) -> AcquireFdsResponse:
    try:
        return AcquireFdsResponse.FromString(packet)
    except DecodeError as error:
        raise errors.ServerError("the answer of vifd's fd socket can't be understood: is it vifd's?") from error
