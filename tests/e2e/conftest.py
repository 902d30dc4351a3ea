"""A host for virtual machines: vifd in a network namespace of its own, and hypervisor drivers of ordinary users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.host import hosting
from tests.e2e.hypervisor import Hypervisor
from tests.guest import image, unprivileged
from tests.support.daemon import BLUE, Daemon
from vifclient import Client

FIRST_UID = 20001


@pytest.fixture(scope="session")
def guest_image() -> image.Image:
    return image.build()


@pytest.fixture
def networks() -> str:
    """The networks of vifd's configuration; a module may have others."""
    return BLUE


@pytest.fixture
def host(networks: str) -> Iterator[Daemon]:
    with hosting(networks) as daemon:
        yield daemon


@pytest.fixture
def client(host: Daemon) -> Iterator[Client]:
    """root's client: it sees everybody's endpoints."""
    with Client(host.socket) as client:
        yield client


@pytest.fixture
def make_hypervisor(host: Daemon, guest_image: image.Image) -> Callable[[int], Hypervisor]:
    return lambda uid: Hypervisor(unprivileged.User(uid, uid), Path(host.socket), host.netns, guest_image)


@pytest.fixture
def hypervisor(make_hypervisor: Callable[[int], Hypervisor]) -> Hypervisor:
    return make_hypervisor(FIRST_UID)
