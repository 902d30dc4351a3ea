import errno
import os
import select
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.sockets import connect, ordinary_user
from vifd.gate.listeners import Access, listen
from vifd.gate.peer import identify
from vifd.kernel.processes import Processes
from vifd.model import Caller


def test_a_peer_is_who_the_kernel_says() -> None:
    one, other = socket.socketpair()
    with one, other:
        inode = Processes().identify(os.getpid()).inode
        assert identify(one) == Caller(os.geteuid(), os.getegid(), frozenset(os.getgroups()), os.getpid(), inode)


def test_a_peers_process_is_that_which_connected_and_leaves_nothing_open(folder: Path) -> None:
    with listen(folder / "s", socket.SOCK_STREAM, Access(None, 0o666)) as listener:
        child = os.fork()
        if child == 0:
            try:
                connect(folder / "s", socket.SOCK_STREAM)
                signal.pause()
            finally:
                os._exit(1)  # or it would go on as a second pytest
        process = Processes().identify(child)
        while True:
            try:
                connection, _ = listener.accept()
                break
            except BlockingIOError:
                select.select([listener], [], [], 10)
        with connection:
            before = sorted(Path("/proc/self/fd").iterdir())
            assert (identify(connection).pid, identify(connection).process_inode) == (child, process.inode)
            assert sorted(Path("/proc/self/fd").iterdir()) == before
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert identify(connection).process_inode in {0, process.inode}  # by kernel: one that is gone has none, or the same


def test_a_kernel_that_knows_no_pidfds_of_peers_tells_no_process() -> None:
    class OlderSocket(socket.socket):
        def getsockopt(self, level: int, option: int, *size: int) -> Any:
            if option == 77:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            return super().getsockopt(level, option, *size)

    one, other = socket.socketpair()
    with OlderSocket(fileno=one.detach()) as older, other:
        assert (identify(older).pid, identify(older).process_inode) == (os.getpid(), 0)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_peer_is_who_it_was_when_it_connected(folder: Path, kind: socket.SocketKind) -> None:
    with listen(folder / "s", kind, Access(None, 0o666)) as listener:
        with ordinary_user() as uid:
            client = connect(folder / "s", kind)
        connection, _ = listener.accept()
        with client, connection:
            assert (identify(connection).uid, identify(connection).pid) == (uid, os.getpid())


def test_what_is_no_unix_socket_has_no_peer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.bind(("127.0.0.1", 0))
        try:
            caller = identify(connection)
        except OSError:
            return
        assert caller.uid == 2**32 - 1  # the kernel's "nobody at all", whom no policy is for
