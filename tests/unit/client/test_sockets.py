import errno
import os
import socket
from pathlib import Path

import pytest

from tests.unit.client.fake_vifd import FakeVifd
from vifclient import errors, sockets


def message(path: Path | str, number: int | None = None) -> str:
    error = sockets.explain(str(path), OSError(number, os.strerror(number))) if number else sockets.find_obstacle(str(path))
    assert error is not None
    return error.message


def test_somebody_listens(vifd: FakeVifd) -> None:
    assert sockets.find_obstacle(vifd.socket_path) is None


def test_no_such_socket(folder: Path) -> None:
    assert "there is no such socket. Start vifd" in message(folder / "none")


def test_no_directory(folder: Path) -> None:
    (folder / "file").touch()
    assert "no directory" in message(folder / "file" / "v.sock")


def test_no_socket_at_all(folder: Path) -> None:
    (folder / "file").touch()
    assert "it is no socket" in message(folder / "file")


def test_nobody_listens(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "v.sock"))
    assert "nobody listens" in message(folder / "v.sock")


def test_the_fd_socket_is_not_the_public_one(vifd: FakeVifd) -> None:
    assert "fd socket mistaken" in message(vifd.fd_socket_path)


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(OSError, match="too long") as caught, socket.socket(socket.AF_UNIX) as probe:
        probe.connect("/" + "x" * 200)
    assert "longer than 107 bytes" in sockets.explain("/" + "x" * 200, caught.value).message
    assert "longer than 107 bytes" in message("/" + "x" * 200)


def test_permission_is_missing(folder: Path) -> None:
    """Root is never denied, so the denial itself is given."""
    path = folder / "v.sock"
    path.touch()
    path.chmod(0o660)
    group = 12
    os.chown(path, -1, group) if os.geteuid() == 0 else None
    error = sockets.explain(str(path), OSError(errno.EACCES, "denied"))
    assert isinstance(error, errors.SocketDenied)
    assert f"(uid {os.geteuid()}) may not open vifd's socket {path} (0660, group" in error.message
    path.chmod(0o600)
    assert "socket_mode of vifd's configuration" in message(path, errno.EACCES)
    assert "the group vifd" in message(folder / "closed" / "v.sock", errno.EACCES)


def test_names_that_nobody_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    assert "uid 4000000000 may not open" in message(folder / "v.sock", errno.EACCES)


def test_other_errors_have_the_systems_words() -> None:
    assert "Too many open files" in message("/x", errno.EMFILE)
