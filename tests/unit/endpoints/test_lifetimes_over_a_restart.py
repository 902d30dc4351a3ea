"""What the next vifd does of endpoints that end by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lifetimes import LEASE, PID, bound, ended, gone, leased, settled
from tests.support.messages import endpoint_id
from tests.support.worlds import BOOT, World, asked, world
from vifd.model import State


@pytest.fixture
def one(one: World) -> World:
    """A world whose journal is of the present boot."""
    one.journal.set_boot_id(BOOT)
    return one


@pytest.fixture
def next_start(one: World, tmp_path: Path) -> Iterator[World]:
    """The vifd that starts after the first has died: the same journal, kernel and processes."""
    with world(tmp_path / "journal.db", one.room) as second:
        second.processes = one.processes
        second.engine._processes = one.processes
        yield second


async def test_a_lease_begins_anew_with_vifd(one: World, next_start: World) -> None:
    await one.make(leased())
    one.crash()
    next_start.time.advance(3600)
    next_start.keep_lifetimes()
    (endpoint,) = await next_start.recover()
    assert endpoint.lifetime == LEASE
    next_start.time.advance(29.9)
    await settled(next_start)
    assert len(next_start.registry) == 1
    next_start.time.advance(0.1)
    await gone(next_start, 1)


async def test_a_process_is_watched_on_by_the_next_vifd(one: World, next_start: World) -> None:
    one.processes.start(PID)
    await one.make(bound())
    one.crash()
    next_start.keep_lifetimes()
    assert len(await next_start.recover()) == 1
    next_start.time.advance(0)
    next_start.processes.end(PID)
    await ended(next_start)
    await gone(next_start, 1)
    assert next_start.is_empty()


@pytest.mark.parametrize("reused", [False, True])
async def test_a_process_that_ended_meanwhile_is_noticed_by_the_recovery(one: World, next_start: World, reused: bool) -> None:
    one.processes.start(PID)
    await one.make(bound(1), asked(2))
    one.crash()
    one.processes.end(PID)
    if reused:
        one.processes.start(PID)
    assert [endpoint.endpoint_id for endpoint in await next_start.recover()] == [endpoint_id(2)]
    assert list(next_start.room.devices) == [endpoint_id(2)]
    assert list(next_start.recorded()) == [endpoint_id(2)]


async def test_what_the_recovery_cant_take_down_is_tried_again(one: World, next_start: World) -> None:
    one.processes.start(PID)
    await one.make(bound())
    one.crash()
    one.processes.end(PID)
    next_start.room.keep(endpoint_id(1))
    next_start.keep_lifetimes()
    assert [endpoint.state for endpoint in await next_start.recover()] == [State.RELEASING]
    next_start.room.let_go(endpoint_id(1))
    next_start.time.advance(0)
    await gone(next_start, 1)
    assert next_start.is_empty()


async def test_the_recovery_keeps_what_it_cant_tell_of(one: World, next_start: World) -> None:
    one.processes.start(PID)
    await one.make(bound())
    one.crash()
    one.processes.hidden = True
    assert [endpoint.state for endpoint in await next_start.recover()] == [State.READY]
