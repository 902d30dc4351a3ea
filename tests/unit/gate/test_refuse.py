import socket
from collections.abc import Callable

import pytest

from vif.v1.fd_pb2 import AcquireFdsResponse
from vifd.gate import handoff, relay

SETTINGS, GOAWAY = 4, 7


def refused(refuse: Callable[[socket.socket, str], None], kind: socket.SocketKind, message: str) -> bytes:
    client, connection = socket.socketpair(socket.AF_UNIX, kind)
    with client, connection:
        refuse(connection, message)
        return client.recv(1 << 16)


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Take HTTP/2 frames apart (RFC 9113, 4.1): type, flags, stream, payload."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + length
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


@pytest.mark.parametrize("message", ["", "no policy is for uid 7", "Größe", "x" * 2000])
def test_a_grpc_client_is_told_in_http2(message: str) -> None:
    settings, goaway = frames(refused(relay.refuse, socket.SOCK_STREAM, message))
    assert settings == (SETTINGS, 0, 0, b"")
    assert goaway[:3] == (GOAWAY, 0, 0)
    last_stream, code, text = goaway[3][:4], goaway[3][4:8], goaway[3][8:]
    assert (last_stream, code, text.decode()) == (bytes(4), bytes(4), message)


def test_a_client_of_the_fd_socket_is_told_in_its_own_words() -> None:
    answer = AcquireFdsResponse.FromString(refused(handoff.refuse, socket.SOCK_SEQPACKET, "no policy is for uid 7"))
    assert (answer.code, answer.reason, answer.message, answer.count) == (7, "NOT_ALLOWED", "no policy is for uid 7", 0)


@pytest.mark.parametrize(("refuse", "kind"), [(relay.refuse, socket.SOCK_STREAM), (handoff.refuse, socket.SOCK_SEQPACKET)])
def test_who_has_left_already_needs_no_telling(refuse: Callable[[socket.socket, str], None], kind: socket.SocketKind) -> None:
    client, connection = socket.socketpair(socket.AF_UNIX, kind)
    client.close()
    with connection:
        refuse(connection, "x")
