import os
import socket
from pathlib import Path

import pytest

from tests.support.sockets import connect, ordinary_user
from vifd.gate.listeners import Access, listen
from vifd.gate.peer import identify
from vifd.model import Caller


def test_a_peer_is_who_the_kernel_says() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert identify(one) == Caller(os.geteuid(), os.getegid(), frozenset(os.getgroups()), os.getpid())


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
