from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sockets import ordinary_user
from vifd.errors import HostNotReady, NoProcess
from vifd.kernel import processes
from vifd.kernel.processes import Processes
from vifd.model import ProcessLifetime

NEVER = 1 << 22  # PID_MAX_LIMIT: no process has it


@contextlib.contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends when its standard input does."""
    with subprocess.Popen(command or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["pidfs", "proc"])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """The kernel as it is, and as it was before it had pidfs and PIDFD_GET_INFO."""
    if request.param == "proc":
        monkeypatch.setattr(processes, "inode_of", lambda _pidfd: 0)
        monkeypatch.setattr(processes, "_PIDFD_GET_INFO", 0xC0400000)
    return Processes()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and wait for it without taking it from the table of processes."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_process_is_known_again(real: Processes) -> None:
    with child() as process:
        found = real.identify(process.pid)
        assert found.pid == process.pid
        assert real.identify(process.pid) == found
        assert not real.has_ended(found)
        assert real.uid_of(found) == os.getuid()


def test_two_processes_are_two(real: Processes) -> None:
    with child() as one, child() as other:
        first, second = real.identify(one.pid), real.identify(other.pid)
    assert (first.inode, first.start_ticks) != (0, 0)
    if first.inode:
        assert first.inode != second.inode


def test_one_that_ended_has_ended_also_before_anybody_waited_for_it(real: Processes) -> None:
    with child() as process:
        found = real.identify(process.pid)
        end(process)
        assert real.has_ended(found)
        with pytest.raises(NoProcess):
            real.identify(process.pid)
        with pytest.raises(NoProcess):
            real.uid_of(found)
    assert real.has_ended(found)
    with pytest.raises(NoProcess):
        real.identify(process.pid)


def test_a_pidfd_tells_of_the_end(real: Processes) -> None:
    with child() as process:
        pidfd = real.open(real.identify(process.pid))
        assert pidfd is not None
        assert not os.get_inheritable(pidfd)
        assert select.select([pidfd], [], [], 0)[0] == []
        process.kill()
        assert select.select([pidfd], [], [], 30)[0] == [pidfd]
        os.close(pidfd)


def test_who_has_the_pid_later_is_another_process(real: Processes) -> None:
    with child() as process:
        now = real.identify(process.pid)
        before = ProcessLifetime(now.pid, now.inode and now.inode - 1, now.start_ticks and now.start_ticks - 1)
        assert real.open(before) is None
        assert real.has_ended(before)
        with pytest.raises(NoProcess):
            real.uid_of(before)


def test_a_process_stays_the_same_over_exec(real: Processes) -> None:
    script = "import os, sys; sys.stdin.read(1); os.execvp('cat', ['cat'])"
    with child(sys.executable, "-S", "-c", script) as process:
        assert process.stdin is not None
        before = real.identify(process.pid)
        name = Path(f"/proc/{process.pid}/comm")
        was = name.read_text()
        process.stdin.write(b"x")
        process.stdin.flush()
        while name.read_text() == was:
            assert process.poll() is None
        assert real.identify(process.pid) == before


def test_a_process_of_another_user_is_that_users(real: Processes) -> None:
    with ordinary_user() as uid:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with process:
        assert real.uid_of(real.identify(process.pid)) == uid
        process.kill()


@pytest.mark.parametrize("pid", [0, NEVER])
def test_what_is_no_process_is_none(real: Processes, pid: int) -> None:
    with pytest.raises(NoProcess):
        real.identify(pid)
    assert real.has_ended(ProcessLifetime(pid, 7))


def test_where_proc_hides_processes_and_the_kernel_is_old_the_error_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = Processes(tmp_path)
    with child() as process:
        known = hidden.identify(process.pid)
        monkeypatch.setattr(processes, "_PIDFD_GET_INFO", 0xC0400000)
        with pytest.raises(HostNotReady, match=r"Linux 6\.13.*ProtectProc"):
            hidden.uid_of(known)
        monkeypatch.setattr(processes, "inode_of", lambda _pidfd: 0)
        with pytest.raises(HostNotReady):
            hidden.identify(process.pid)
        with pytest.raises(HostNotReady):
            hidden.has_ended(ProcessLifetime(process.pid, 0, 5))


def test_a_kernel_that_gives_no_pidfd_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(HostNotReady, match="Too many open files"):
        Processes().identify(os.getpid())


def test_no_descriptor_is_left_open(real: Processes) -> None:
    with child() as process:
        found = real.identify(process.pid)
        before = sorted(Path("/proc/self/fd").iterdir())
        real.identify(process.pid)
        real.has_ended(found)
        real.uid_of(found)
        real.open(ProcessLifetime(found.pid, 1, 1))
        assert sorted(Path("/proc/self/fd").iterdir()) == before
