"""Any gRPC client will do: a session of an ordinary user in the socket's group, with reflection alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import unprivileged
from tests.support.asking import new_id
from tests.support.daemon import BIN, Daemon, running, taps

MEMBER_UID = 20401


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    """A vifd whose sockets admit root and one group."""
    with running(daemon='socket_mode = "0660"') as daemon:
        yield daemon


def grpcurl(gid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    user = unprivileged.User(MEMBER_UID, gid)
    argv = [str(BIN / "grpcurl"), "-plaintext", "-unix", *arguments]
    return subprocess.run(unprivileged.command(argv, user=user), capture_output=True, text=True, timeout=60, check=False)


def call(vifd: Daemon, method: str, **request: Any) -> Any:
    gid = Path(vifd.socket).stat().st_gid
    done = grpcurl(gid, "-d", json.dumps(request), vifd.socket, f"vif.v1.{method}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_member_of_the_sockets_group_requests_and_releases_a_tap_of_its_own(guarded: Daemon) -> None:
    endpoint_id = new_id()
    answer = call(
        guarded, "EndpointService/RequestEndpoint", endpoint_id=endpoint_id, network="blue", acceptable=[{"tap": {"queues": 2}}]
    )
    (tap,) = taps(guarded.netns)
    assert tap["ifname"] == answer["endpoint"]["tap"]["ifname"]
    assert (int(tap["linkinfo"]["info_data"]["user"]), tap["master"]) == (MEMBER_UID, "br-blue")
    assert call(guarded, "EndpointService/ListEndpoints")["endpoints"][0]["endpoint_id"] == endpoint_id
    assert call(guarded, "EndpointService/ReleaseEndpoint", endpoint_id=endpoint_id) == {}
    assert taps(guarded.netns) == []


def test_reflection_describes_the_services(guarded: Daemon) -> None:
    done = grpcurl(Path(guarded.socket).stat().st_gid, guarded.socket, "list")
    assert "vif.v1.EndpointService" in done.stdout.split()


def test_who_is_not_in_the_group_gets_nowhere(guarded: Daemon) -> None:
    done = grpcurl(MEMBER_UID, guarded.socket, "list")
    assert done.returncode != 0
    assert "permission denied" in done.stderr
