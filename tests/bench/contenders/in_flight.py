"""vifd with 64 calls in flight, from one asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from tests.bench.contenders.vifd import make_request
from tests.bench.daemon import Daemon
from tests.bench.measure import Samples
from vifclient.aio import Client

IN_FLIGHT = 64
T = TypeVar("T")


@dataclass(frozen=True)
class InFlight:
    """Requests and releases, 64 at a time."""

    daemon: Daemon

    name = "vifd"

    def round(self, count: int) -> dict[str, Samples]:
        """Make `count` endpoints, then release them: one sample each, the time of the whole by `count`."""
        made, deleted = uvloop.run(self._round(count))
        return {f"make, {IN_FLIGHT} in flight": [made / count], f"delete, {IN_FLIGHT} in flight": [deleted / count]}

    async def _round(self, count: int) -> tuple[float, float]:
        requests = [make_request() for _ in range(count)]
        async with Client(self.daemon.socket) as client:
            await client.get_host_info()  # to be connected
            made = await _call_all(client.request_endpoint, requests)
            deleted = await _call_all(client.release_endpoint, [request.endpoint_id for request in requests])
        return made, deleted


async def _call_all(call: Callable[[T], Coroutine[Any, Any, object]], arguments: Iterable[T]) -> float:
    """Keep IN_FLIGHT calls going until all are answered; give the milliseconds it took."""
    waiting = iter(arguments)

    async def work() -> None:
        for argument in waiting:
            await call(argument)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return (time.perf_counter() - start) * 1000
