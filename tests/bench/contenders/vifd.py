"""vifd through its Python client: one call after the other, and batches of 64."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import grpc

from tests.bench.daemon import NETWORK, Daemon
from tests.bench.measure import Samples, timed
from vif.v1 import endpoint_service_pb2 as api
from vif.v1.endpoint_service_pb2_grpc import EndpointServiceStub

BATCH_SIZE = 64


def make_request() -> api.RequestEndpointRequest:
    """Ask for a tap with a new id."""
    acceptable = [api.EndpointPreference(tap=api.TapPreference())]
    return api.RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network=NETWORK, acceptable=acceptable)


@dataclass(frozen=True)
class OneClient:
    """Requests and releases, one after the other."""

    stub: EndpointServiceStub

    name = "vifd"

    def round(self, count: int) -> dict[str, Samples]:
        """Request `count` endpoints, then release them."""
        made: Samples = []
        deleted: Samples = []
        requests = [make_request() for _ in range(count)]
        for request in requests:
            timed(made, self.stub.RequestEndpoint, request)
        for request in requests:
            timed(deleted, self.stub.ReleaseEndpoint, api.ReleaseEndpointRequest(endpoint_id=request.endpoint_id))
        return {"make": made, "delete": deleted}


@contextmanager
def one_client(daemon: Daemon) -> Iterator[OneClient]:
    """Connect a client."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        yield OneClient(EndpointServiceStub(channel))


class Batches:
    """Makes and releases endpoints in batches."""

    def __init__(self, daemon: Daemon) -> None:
        self._channel = grpc.insecure_channel(f"unix:{daemon.socket}")
        self._stub = EndpointServiceStub(self._channel)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def request(self, count: int) -> list[str]:
        """Make a batch and give its ids."""
        requests = [make_request() for _ in range(count)]
        self._stub.BatchRequestEndpoints(api.BatchRequestEndpointsRequest(requests=requests))
        return [request.endpoint_id for request in requests]

    def release(self, ids: Iterable[str]) -> None:
        """Release a batch."""
        requests = [api.ReleaseEndpointRequest(endpoint_id=id_) for id_ in ids]
        self._stub.BatchReleaseEndpoints(api.BatchReleaseEndpointsRequest(requests=requests))

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
