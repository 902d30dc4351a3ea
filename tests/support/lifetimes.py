"""Endpoints that end by themselves, over a kernel in memory: what tests of leases and of processes share."""

from __future__ import annotations

import asyncio

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, ROOT, Watch, World, asked
from vifd.endpoints.mending import Mender
from vifd.model import EndpointRequest, LeaseLifetime, ProcessLifetime

PID = 4242
LEASE = LeaseLifetime(30 * 1_000_000_000)
RETRY_SECONDS = 10


def leased(number: int = 1) -> EndpointRequest:
    """Ask for an endpoint on a lease."""
    return asked(number, lifetime=LEASE)


def bound(number: int = 1, pid: int = PID) -> EndpointRequest:
    """Ask for an endpoint that lives as long as a process."""
    return asked(number, lifetime=ProcessLifetime(pid))


async def gone(one: World, *numbers: int) -> None:
    """Wait until endpoints are gone."""
    wanted = {endpoint_id(number)[-1] for number in numbers}
    watch = Watch(one, ROOT)
    left = {number for _, number, _ in await watch.synced()} & wanted
    while left:
        what, number, _ = await watch.next()
        left -= {number} if what == "REMOVED" else set()
    await watch.close()


async def settled(one: World) -> None:
    """Let everything come that is under way."""
    for _ in range(5):
        await asyncio.sleep(0)
    await one.engine.busy.drain()


async def ended(one: World) -> None:
    """Let the loop hear of ended processes, and what is due come."""
    for _ in range(5):
        await asyncio.sleep(0)
        one.time.advance(0)


async def check(one: World) -> None:
    """Have the first endpoint checked."""
    await Mender(one.journal, one.room, one.registry, one.networks, one.engine.busy).check(ALICE, endpoint_id(1), repair=False)
