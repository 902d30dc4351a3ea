"""The public sockets: made here, or passed by systemd. Runs before the privileges are dropped."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import NamedTuple

from vifd.errors import StartError

_FIRST_PASSED_FD = 3  # sd_listen_fds(3)
_BACKLOG = 512
_HELPER_LEAVES_SECONDS = 10.0
_POLL_SECONDS = 0.05


class Access(NamedTuple):
    """Who may connect: the socket's group (None: unchanged) and mode."""

    gid: int | None
    mode: int


def passed() -> list[socket.socket]:
    """Take the listeners that systemd passes (LISTEN_PID, LISTEN_FDS), and forget them in the environment.

    Raises:
        StartError: the variables are malformed, or one is no listening Unix socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise StartError(f"LISTEN_FDS is {count!r}, not a number")
    return [_take(fd) for fd in range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + int(count))]


def _take(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
        if listener.family == socket.AF_UNIX and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(fd, False)
            listener.setblocking(False)
            return listener
    except OSError as error:
        raise StartError(f"the passed descriptor {fd} can't be used: {error}") from error
    raise StartError(f"the passed descriptor {fd} is no listening Unix socket; see ListenStream= and ListenSequentialPacket=")


def listen(path: Path, kind: socket.SocketKind, access: Access) -> socket.socket:
    """Make a listener at a path, which is taken from a vifd that is no more.

    Args:
        path: where; the directory is made if it is missing.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        access: who may connect; in force before anybody can.

    Raises:
        StartError: something else is there, or the system refuses.
    """
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        _make_way(path)
        before = os.umask(0o777)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if access.gid is not None:
            os.chown(path, -1, access.gid)
        path.chmod(access.mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"can't listen on {path}: {error.strerror or error}") from error
    except StartError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _make_way(path: Path) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path} is there and is no socket; move it away, or choose another path")
        path.unlink()


def lock(path: Path, what: str) -> int:
    """Take a lock that the helper inherits, so that no second vifd starts before both processes of the first are gone.

    Args:
        path: the lock file.
        what: what only one vifd may have, for the error.

    Returns:
        The descriptor that holds it.

    Raises:
        StartError: a living vifd has it.
    """
    give_up = time.monotonic() + _HELPER_LEAVES_SECONDS
    while True:
        fd = _open_lock(path)
        if _try_lock(fd):
            if _is_at(fd, path):
                break
        else:
            pid = os.pread(fd, 16, 0).decode(errors="replace").strip()
            if _is_alive(pid) or time.monotonic() > give_up:
                os.close(fd)
                raise StartError(f"another vifd (pid {pid or 'unknown'}) has {what}; stop it, or give this one another")
            time.sleep(_POLL_SECONDS)
        os.close(fd)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def discard_stale_locks(directory: Path, pattern: str) -> None:
    """Delete lock files that nobody holds: of vifds whose network namespaces may be gone, and never come back.

    Args:
        directory: where they are.
        pattern: which (glob).
    """
    for path in directory.glob(pattern):
        try:
            fd = _open_lock(path)
        except StartError:
            continue  # it is no lock file of vifd's, or went away by itself
        if _try_lock(fd) and _is_at(fd, path):
            path.unlink()
        os.close(fd)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"can't open the lock {path}: {error.strerror}") from error


def _is_at(fd: int, path: Path) -> bool:
    """Tell whether a lock file is still the one at its path, and not deleted by another vifd between opening and locking."""
    try:
        return path.lstat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    """Tell whether a vifd's front process lives. If only its helper does, that is about to leave."""
    return pid.isdecimal() and Path(f"/proc/{pid}").exists()
