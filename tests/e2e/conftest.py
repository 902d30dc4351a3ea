"""A host for virtual machines: vifd in a network namespace of its own, and hypervisor drivers of ordinary users."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from vifclient import Client

from tests.e2e.host import Host, running_host
from tests.e2e.hypervisor import Hypervisor
from tests.guest import image
from tests.guest.unprivileged import User

FIRST_UID = 20001


@pytest.fixture(scope="session")
def guest_image() -> image.Image:
    return image.build()


@pytest.fixture
def host() -> Iterator[Host]:
    with running_host() as host:
        yield host


@pytest.fixture
def client(host: Host) -> Iterator[Client]:
    """root's client: it sees everybody's endpoints."""
    with Client(str(host.socket)) as client:
        yield client


@pytest.fixture
def make_hypervisor(host: Host, guest_image: image.Image) -> Callable[[int], Hypervisor]:
    return lambda uid: Hypervisor(User(uid, uid), host.socket, host.namespace, guest_image)


@pytest.fixture
def hypervisor(make_hypervisor: Callable[[int], Hypervisor]) -> Hypervisor:
    return make_hypervisor(FIRST_UID)
