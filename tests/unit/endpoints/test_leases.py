"""Endpoints that are released when nobody has called for them for a time."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lifetimes import LEASE, PID, RETRY_SECONDS, bound, check, gone, leased, settled
from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, World, asked, failure_of, world
from vifd.config import PolicyRule, Role
from vifd.endpoints.activation import Activation
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.policy import Policy
from vifd.errors import IdInUse, KernelRefused, NotAllowed, WrongState
from vifd.model import Filter, LeaseLifetime, Port, State


async def test_a_lease_that_nobody_renews_is_over_and_no_earlier(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.time.advance(29.9)
    await settled(one)
    assert [endpoint.state for endpoint in one.registry] == [State.READY]
    one.time.advance(0.1)
    await gone(one, 1)
    assert one.is_empty()


async def test_an_endpoint_says_how_long_it_lives_and_the_journal_knows(one: World) -> None:
    process = one.processes.start(PID)
    endpoints = await one.make(asked(1), leased(2), bound(3))
    assert [endpoint.lifetime for endpoint in endpoints] == [None, LEASE, process]
    assert [one.recorded()[endpoint_id(number)].lifetime for number in (1, 2, 3)] == [None, LEASE, process]


async def test_without_a_lifetime_no_time_is_too_long(one: World) -> None:
    one.keep_lifetimes()
    await one.make()
    assert one.time.timers == 0


async def _get(one: World) -> None:
    one.views.get(ALICE, endpoint_id(1))


async def _update(one: World) -> None:
    changes = Changes(one.journal, one.room, one.registry, one.networks, one.engine)
    await changes.update(ALICE, Change(endpoint_id(1), Port(tx_queue_length=5), ["tx_queue_length"]))


async def _activate(one: World) -> None:
    activation = Activation(one.journal, one.room, one.registry, one.networks, one.engine.busy)
    await failure_of(activation.activate(ALICE, endpoint_id(1)))  # nobody has it open; the caller lives all the same


async def _open(one: World) -> None:
    await failure_of(one.queues.open(ALICE, endpoint_id(1), 99))  # it has fewer; the caller lives all the same


RENEWALS: dict[str, Callable[[World], Awaitable[object]]] = {
    "RequestEndpoint": lambda one: one.make(leased()),
    "GetEndpoint": _get,
    "UpdateEndpoint": _update,
    "ActivateEndpoint": _activate,
    "CheckEndpoint": check,
    "AcquireFds": _open,
}


@pytest.mark.parametrize("call", RENEWALS)
async def test_each_call_on_an_endpoint_renews_its_lease(one: World, call: str) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    for _ in range(3):
        one.time.advance(20)
        await RENEWALS[call](one)
    one.time.advance(29.9)
    await settled(one)
    assert len(one.registry) == 1
    one.time.advance(0.1)
    await gone(one, 1)


async def test_neither_a_list_nor_a_readers_look_nor_a_refused_call_renews_a_lease(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid), PolicyRule(uid=BOB.uid, role=Role.READ)]))
    one.keep_lifetimes()
    await one.make(leased())
    one.time.advance(20)
    one.views.get(BOB, endpoint_id(1))
    assert isinstance(await failure_of(one.drop(caller=BOB)), NotAllowed)
    one.views.page(ALICE, Filter(), after="", count=9)
    one.time.advance(10)
    await gone(one, 1)


async def test_another_lease_is_another_spec_though_the_caller_is_the_same(one: World) -> None:
    await one.make(leased())
    error = await failure_of(one.make(asked(lifetime=LeaseLifetime(31 * 1_000_000_000))))
    assert isinstance(error, IdInUse)


async def test_what_is_released_before_its_lease_is_over_isnt_looked_at_in_its_next_life(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    await one.drop()
    one.time.advance(20)
    (second,) = await one.make(leased())
    one.time.advance(10)
    await settled(one)
    assert list(one.registry) == [second]
    one.time.advance(20)
    await gone(one, 1)


async def test_time_in_which_vifd_was_held_up_doesnt_count(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.time.stall(3600)
    await settled(one)
    assert len(one.registry) == 1
    one.time.advance(29.9)
    await settled(one)
    assert len(one.registry) == 1
    one.time.advance(0.1)
    await gone(one, 1)


async def test_a_lease_that_runs_out_while_something_happens_is_looked_at_after_that(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    await one.room.entered()
    one.room.hold()
    update = asyncio.create_task(_update(one))
    await one.room.entered()
    one.time.advance(30)
    assert [endpoint.state for endpoint in one.registry] == [State.READY]
    one.room.go_on()
    await update
    await asyncio.sleep(0)
    one.time.advance(0)
    await gone(one, 1)


async def test_a_lease_begins_when_its_endpoint_is_made(one: World) -> None:
    one.keep_lifetimes()
    one.room.hold()
    making = asyncio.create_task(one.make(leased()))
    await one.room.entered()
    one.time.advance(31)
    one.room.go_on()
    await making
    await settled(one)
    one.time.advance(29.9)
    await settled(one)
    assert len(one.registry) == 1
    one.time.advance(0.1)
    await gone(one, 1)


async def test_a_renewal_that_comes_while_something_happens_counts(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    await one.room.entered()
    one.room.hold()
    update = asyncio.create_task(_update(one))
    await one.room.entered()
    one.time.advance(30)
    await _get(one)
    one.room.go_on()
    await update
    one.time.advance(29.9)
    await settled(one)
    assert len(one.registry) == 1


async def test_a_request_that_comes_as_the_lease_ends_gets_a_new_life(one: World) -> None:
    one.keep_lifetimes()
    (first,) = await one.make(leased())
    one.time.advance(30)
    (second,) = await one.make(leased())
    assert second.generation > first.generation
    assert list(one.registry) == [second]


async def test_a_release_that_comes_as_the_lease_ends_is_fine(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.time.advance(30)
    await one.drop()
    assert one.is_empty()


async def test_of_many_that_end_together_only_what_the_kernel_keeps_is_tried_again(one: World) -> None:
    one.keep_lifetimes()
    for start in (1, 101):
        await one.make(*map(leased, range(start, start + 100)))
    one.room.keep(endpoint_id(7))
    one.time.advance(30)
    await settled(one)
    assert [endpoint.endpoint_id for endpoint in one.registry] == [endpoint_id(7)]
    one.room.let_go(endpoint_id(7))
    one.room.calls.clear()
    one.time.advance(RETRY_SECONDS)
    await gone(one, 7)
    assert one.room.calls == [("revert", 1)]


async def test_leases_of_what_is_gone_are_forgotten_however_long_they_were(one: World) -> None:
    lifetimes = one.keep_lifetimes()
    for _ in range(200):
        await one.make(asked(lifetime=LeaseLifetime(LEASE.ttl_ns * 1_000_000)))
        await one.drop()
    assert len(lifetimes._agenda) < 100
    await one.make(leased())
    one.time.advance(30)
    await gone(one, 1)


async def test_a_bug_in_a_release_is_told_and_tried_again(one: World, caplog: pytest.LogCaptureFixture) -> None:
    one.keep_lifetimes()
    await one.make(asked(network="red", lifetime=LEASE))
    one.noting.refuses["unbind", endpoint_id(1)] = ZeroDivisionError("a driver's bug")
    one.time.advance(30)
    await settled(one)
    assert "Traceback" in caplog.text
    one.noting.refuses.clear()
    one.time.advance(RETRY_SECONDS)
    await gone(one, 1)


async def test_what_the_kernel_keeps_is_tried_again(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.room.keep(endpoint_id(1))
    one.time.advance(30)
    await settled(one)
    assert [endpoint.state for endpoint in one.registry] == [State.RELEASING]
    one.room.let_go(endpoint_id(1))
    one.time.advance(RETRY_SECONDS)
    await gone(one, 1)
    assert one.is_empty()


async def test_no_call_keeps_what_is_half_released(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.room.keep(endpoint_id(1))
    one.time.advance(30)
    await settled(one)
    one.room.let_go(endpoint_id(1))
    one.views.get(ALICE, endpoint_id(1))
    assert isinstance(await failure_of(one.make(leased())), WrongState)
    one.time.advance(RETRY_SECONDS)
    await gone(one, 1)


async def test_a_lost_release_of_the_callers_own_is_finished_when_the_lease_ends(one: World) -> None:
    one.keep_lifetimes()
    await one.make(leased())
    one.room.keep(endpoint_id(1))
    assert isinstance(await failure_of(one.drop()), KernelRefused)
    one.room.let_go(endpoint_id(1))
    one.time.advance(30)
    await gone(one, 1)


async def test_a_vifd_that_stops_leaves_leases_to_the_next(one: World) -> None:
    lifetimes = one.keep_lifetimes()
    await one.make(leased(1), leased(2))
    one.engine.refuse_work()
    one.time.advance(30)
    lifetimes.close()
    one.time.advance(3600)
    await settled(one)
    assert len(one.registry) == 2


async def test_many_leases_take_one_timer_and_end_together(one: World) -> None:
    one.keep_lifetimes()
    for start in range(1, 1001, 50):
        await one.make(*map(leased, range(start, start + 50)))
    assert one.time.timers == 1
    one.time.advance(30)
    await settled(one)
    assert one.is_empty()
    assert max(plans for call, plans in one.room.calls if call == "revert") <= 128
    assert sum(call == "revert" for call, _ in one.room.calls) <= 10


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["wait", "get", "request"]), st.integers(0, 45)), max_size=12))
def test_a_lease_lives_exactly_as_long_as_somebody_calls(steps: list[tuple[str, int]]) -> None:
    async def follow(one: World) -> None:
        one.keep_lifetimes()
        await one.make(leased())
        end = one.time.now() + 30
        for what, seconds in steps:
            one.time.advance(seconds)
            await settled(one)
            assert one.is_empty() if end <= one.time.now() else len(one.registry) == 1
            if what == "request" or (what == "get" and len(one.registry)):
                await RENEWALS["RequestEndpoint" if what == "request" else "GetEndpoint"](one)
                end = one.time.now() + 30

    with tempfile.TemporaryDirectory() as directory, world(Path(directory) / "journal.db") as one:
        asyncio.run(follow(one))
