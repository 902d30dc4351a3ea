import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vifclient.hypervisors.rest import Request, RestError, send


class Api:
    """An API socket that answers one request, and keeps what came."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.head = self.body = b""
        self.inodes: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 8)
            self.inodes = [os.fstat(fd).st_ino for fd in fds]
            for fd in fds:
                os.close(fd)
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            self.head, self.body = data.split(b"\r\n\r\n", 1)
            length = next((int(line[15:]) for line in self.head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
            while len(self.body) < length:
                self.body += connection.recv(65536)
            connection.sendall(self.answer)


@pytest.fixture
def api(folder: Path) -> Iterator[Api]:
    one = Api(folder / "api.sock")
    yield one
    one.close()


def test_a_request_without_answer(api: Api) -> None:
    assert send(api.path, Request("PUT", "/network-interfaces/n0", {"iface_id": "n0"})) is None
    assert api.head.startswith(b"PUT /network-interfaces/n0 HTTP/1.1\r\n")
    assert api.body == b'{"iface_id": "n0"}'
    assert api.inodes == []


def test_files_go_with_the_first_bytes(api: Api) -> None:
    api.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"id": "n0"}'
    read, write = os.pipe()
    inode = os.fstat(read).st_ino
    answer = send(api.path, Request("PUT", "/api/v1/vm.add-net", {"id": "n0"}), fds=[read, write])
    assert answer == {"id": "n0"}
    assert api.inodes == [inode, inode]
    assert api.body == b'{"id": "n0"}'
    os.close(read)  # raises if it were closed
    os.close(write)


def test_a_question(api: Api) -> None:
    api.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
    assert send(api.path, Request("GET", "/version")) == {"a": 1}
    assert api.body == b""


def test_a_refusal_has_the_hypervisors_words(api: Api) -> None:
    api.answer = b'HTTP/1.1 400 Bad Request\r\nContent-Length: 21\r\n\r\n["no such interface"]'
    with pytest.raises(RestError, match=r'refused /x: \["no such interface"\]') as caught:
        send(api.path, Request("PUT", "/x", {}))
    assert caught.value.status == 400


def test_a_broken_answer(api: Api) -> None:
    api.answer = b""
    with pytest.raises(RestError, match="can't be spoken to") as caught:
        send(api.path, Request("GET", "/version"))
    assert caught.value.status == 0


def test_another_program(api: Api) -> None:
    api.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nIt works!"
    with pytest.raises(RestError, match="isn't the hypervisor: b'It works!'") as caught:
        send(api.path, Request("GET", "/version"))
    assert caught.value.status == 200


def test_nobody_there(folder: Path) -> None:
    with pytest.raises(RestError, match="No such file or directory"):
        send(str(folder / "none.sock"), Request("GET", "/version"))
