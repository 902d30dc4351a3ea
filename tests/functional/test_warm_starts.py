"""Forks of one process in the place of vifds that are started by themselves: no test may see a difference."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.asking import make
from tests.support.children import child
from tests.support.daemon import Daemon, is_alive, running, short_directory, wait_for
from tests.support.patience import patient
from vifclient import Client

CHECKOUT = Path(__file__).resolve().parents[2]
_CLONE_NEWNS = 0x20000  # linux/sched.h


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descriptors(pid: int) -> list[str]:
    """What a process has open, without the numbers that differ each time."""
    return sorted(re.sub(r"\d+", "N", fd.readlink().name) for fd in Path(f"/proc/{pid}/fd").iterdir())


@pytest.fixture
def fake() -> Iterator[Daemon]:
    with running(fake=True) as daemon:
        yield daemon


def test_it_is_a_fork_and_called_like_the_command(own: Daemon) -> None:
    assert own.process is not None
    assert b"nursery.py" in Path(f"/proc/{own.process.pid}/cmdline").read_bytes()
    assert {Path(f"/proc/{pid}/comm").read_text() for pid in (own.process.pid, own.helper_pid)} == {"vifd\n"}


def test_what_is_not_to_be_a_fork_is_none() -> None:
    with running(fake=True, warm=False) as daemon:
        assert daemon.process is not None
        assert parent(daemon.process.pid) == os.getpid()


def test_it_has_open_what_a_vifd_has_that_was_started_by_itself(own: Daemon) -> None:
    with running(warm=False) as other:
        assert own.process is not None
        assert other.process is not None
        both = [(own.process.pid, other.process.pid), (own.helper_pid, other.helper_pid)]
        # not at once: who has just said that it serves closes that socket next
        wait_for(lambda: all(descriptors(one) == descriptors(same) for one, same in both))


TAKES_IN = """
import sys, vifd.__main__, vifd.command
before = set(sys.modules)
import tests.support.nursery
print(sorted(set(sys.modules) - before))
"""


def test_it_is_forked_with_the_modules_of_a_start_and_no_others() -> None:
    """Or the helper would find what it lacks otherwise: it can't import."""
    done = subprocess.run([sys.executable, "-c", TAKES_IN], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "['tests', 'tests.support', 'tests.support.nursery']\n"


def test_it_writes_where_it_should(fake: Daemon) -> None:
    with running(fake=True) as other:
        assert other.process is not None
        outputs = [Path(f"/proc/{other.process.pid}/fd/{fd}").readlink() for fd in (1, 2)]
        assert outputs == [other.log_path] * 2
        wait_for(lambda: other.socket in other.log())
    assert other.socket not in fake.log()


def test_a_stop_is_a_success_and_leaves_no_process(own: Daemon) -> None:
    assert own.process is not None
    pid, helper = own.process.pid, own.helper_pid
    assert own.process.poll() is None
    assert own.stop() == 0
    assert (own.process.poll(), own.process.returncode) == (0, 0)
    assert ended(pid)
    wait_for(lambda: not is_alive(helper))


def test_a_kill_is_heard_of_however_it_is_done(own: Daemon) -> None:
    assert own.process is not None
    helper = own.helper_pid
    os.kill(own.process.pid, signal.SIGKILL)
    assert own.wait_dead() == -signal.SIGKILL
    assert ended(own.process.pid)
    wait_for(lambda: not is_alive(helper))
    own.start()
    with Client(own.socket) as client:
        make(client)
    pid = own.process.pid
    own.kill()
    assert own.process.returncode == -signal.SIGKILL
    assert ended(pid)
    own.process.send_signal(signal.SIGTERM)  # nobody is there, and nobody else is meant


def test_the_wait_for_an_end_that_does_not_come_is_given_up(fake: Daemon) -> None:
    assert fake.process is not None
    with pytest.raises(subprocess.TimeoutExpired, match=r"vifd.*timed out after 0\.05 seconds"):
        fake.process.wait(0.05)


def test_it_sees_the_mounts_that_who_starts_it_sees() -> None:
    def there() -> bool:
        with running(fake=True) as daemon:
            assert daemon.process is not None
            mine, its = (Path(f"/proc/{process}/ns/mnt").readlink() for process in ("thread-self", daemon.process.pid))
            return mine == its

    def elsewhere() -> bool:
        assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
        return there()

    assert there()
    with ThreadPoolExecutor(1) as thread:  # which alone is elsewhere then
        assert thread.submit(elsewhere).result()


def test_a_start_that_fails_is_told_with_its_reason() -> None:
    with short_directory() as directory:
        daemon = Daemon(directory, networks="[networks.blue]\nbrige = 1\n")
        with pytest.raises(AssertionError, match=r"vifd did not start:\nvifd: networks\.blue"):
            daemon.start()
        assert daemon.process is not None
        assert daemon.process.returncode == 1


def test_one_that_ends_is_nothing_to_the_others(fake: Daemon) -> None:
    with running(fake=True) as other:
        other.kill()
    with Client(fake.socket) as client:
        assert client.get_host_info().networks
    assert fake.stop() == 0


STARTS_TWO = """
import contextlib, json, signal, sys
from pathlib import Path
from tests.support.daemon import running

with contextlib.ExitStack() as stack:
    pids = [stack.enter_context(running(fake=True)).process.pid for _ in range(2)]
    nursery = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    print(json.dumps([*pids, nursery]), flush=True)
    if sys.argv[1] == "wait":
        signal.pause()
"""


LOSES_IT = """
import os, signal
from pathlib import Path
from tests.support.daemon import running

with running(fake=True) as daemon:
    process = daemon.process
    nursery = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(nursery, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    for again in (process.wait, daemon.start):
        try:
            again()
        except RuntimeError as error:
            print(error)
    os._exit(0)  # the block's end would fail, too
"""


def test_the_process_that_forks_ends_with_the_tests() -> None:
    done = subprocess.run([sys.executable, "-c", STARTS_TWO, "end"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert [pid for pid in json.loads(done.stdout) if not ended(pid)] == []
    assert done.stderr == ""


def test_all_end_when_the_tests_are_killed() -> None:
    argv = [sys.executable, "-c", STARTS_TWO, "wait"]
    with child(argv, cwd=CHECKOUT, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        pids = json.loads(tests.stdout.readline())
        assert all(is_alive(pid) for pid in pids)
        tests.kill()
        wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_no_wait_is_for_ever_when_the_process_that_forks_is_killed() -> None:
    with child([sys.executable, "-c", LOSES_IT], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.communicate(timeout=patient(60))[0] == "the process that forks vifds is gone\n" * 2
