"""Processes that endpoints live as long as: which is which, whose, and when one ends.

It runs in the unprivileged process: a pidfd takes no privilege (pidfd_open(2)), and becomes readable when its process has ended.
A pid alone says little, for it is used again. What tells a process from all others of this boot is the inode of its pidfd (pidfs,
Linux 6.9), or where that isn't, when it started (proc_pid_stat(5)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

from vifd.errors import HostNotReady, NoProcess
from vifd.model import ProcessLifetime

# linux/pidfd.h, since Linux 6.13: struct pidfd_info up to exit_code, and what to put in of it.
_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_CREDS = 1 << 1
_EUID = 7  # its place in the struct
_START_TIME = 22 - 3  # the first field after the name is the third
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # EINVAL and ENOENT: a thread, by kernel


def inode_of(pidfd: int) -> int:
    """Give the number that tells a pidfd's process from every other of this boot; 0 where the kernel has none."""
    found = os.fstat(pidfd)
    return found.st_ino if found.st_dev != _anonymous_device() else 0


@functools.cache
def _anonymous_device() -> int:
    """Give where anonymous inodes are: an eventfd's is one, and before pidfs so was that of every pidfd."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    with _closing(eventfd):
        return os.fstat(eventfd).st_dev


class Processes:
    """Looks at processes.

    Args:
        proc: where the kernel tells of them what a pidfd doesn't.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def identify(self, pid: int) -> ProcessLifetime:
        """Tell which process has a pid now.

        Raises:
            NoProcess: none has.
            HostNotReady: it can't be told from others.
        """
        pidfd = _open(pid)
        if pidfd is None:
            raise _no_process(pid)
        with _closing(pidfd):
            if _is_over(pidfd):
                raise _no_process(pid)
            inode = inode_of(pidfd)
            return ProcessLifetime(pid, inode, 0 if inode else self._start_ticks(pid, pidfd))

    def open(self, process: ProcessLifetime) -> int | None:
        """Give a pidfd of a process, which the caller closes; None: it has ended, also if nobody has waited for it yet.

        Raises:
            HostNotReady: it can't be told.
        """
        pidfd = _open(process.pid)
        if pidfd is None:
            return None
        try:
            inode = inode_of(pidfd)
            same = inode == process.inode if process.inode else self._start_ticks(process.pid, pidfd) == process.start_ticks
        except NoProcess:
            same = False
        except BaseException:
            os.close(pidfd)
            raise
        if same and not _is_over(pidfd):
            return pidfd
        os.close(pidfd)
        return None

    def has_ended(self, process: ProcessLifetime) -> bool:
        """Tell whether a process has ended.

        Raises:
            HostNotReady: it can't be told.
        """
        pidfd = self.open(process)
        if pidfd is not None:
            os.close(pidfd)
        return pidfd is None

    def uid_of(self, process: ProcessLifetime) -> int:
        """Tell as whom a process runs: its effective uid, as SO_PEERCRED has it.

        Raises:
            NoProcess: it has ended.
            HostNotReady: it can't be told.
        """
        pidfd = self.open(process)
        if pidfd is None:
            raise _no_process(process.pid)
        with _closing(pidfd):
            data = bytearray(_INFO.size)
            struct.pack_into("=Q", data, 0, _PIDFD_INFO_CREDS)
            try:
                fcntl.ioctl(pidfd, _PIDFD_GET_INFO, data)
            except ProcessLookupError:
                raise _no_process(process.pid) from None
            except OSError:  # older kernels don't know it
                fields = self._read(process.pid, "status", pidfd).split("\nUid:", 1)[1].split()
                return int(fields[1])
            uid: int = _INFO.unpack(data)[_EUID]
            return uid

    def _start_ticks(self, pid: int, pidfd: int) -> int:
        return int(self._read(pid, "stat", pidfd).rpartition(")")[2].split()[_START_TIME])

    def _read(self, pid: int, name: str, pidfd: int) -> str:
        """Read what the kernel tells of a process: of this one and no later one, for it lived still afterwards."""
        try:
            text = (self._proc / str(pid) / name).read_text(errors="replace")
        except OSError as error:
            if _is_over(pidfd):
                raise _no_process(pid) from error
            raise HostNotReady(
                f"vifd can't tell which process {pid} is: that takes Linux 6.13, or a /proc that shows it other users' processes "
                f"(its unit without ProtectProc=): {error.strerror}. Ask for another lifetime"
            ) from error
        if _is_over(pidfd):
            raise _no_process(pid)
        return text


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise HostNotReady(f"process {pid} can't be watched: {error.strerror}; ask for another lifetime") from error


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _no_process(pid: int) -> NoProcess:
    return NoProcess(f"there is no process {pid} (any more) in vifd's pid namespace; name one that runs, and no thread")
