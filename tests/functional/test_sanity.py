"""vif-sanity against a real vifd: every driver, as root and as an ordinary user; and the kernel is as it was before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functional.conftest import ALICE
from tests.support import kernel
from tests.support.daemon import BIN, Daemon, network_namespace, running

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"

[networks.handed-out]
driver = "bridge"
bridge = "br-out"
addresses = ["10.92.0.1/16"]
pool = ["10.92.1.0-10.92.9.255"]

[networks.card]
driver = "direct"
uplink = "up0"
"""
SECONDS = 240
# What the program needs is imported as root: a Python below /root is out of others' reach.
AS_ANOTHER_USER = """
import os, sys
from vifclient.sanity.command import run_sanity
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
sys.exit(run_sanity(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def vifd() -> Iterator[Daemon]:
    with network_namespace() as netns:
        kernel.run(netns, "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        kernel.run(netns, "link", "set", "far0", "up")
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


def conforms(vifd: Daemon, program: list[str], *arguments: str) -> dict[str, str]:
    """Run vif-sanity; give the outcome of each check."""
    before = kernel.snapshot(vifd.netns)
    argv = [*program, "--socket", vifd.socket, "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    answer: Any = json.loads(done.stdout)
    assert [(one["name"], one["message"]) for one in answer["results"] if one["outcome"] == "failed"] == []
    assert (done.returncode, done.stderr) == (0, "")
    assert kernel.snapshot(vifd.netns) == before
    return {one["name"]: one["outcome"] for one in answer["results"]}


@pytest.mark.parametrize(("network", "kind"), [("blue", "tap"), ("blue", "bridge"), ("handed-out", "tap"), ("card", "macvtap")])
def test_every_driver_keeps_the_contract(vifd: Daemon, network: str, kind: str) -> None:
    outcomes = conforms(vifd, [str(BIN / "vif-sanity")], "--network", network, "--kind", kind)
    assert outcomes["request.unavailable-is-passed-over"] == "passed"


def test_it_keeps_the_contract_with_an_ordinary_user_too(vifd: Daemon) -> None:
    outcomes = conforms(vifd, [sys.executable, "-c", AS_ANOTHER_USER, str(ALICE)])
    assert outcomes["owner.another-user-refused"] == "passed"
