"""`make demo`'s script: it ends well, and it cleans up when it is interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "demo"]
TIMEOUT_S = 150


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def namespace_of(output: str) -> str:
    match = re.search(r"vifd-demo-[0-9a-f]+", output)
    assert match, output
    return match[0]


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_it_runs_green() -> None:
    done = subprocess.run(DEMO, cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert namespace_of(done.stdout) not in namespaces()


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_it_cleans_up_when_interrupted_while_the_machine_runs() -> None:
    with subprocess.Popen(DEMO, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        output = ""
        for line in demo.stdout:
            output += line
            if "the virtual machine is up" in line:
                demo.send_signal(signal.SIGINT)
                break
        output += demo.stdout.read()
        assert demo.wait(TIMEOUT_S) == 130, output
    assert namespace_of(output) not in namespaces()
    assert not list(Path("/tmp").glob(f"{namespace_of(output)}-*"))
