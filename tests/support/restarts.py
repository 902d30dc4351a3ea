"""Endpoints over the end of a vifd and the start of the next."""

from __future__ import annotations

from typing import Any

from tests.support.asking import make
from tests.support.daemon import Daemon
from vifclient import Client
from vifclient.messages import Endpoint


def made(vifd: Daemon, count: int, **fields: Any) -> list[Endpoint]:
    """Make endpoints as root."""
    with Client(vifd.socket) as client:
        return [make(client, **fields) for _ in range(count)]


def listed(vifd: Daemon) -> dict[str, Endpoint]:
    """Every endpoint, by id."""
    with Client(vifd.socket) as client:
        return {endpoint.endpoint_id: endpoint for endpoint in client.list_endpoints()}


def restarted(vifd: Daemon) -> dict[str, Endpoint]:
    """Stop vifd, start it again, and give its endpoints."""
    assert vifd.stop() == 0
    vifd.start()
    return listed(vifd)
