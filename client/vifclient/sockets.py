"""Where vifd's two Unix sockets are, and why one of them doesn't answer."""

import errno
import grp
import os
import pwd
import socket
from pathlib import Path

from vifclient.errors import SocketDenied, Unreachable, Unsupported, VifError

DEFAULT_SOCKET = "/run/vifd/vifd.sock"
SOCKET_VARIABLE = "VIFD_SOCKET"
FD_SOCKET_VARIABLE = "VIFD_FD_SOCKET"
_PATH_LIMIT_BYTES = 107  # sun_path without its final NUL, unix(7)


def find_socket_path(given: str | None) -> str:
    """Find the path of vifd's public socket.

    Args:
        given: The path that the caller names. None: the environment's VIFD_SOCKET, else /run/vifd/vifd.sock.

    Returns:
        The path.
    """
    return given or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def find_fd_socket_path(given: str | None) -> str | None:
    """Find the path of vifd's fd socket, as far as this process knows it.

    Args:
        given: The path that the caller names. None: the environment's VIFD_FD_SOCKET.

    Returns:
        The path. None: ask vifd (`GetHostInfoResponse.fd_socket_path`).
    """
    return given or os.environ.get(FD_SOCKET_VARIABLE) or None


def require_fd_socket(path: str) -> str:
    """Check that vifd has an fd socket.

    Args:
        path: `GetHostInfoResponse.fd_socket_path`.

    Returns:
        The same path.

    Raises:
        Unsupported: It is empty.
    """
    if not path:
        raise Unsupported("this vifd hands no queues over: it has no fd socket (fd_socket in its configuration)")
    return path


def find_obstacle(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> VifError | None:
    """Find out why a socket can't be reached, by connecting to it.

    Args:
        path: The socket's path.
        kind: Its kind.

    Returns:
        The error that explains it. None: somebody listens.
    """
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return explain(path, error)
    return None


def explain(path: str, error: OSError) -> VifError:
    """Turn a failed connect into an error that says what to do.

    Args:
        path: The socket's path.
        error: What connect raised.

    Returns:
        The error: SocketDenied for missing permission, else Unreachable.
    """
    if error.errno == errno.EACCES:
        return SocketDenied(f"{_whoami()} may not open vifd's socket {path}{_way_in(path)}")
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        return Unreachable(f"the path of vifd's socket is longer than {_PATH_LIMIT_BYTES} bytes: {path}: choose a shorter one")
    if error.errno == errno.ECONNREFUSED and not Path(path).is_socket():
        return Unreachable(f"vifd can't be reached on {path}: it is no socket. Name vifd's with --socket or VIFD_SOCKET")
    return Unreachable(f"vifd can't be reached on {path}: {_WHY.get(error.errno or 0, os.strerror(error.errno or 0))}")


_WHY = {
    errno.ENOENT: "there is no such socket. Start vifd (systemctl start vifd), or name its socket with --socket or VIFD_SOCKET",
    errno.ENOTDIR: "a part of the path is no directory. Name vifd's socket with --socket or VIFD_SOCKET",
    errno.ECONNREFUSED: "the socket is there, but nobody listens. Start vifd (systemctl start vifd)",
    errno.EPROTOTYPE: "it is a socket of another kind: was vifd's fd socket mistaken for its public one?",
    errno.EAGAIN: "too many connections wait for vifd. Try again",
}


def _whoami() -> str:
    uid = os.geteuid()
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _way_in(path: str) -> str:
    try:
        status = Path(path).stat()
    except OSError:  # the directory is closed as well
        return ". Ask the administrator to be added to the group vifd, then log in again"
    return f" ({status.st_mode & 0o777:04o}, group {_group_name(status.st_gid)}). " + _advice(status.st_mode, status.st_gid)


def _advice(mode: int, gid: int) -> str:
    if gid and mode & 0o020:
        return f"Ask the administrator to be added to the group {_group_name(gid)}, then log in again"
    return "Ask the administrator: socket_group and socket_mode of vifd's configuration say who may"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
