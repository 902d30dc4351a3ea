"""An empty unary call through vifd's gate: what the transport alone costs a Python client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bench.daemon import Daemon
from tests.bench.measure import Samples, timed


@dataclass(frozen=True)
class EmptyCall:
    """Asks for the daemon's health."""

    stub: health_pb2_grpc.HealthStub

    name = "empty call"

    def round(self, count: int) -> dict[str, Samples]:
        """Call `count` times, one after the other."""
        called: Samples = []
        for _ in range(count):
            timed(called, self.stub.Check, health_pb2.HealthCheckRequest())
        return {"call": called}


@contextmanager
def empty_call(daemon: Daemon) -> Iterator[EmptyCall]:
    """Open a channel to the daemon's public socket."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        yield EmptyCall(health_pb2_grpc.HealthStub(channel))
