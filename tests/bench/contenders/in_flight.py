"""vifd with 64 calls in flight, from one asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
import uvloop

from tests.bench.contenders.vifd import make_request
from tests.bench.daemon import Daemon
from tests.bench.measure import Samples
from vif.v1 import endpoint_service_pb2 as api
from vif.v1.endpoint_service_pb2_grpc import EndpointServiceStub

IN_FLIGHT = 64
T = TypeVar("T")


def in_flight_round(daemon: Daemon, count: int) -> dict[str, Samples]:
    """Make `count` endpoints, then release them: one sample each, the time of the whole by `count`."""
    return uvloop.run(_round(daemon, count))


async def _round(daemon: Daemon, count: int) -> dict[str, Samples]:
    requests = [make_request() for _ in range(count)]
    releases = [api.ReleaseEndpointRequest(endpoint_id=request.endpoint_id) for request in requests]
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = EndpointServiceStub(channel)
        await channel.channel_ready()
        made = await _call_all(stub.RequestEndpoint, requests)
        deleted = await _call_all(stub.ReleaseEndpoint, releases)
    return {f"make, {IN_FLIGHT} in flight": [made / count], f"delete, {IN_FLIGHT} in flight": [deleted / count]}


async def _call_all(call: Callable[[T], Awaitable[object]], requests: Iterable[T]) -> float:
    """Keep IN_FLIGHT calls going until all are answered; give the milliseconds it took."""
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            await call(request)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return (time.perf_counter() - start) * 1000
