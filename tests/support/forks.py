"""vifds that start in a fifth of the time: each is a fork of one process that has imported already what all of them do.

Most of a start is Python's imports: 0.6 of 0.75 s of a CPU, and seconds in an emulated machine. The code that runs is vifd's own,
from its first line on; what a fork has not in common with a vifd that was started by itself is its command line in /proc.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_GONE = "the process that forks vifds is gone"
_PROGRAM = Path(__file__).with_name("nursery.py")


class Process:
    """A fork, with what tests need of subprocess.Popen's interface, as that has it.

    Args:
        argv: its command.
        pid: its pid.
        pidfd: the same for signals: it never means another process.
        status: a pipe that gives its exit status.
    """

    def __init__(self, argv: Sequence[str], pid: int, pidfd: int, status: int) -> None:
        self.args, self.pid = argv, pid
        self.returncode: int | None = None
        self._pidfd, self._status = pidfd, status

    def poll(self) -> int | None:
        """Give the exit status if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait some seconds for its end; give the exit status, -N after signal N.

        Raises:
            subprocess.TimeoutExpired: it runs still.
            RuntimeError: nobody can tell any more.
        """
        if self.returncode is None:
            ready = select.poll()
            ready.register(self._status, select.POLLIN)
            if not ready.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            if not (status := os.read(self._status, 16)):
                raise RuntimeError(_GONE)
            self.returncode = int(status)
            os.close(self._status)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The process that forks, from the tests' side."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-P", str(_PROGRAM), str(theirs.fileno())]
            # A session of its own: a terminal's signals are for the tests, which then stop what they have started.
            self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)
        self._one_order = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        """End it and all its forks."""
        self._control.close()
        self._process.wait()

    def start(self, argv: Sequence[str], environment: Mapping[str, str], output: int) -> Process:
        """Have one forked."""
        order = json.dumps({"argv": argv, "environment": dict(environment)}).encode()
        status, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            with self._one_order:
                socket.send_fds(self._control, [order], [theirs, output])
                pid, pidfds, _, _ = socket.recv_fds(self._control, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise RuntimeError(_GONE) from error
        finally:
            os.close(theirs)
        return Process(argv, int(pid), pidfds[0], status)


@functools.cache
def _nursery(mounts: Path) -> _Nursery:
    """Give the one of a mount namespace: where that is, its forks are."""
    return _Nursery()


def start(argv: Sequence[str], *, environment: Mapping[str, str], output: int) -> Process:
    """Start a vifd.

    Args:
        argv: its command, of which the first is what it is called.
        environment: all that it has in its environment.
        output: the descriptor that both of its outputs go to.
    """
    return _nursery(Path("/proc/thread-self/ns/mnt").readlink()).start(argv, environment, output)
