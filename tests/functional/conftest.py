"""A vifd in a network namespace of its own. A module's `NETWORKS` is its configuration; each test finds it without endpoints.

A module that is about starts says `WARM = False`: its daemons are started as everybody starts vifd, which takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.guest import unprivileged
from tests.support import features
from tests.support.asking import release_all
from tests.support.daemon import BLUE, Daemon, running, taps
from tests.support.users import User, user
from vifclient import Client
from vifclient.retry import NO_RETRY

ALICE, BOB = 20001, 20002


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this kernel can't show; see tests.support.features."""
    for mark in item.iter_markers("kernel"):
        if reason := features.why_missing(*mark.args):
            pytest.skip(reason)
    for mark in item.iter_markers("kernel_without"):
        if not features.why_missing(*mark.args):
            pytest.skip(f"this kernel has {mark.args[0]}")


@pytest.fixture(scope="session", autouse=True)
def reachable() -> None:
    """A checkout in somebody's home, too, can be read by the users that vifd and its callers are."""
    unprivileged.be_reachable()


@pytest.fixture(scope="module")
def host(request: Any) -> Iterator[Daemon]:
    """The module's daemon."""
    with running(networks=getattr(request.module, "NETWORKS", BLUE), warm=getattr(request.module, "WARM", True)) as daemon:
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()


@pytest.fixture
def vifd(host: Daemon) -> Iterator[Daemon]:
    """The module's daemon, for a test: without endpoints before and after it."""
    yield host
    print(host.log()[-5000:])  # pytest shows it when a test fails
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert taps(host.netns) == []


@pytest.fixture
def own(request: Any) -> Iterator[Daemon]:
    """A daemon of the test's own, to be stopped and started."""
    with running(warm=getattr(request.module, "WARM", True)) as daemon:
        yield daemon
        print(daemon.log()[-5000:])


@pytest.fixture
def own_client(own: Daemon) -> Iterator[Client]:
    """root's client of the test's own daemon. Its calls aren't repeated."""
    with Client(own.socket, retry=NO_RETRY) as client:
        yield client


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    """root's client. Its calls aren't repeated."""
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


@pytest.fixture(scope="session")
def alice() -> Iterator[User]:
    with user(ALICE) as one:
        yield one


@pytest.fixture(scope="session")
def bob() -> Iterator[User]:
    with user(BOB) as one:
        yield one


@pytest.fixture
def as_alice(vifd: Daemon, alice: User) -> Iterator[Client]:
    """An ordinary user's client."""
    with alice.client(vifd) as client:
        yield client


@pytest.fixture
def as_bob(vifd: Daemon, bob: User) -> Iterator[Client]:
    """Another ordinary user's client."""
    with bob.client(vifd) as client:
        yield client
