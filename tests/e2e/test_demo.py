"""`make demo`'s script: it ends well, and it cleans up when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import short_directory

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "demo"]
TIMEOUT_S = 150


def run_demo(**options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(DEMO, cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options)


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def namespace_of(output: str) -> str:
    match = re.search(r"vifd-demo-[0-9a-f]+", output)
    assert match, output
    return match[0]


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_it_runs_green() -> None:
    done = run_demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert namespace_of(done.stdout) not in namespaces()


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_it_shows_what_happened_and_cleans_up_when_the_machine_does_not_start() -> None:
    with short_directory() as programs:
        qemu = programs / "qemu-system-x86_64"
        qemu.write_text("#!/bin/sh\necho this is no machine\nexit 1\n")
        qemu.chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        done = run_demo(env=os.environ | {"PATH": path})
    assert done.returncode == 1
    assert "this is no machine" in done.stdout
    assert "vifd serves" in done.stdout  # its log
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
                demo.send_signal(signal.SIGTERM)
                break
        output += demo.stdout.read()
        assert demo.wait(TIMEOUT_S) == 130, output
    assert namespace_of(output) not in namespaces()
    assert not list(Path("/tmp").glob(f"{namespace_of(output)}-*"))
