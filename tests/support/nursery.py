"""A process that has imported what `vifd` imports before it does anything, and becomes a vifd by a fork as often as it is asked.

`tests.support.forks` runs it: nursery.py FD, a SOCK_SEQPACKET socket. In comes JSON, the command and its environment, with two
descriptors: where its exit status goes, and its output. Out goes the pid, with its pidfd. The kernel ends nothing here by itself,
so at the socket's end, which is also the tests', whatever still runs is killed.

It imports no more than vifd does: what the helper lacks after its fork, it has to lack here, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

import vifd.__main__
import vifd.command

_ORDER_BYTES = 1 << 20


class Nursery:
    """The forks that live, and who wants to hear of their ends.

    Args:
        control: where orders come from.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._living: dict[int, tuple[int, int]] = {}  # by pidfd: pid, and where its status goes
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Fork what is asked for, until the tests have ended. It returns in each fork, which then is to run vifd."""
        with contextlib.suppress(ConnectionError):  # they have ended in the middle of something
            while True:
                for fd, _ in self._poll.poll():
                    if fd != self._control.fileno():
                        self._bury(fd)
                    elif self._take_order():
                        return
        self._end()

    def _take_order(self) -> bool:
        """Fork; gives True in the fork."""
        order, fds, _, _ = socket.recv_fds(self._control, _ORDER_BYTES, 2)
        if not order:
            raise ConnectionResetError
        status, output = fds
        if (pid := os.fork()) == 0:
            self._control.detach()
            _become(output, **json.loads(order))
            return True
        os.close(output)
        pidfd = os.pidfd_open(pid)
        self._living[pidfd] = pid, status
        self._poll.register(pidfd, select.POLLIN)
        socket.send_fds(self._control, [str(pid).encode()], [pidfd])
        return False

    def _bury(self, pidfd: int) -> None:
        pid, status = self._living.pop(pidfd)
        self._poll.unregister(pidfd)
        os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os.close(status)
        os.close(pidfd)

    def _end(self) -> None:
        for pidfd, (pid, _) in self._living.items():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
        sys.exit()


def _become(output: int, argv: list[str], environment: dict[str, str]) -> None:
    """Have what a program has that was started by itself."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    Path("/proc/self/comm").write_text(Path(argv[0]).name)


if __name__ == "__main__":
    Nursery(socket.socket(fileno=int(sys.argv[1]))).serve()
    sys.exit(vifd.__main__.main())
