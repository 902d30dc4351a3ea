"""A helper that doesn't come up."""

import subprocess
import sys

from tests.support.daemon import network_namespace

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


def test_a_helper_that_dies_at_its_first_step_stops_the_start_at_once() -> None:
    # Far less than the start's own limit, which a death must not wait for.
    with network_namespace() as netns:
        argv = ["ip", "netns", "exec", netns, sys.executable, "-c", DIES_AT_ONCE]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, "the privileged helper did not start" in done.stdout) == (0, True), done.stderr
