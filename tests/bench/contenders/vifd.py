"""vifd through its Python client: one call after the other, and batches of 64."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.daemon import NETWORK, Daemon
from tests.bench.measure import Samples, timed
from vifclient import Client
from vifclient.messages import EndpointPreference, ReleaseEndpointRequest, RequestEndpointRequest, TapPreference

BATCH_SIZE = 64


def make_request() -> RequestEndpointRequest:
    """Ask for a tap with a new id."""
    acceptable = [EndpointPreference(tap=TapPreference())]
    return RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network=NETWORK, acceptable=acceptable)


@dataclass(frozen=True)
class OneByOne:
    """Requests and releases, one after the other."""

    client: Client

    name = "vifd"

    def round(self, count: int) -> dict[str, Samples]:
        """Request `count` endpoints, then release them."""
        made: Samples = []
        deleted: Samples = []
        requests = [make_request() for _ in range(count)]
        for request in requests:
            timed(made, self.client.request_endpoint, request)
        for request in requests:
            timed(deleted, self.client.release_endpoint, request.endpoint_id)
        return {"make": made, "delete": deleted}


@dataclass(frozen=True)
class Batches:
    """Requests and releases in batches."""

    client: Client

    name = "vifd"

    def request(self, count: int) -> list[str]:
        """Make a batch and give its ids."""
        requests = [make_request() for _ in range(count)]
        self.client.batch_request_endpoints(requests)
        return [request.endpoint_id for request in requests]

    def release(self, endpoint_ids: list[str]) -> None:
        """Release a batch."""
        self.client.batch_release_endpoints(ReleaseEndpointRequest(endpoint_id=id_) for id_ in endpoint_ids)

    def round(self, count: int) -> dict[str, Samples]:
        """Make `count` endpoints in batches, then release them; each sample is what one endpoint of its batch cost."""
        made: Samples = []
        deleted: Samples = []
        batches = [timed(made, self.request, BATCH_SIZE) for _ in range(0, count, BATCH_SIZE)]
        for batch in batches:
            timed(deleted, self.release, batch)
        return {
            f"make, batch of {BATCH_SIZE}": [cost / BATCH_SIZE for cost in made],
            f"delete, batch of {BATCH_SIZE}": [cost / BATCH_SIZE for cost in deleted],
        }


@contextmanager
def one_by_one(daemon: Daemon) -> Iterator[OneByOne]:
    """Connect a client."""
    with Client(daemon.socket) as client:
        yield OneByOne(client)


@contextmanager
def batches(daemon: Daemon) -> Iterator[Batches]:
    """Connect a client."""
    with Client(daemon.socket) as client:
        yield Batches(client)
