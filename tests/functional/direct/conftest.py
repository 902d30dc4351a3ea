"""A vifd with a direct network: its uplink is a veth whose other end sees what arrives there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.asking import release_all
from tests.support.daemon import Daemon, network_namespace, running
from tests.support.macvtaps import NETWORKS, macvtaps, nodes
from tests.support.wires import add_uplink
from vifclient import Client
from vifclient.retry import NO_RETRY


@pytest.fixture(scope="module")
def lan() -> Iterator[Daemon]:
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


@pytest.fixture
def vifd(lan: Daemon) -> Iterator[Daemon]:
    """The module's daemon, for a test: without endpoints and nodes before and after it."""
    yield lan
    print(lan.log()[-5000:])
    with Client(lan.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert macvtaps(lan.netns) == []
    assert nodes(lan) == []


@pytest.fixture
def own() -> Iterator[Daemon]:
    """A daemon of the test's own, to be stopped and started, with an uplink of its own."""
    with network_namespace() as netns:
        add_uplink(netns)
        with running(netns=netns, networks=NETWORKS) as daemon:
            yield daemon
            print(daemon.log()[-5000:])


@pytest.fixture
def own_client(own: Daemon) -> Iterator[Client]:
    with Client(own.socket, retry=NO_RETRY) as client:
        yield client
