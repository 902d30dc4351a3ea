"""A helper that doesn't come up."""

import subprocess
import sys
from pathlib import Path

from tests.support.daemon import network_namespace, wait_for

DIES_AT_ONCE = """
import os
from pathlib import Path
from vifd.errors import StartError
from vifd.kernel import helper

os.register_at_fork(after_in_child=lambda: os._exit(3))
try:
    helper.start(lambda: ("", {}), Path("/nonexistent"))
except StartError as error:
    print(error)
"""


def stops_the_start(script: str) -> None:
    with network_namespace() as netns:
        argv = ["ip", "netns", "exec", netns, sys.executable, "-c", script]
        # Far less than the start's own limit, which a death must not wait for.
        done = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, "the privileged helper did not start" in done.stdout) == (0, True), done.stderr


def test_a_helper_that_dies_at_its_first_step_stops_the_start_at_once() -> None:
    stops_the_start(DIES_AT_ONCE)


IS_KILLED = """
import os, signal, sys
from pathlib import Path
from oslo_privsep import comm
from vifd.kernel import helper

try:
    helper.start(lambda: ("", {}), Path("/nonexistent"))
    call = (comm.Message.CALL.value, "vifd.kernel.helper.restore_guard", (), {})
    print("stopped", flush=True)
    helper.context.channel.writer.send(("one", call))
    os.kill(os.getpid(), signal.SIGSTOP)
finally:
    print("tidied up", flush=True)
"""


def test_a_helper_whose_front_is_killed_before_it_read_an_answer_just_ends() -> None:
    with network_namespace() as netns:
        argv = ["ip", "netns", "exec", netns, sys.executable, "-c", IS_KILLED]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as front:
            assert front.stdout is not None
            assert front.stdout.readline() == "stopped\n"
            wait_for(lambda: is_stopped(front.pid) and has_unread(front.pid))
            front.kill()
            said, complained = front.communicate(timeout=30)  # at the end of both
    assert (said, complained) == ("", "")


def is_stopped(pid: int) -> bool:
    return "T (stopped)" in Path(f"/proc/{pid}/status").read_text()


def has_unread(pid: int) -> bool:
    """Tell whether an answer lies in a socket of a process."""
    shown = subprocess.run(["nsenter", "-t", str(pid), "-n", "ss", "-xp"], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[2]) > 0 for line in shown.splitlines() if f"pid={pid}," in line)


DIES_WHILE_A_LIBRARY_WORKS = """
import signal
from pathlib import Path
from vifd.errors import StartError
from vifd.kernel import helper

def start(_method):
    try:
        signal.raise_signal(signal.SIGCHLD)
    except Exception:
        raise LookupError("no such option")

helper.context.start = start
try:
    helper.start(lambda: ("", {}), Path("/nonexistent"))
except StartError as error:
    print(error)
"""


def test_a_helper_that_dies_while_a_library_works_stops_the_start_too() -> None:
    stops_the_start(DIES_WHILE_A_LIBRARY_WORKS)
