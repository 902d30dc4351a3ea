"""Connects to Unix sockets as another user: the program of `tests.support.users`. It needs the standard library alone.

connector.py CONTROL_FD UID GID GROUP,GROUP...

On the control socket: a packet of a socket's type and path comes in, a packet with the connected descriptor goes back, or one
with the errno and none. The kernel's SO_PEERCRED then says this process's user, whoever uses the descriptor.
"""

import os
import socket
import sys


def main() -> None:
    """Become the user and answer until the other side leaves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    uid, gid = int(sys.argv[2]), int(sys.argv[3])
    os.setgroups([int(group) for group in sys.argv[4].split(",") if group])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    while packet := control.recv(4096):
        kind, path = packet.decode().split(" ", 1)
        with socket.socket(socket.AF_UNIX, int(kind)) as connection:
            try:
                connection.connect(path)
            except OSError as error:
                control.send(str(error.errno).encode())
                continue
            socket.send_fds(control, [b"0"], [connection.fileno()])


if __name__ == "__main__":
    main()
