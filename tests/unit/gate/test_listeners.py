import fcntl
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sockets import connect
from vifd.errors import StartError
from vifd.gate import listeners
from vifd.gate.listeners import Access

ANYBODY = Access(None, 0o666)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "run" / "vifd.sock"


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_listener_takes_connections(path: Path, kind: socket.SocketKind) -> None:
    with listeners.listen(path, kind, ANYBODY) as listener, connect(path, kind):
        connection, _ = listener.accept()
        connection.close()


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666])
def test_a_listener_has_the_mode_of_the_configuration(path: Path, wanted: int) -> None:
    with listeners.listen(path, socket.SOCK_STREAM, Access(None, wanted)):
        assert mode(path) == wanted


def test_a_listener_has_the_group_of_the_configuration(path: Path) -> None:
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    with listeners.listen(path, socket.SOCK_STREAM, Access(gid, 0o660)):
        assert path.stat().st_gid == gid


def test_making_a_listener_leaves_the_umask_alone(path: Path) -> None:
    before = os.umask(0o027)
    try:
        listeners.listen(path, socket.SOCK_STREAM, ANYBODY).close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_socket_of_a_vifd_that_is_no_more_is_replaced(path: Path) -> None:
    listeners.listen(path, socket.SOCK_STREAM, ANYBODY).close()
    with listeners.listen(path, socket.SOCK_STREAM, ANYBODY), connect(path):
        pass


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(StartError, match="is no socket; move it away"):
        listeners.listen(path, socket.SOCK_STREAM, ANYBODY)
    assert path.read_text() == "precious"


def test_a_symbolic_link_isnt_followed(path: Path, folder: Path) -> None:
    path.parent.mkdir()
    target = folder / "elsewhere"
    path.symlink_to(target)
    with pytest.raises(StartError, match="is no socket"):
        listeners.listen(path, socket.SOCK_STREAM, ANYBODY)
    assert path.is_symlink()
    assert not target.exists()


@pytest.mark.parametrize("name", ["x" * 200, "missing/below/missing"])
def test_a_path_that_cant_be_is_an_error_that_names_it(folder: Path, name: str) -> None:
    with pytest.raises(StartError, match="can't listen on /"):
        listeners.listen(folder / name, socket.SOCK_STREAM, ANYBODY)


def test_a_second_lock_is_refused_and_names_the_first(folder: Path) -> None:
    held = listeners.lock(folder / "lock", "the socket")
    try:
        with pytest.raises(StartError, match=rf"another vifd \(pid {os.getpid()}\) has the socket"):
            listeners.lock(folder / "lock", "the socket")
    finally:
        os.close(held)


def test_a_lock_that_was_let_go_is_taken(folder: Path) -> None:
    os.close(listeners.lock(folder / "lock", "x"))
    os.close(listeners.lock(folder / "lock", "x"))


def test_a_lock_file_is_only_roots_and_not_inherited(folder: Path) -> None:
    held = listeners.lock(folder / "run" / "lock", "x")
    try:
        assert mode(folder / "run" / "lock") == 0o600
        assert not os.get_inheritable(held)
        assert (folder / "run" / "lock").read_text() == str(os.getpid())
    finally:
        os.close(held)


def test_a_lock_that_a_dead_vifds_helper_still_holds_is_waited_for(folder: Path, dead_pid: int) -> None:
    path = folder / "lock"
    path.write_text(str(dead_pid))
    helper = os.open(path, os.O_RDWR)
    fcntl.flock(helper, fcntl.LOCK_EX)
    waiting = threading.Timer(0, os.close, [helper])
    waiting.start()
    os.close(listeners.lock(path, "x"))
    waiting.join()


def test_a_helper_that_never_leaves_is_waited_for_only_so_long(
    folder: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "_HELPER_LEAVES_SECONDS", 0.0)
    path = folder / "lock"
    path.write_text(str(dead_pid))
    helper = os.open(path, os.O_RDWR)
    fcntl.flock(helper, fcntl.LOCK_EX)
    try:
        with pytest.raises(StartError, match=f"pid {dead_pid}"):
            listeners.lock(path, "x")
    finally:
        os.close(helper)


def test_a_lock_that_is_a_symbolic_link_isnt_followed(folder: Path) -> None:
    (folder / "lock").symlink_to(folder / "elsewhere")
    with pytest.raises(StartError, match="can't open the lock"):
        listeners.lock(folder / "lock", "x")


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[socket.socket]]:
    """Two listeners, passed as systemd does, but from another number than 3."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    made = [listeners.listen(folder / f"{kind.name}", kind, ANYBODY) for kind in kinds]
    first = fcntl.fcntl(made[0].fileno(), fcntl.F_DUPFD, 200)
    for number, listener in enumerate(made):
        os.dup2(listener.fileno(), first + number)
    monkeypatch.setattr(listeners, "_FIRST_PASSED_FD", first)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "rpc:fds")
    yield made
    for listener in made:
        listener.close()


def test_the_listeners_that_systemd_passes_are_taken(activated: list[socket.socket]) -> None:
    taken = listeners.passed()
    assert [listener.type for listener in taken] == [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
    assert not any(os.get_inheritable(listener.fileno()) for listener in taken)
    for listener in taken:
        listener.close()


def test_what_systemd_passes_is_forgotten_in_the_environment(activated: list[socket.socket]) -> None:
    for listener in listeners.passed():
        listener.close()
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
    assert listeners.passed() == []


def test_what_is_passed_to_another_process_isnt_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listeners.passed() == []


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5"])
def test_a_count_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(StartError, match="not a number"):
        listeners.passed()


def test_what_is_no_socket_at_all_is_an_error() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(StartError, match="can't be used"):
            listeners._take(fd)
    finally:
        os.close(fd)


def test_locks_that_nobody_holds_are_discarded_and_others_stay(folder: Path) -> None:
    held = listeners.lock(folder / "netns-1.lock", "x")
    os.close(listeners.lock(folder / "netns-2.lock", "x"))
    (folder / "netns-3.lock").symlink_to(folder / "elsewhere")
    (folder / "other").touch()
    listeners.discard_stale_locks(folder, "netns-*.lock")
    os.close(held)
    assert {path.name for path in folder.iterdir()} == {"netns-1.lock", "netns-3.lock", "other"}


def test_a_lock_file_that_was_discarded_in_between_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, really_try = folder / "lock", listeners._try_lock
    discards = [path.unlink]

    def discard_first(fd: int) -> bool:
        while discards:
            discards.pop()()
        return really_try(fd)

    monkeypatch.setattr(listeners, "_try_lock", discard_first)
    held = listeners.lock(path, "x")
    assert path.stat().st_ino == os.fstat(held).st_ino
    os.close(held)
