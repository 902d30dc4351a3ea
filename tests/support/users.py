"""Callers of other users, in the test's own process: their connections are made by a process that runs as them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.daemon import Daemon, short_directory
from tests.support.patience import patient
from vif.v1.fd_pb2 import AcquireFdsRequest
from vifclient import Client, QueueFds
from vifclient.queues import receive_queues
from vifclient.retry import NO_RETRY

_CONNECTOR = Path(__file__).with_name("connector.py")


class User:
    """A user of this host; it needs no entry in /etc/passwd.

    Args:
        uid: the user.
        gid: its primary group; None: as the uid.
        groups: its supplementary groups.
    """

    def __init__(self, uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> None:
        self.uid, self.gid = uid, uid if gid is None else gid
        self._control, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = [str(uid), str(self.gid), ",".join(map(str, groups))]
        with child:
            argv = [sys.executable, "-I", "-S", str(_CONNECTOR), str(child.fileno()), *numbers]
            self._process = subprocess.Popen(argv, pass_fds=[child.fileno()])
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the process that connects."""
        self._control.close()
        try:
            assert self._process.wait(patient(10)) == 0
        finally:
            self._process.kill()
            self._process.wait()

    def connect(self, path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Connect to a Unix socket as this user.

        Raises:
            OSError: what the connect raised.
        """
        with self._lock:
            self._control.send(f"{int(kind)} {path}".encode())
            answer, fds, _, _ = socket.recv_fds(self._control, 64, 1)
        if not fds:
            raise OSError(int(answer), os.strerror(int(answer)))
        return socket.socket(fileno=fds[0])

    @contextlib.contextmanager
    def client(self, vifd: Daemon) -> Iterator[Client]:
        """Give a client whose calls vifd gets from this user. Its calls aren't repeated; it has no fd socket (`acquire_fds`)."""
        with short_directory() as directory:
            path = str(directory / "relay.sock")
            relay = _Relay(self, path, vifd.socket)
            try:
                with Client(path, fd_socket_path=str(directory / "none"), retry=NO_RETRY) as client:
                    yield client
            finally:
                relay.close()

    def acquire_fds(self, vifd: Daemon, endpoint_id: str, count: int = 0) -> QueueFds:
        """Ask for open queues as this user.

        Raises:
            VifError: what vifd answered.
        """
        with self.connect(vifd.fd_socket, socket.SOCK_SEQPACKET) as connection:
            connection.send(AcquireFdsRequest(endpoint_id=endpoint_id, count=count).SerializeToString())
            return receive_queues(connection)


@contextlib.contextmanager
def user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[User]:
    """Give a user for the time of a block."""
    one = User(uid, gid, groups)
    try:
        yield one
    finally:
        one.close()


class _Relay:
    """A socket behind which every connection is one of the user's to the target."""

    def __init__(self, caller: User, path: str, target: str) -> None:
        self._caller, self._target = caller, target
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for one in [self._listener, *self._sockets]:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(inner)
            try:
                outer = self._caller.connect(self._target)
            except OSError:
                inner.shutdown(socket.SHUT_RDWR)
                continue
            self._sockets.append(outer)
            for source, sink in ((inner, outer), (outer, inner)):
                thread = threading.Thread(target=_copy, args=(source, sink))
                self._threads.append(thread)
                thread.start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
