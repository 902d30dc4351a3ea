from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BOOT, ROOT, Watch, World, asked, failure_of, released, world
from vifd.config import PolicyRule, Role
from vifd.endpoints.activation import Activation
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.lifetimes import Clock, Lifetimes
from vifd.endpoints.mending import Mender
from vifd.endpoints.policy import Policy
from vifd.errors import HostNotReady, IdInUse, KernelRefused, NoProcess, NotAllowed, UnknownEndpoint, WrongState
from vifd.model import Caller, EndpointRequest, Filter, LeaseLifetime, Port, ProcessLifetime, State

PID = 4242
LEASE = LeaseLifetime(30 * 1_000_000_000)
RETRY_SECONDS = 10


@pytest.fixture
def one(tmp_path: Path) -> Iterator[World]:
    """A world whose processes end with it."""
    with world(tmp_path / "journal.db") as made:
        made.journal.set_boot_id(BOOT)
        yield made
        made.processes.close()


def leased(number: int = 1) -> EndpointRequest:
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


# --- leases


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


async def _check(one: World) -> None:
    await Mender(one.journal, one.room, one.registry, one.networks, one.engine.busy).check(ALICE, endpoint_id(1), repair=False)


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
    "CheckEndpoint": _check,
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


# --- processes


async def test_an_endpoint_ends_with_its_process(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound(1), bound(2), asked(3))
    one.time.advance(0)
    one.processes.end(PID)
    await ended(one)
    await gone(one, 1, 2)
    assert [endpoint.endpoint_id for endpoint in one.registry] == [endpoint_id(3)]


async def ended(one: World) -> None:
    """Let the loop hear of ended processes, and what is due come."""
    for _ in range(5):
        await asyncio.sleep(0)
        one.time.advance(0)


async def test_a_process_that_ended_before_it_was_watched_is_noticed(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound())
    one.processes.end(PID)
    one.time.advance(0)
    await gone(one, 1)


async def test_a_process_that_ends_while_its_endpoint_is_made_takes_it_along(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    one.room.hold()
    making = asyncio.create_task(one.make(bound()))
    await one.room.entered()
    one.time.advance(0)
    one.processes.end(PID)
    await ended(one)
    one.room.go_on()
    (endpoint,) = await making
    assert endpoint.state is State.READY
    await ended(one)
    await gone(one, 1)
    assert one.is_empty()


async def test_no_crowd_of_calls_keeps_an_endpoint_whose_process_has_ended(one: World) -> None:
    async def ask() -> None:
        for _ in range(100):
            await _check(one)

    Lifetimes(one.registry, one.engine, one.processes, Clock.of_loop())
    one.processes.start(PID)
    await one.make(bound())
    await asyncio.sleep(0)
    one.processes.end(PID)
    failures = await asyncio.gather(*(failure_of(ask()) for _ in range(3)))
    assert {type(failure) for failure in failures} == {UnknownEndpoint}


async def test_who_has_the_pid_later_keeps_nothing_alive(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound())
    one.processes.end(PID)
    one.processes.start(PID)
    one.time.advance(0)
    await gone(one, 1)


async def test_two_lives_of_a_pid_are_two_processes(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound(1))
    one.time.advance(0)
    one.processes.end(PID)
    one.processes.start(PID)
    await one.make(bound(2))
    await ended(one)
    await gone(one, 1)
    assert [endpoint.endpoint_id for endpoint in one.registry] == [endpoint_id(2)]


async def test_the_same_request_of_the_next_process_gets_a_new_life(one: World) -> None:
    """Pid 0 is the caller: the requests are equal, the processes aren't. Nobody has noticed yet that the first ended."""
    first_process = one.processes.start(PID)
    caller = Caller(1000, 1000, frozenset(), PID, first_process.inode)
    (first,) = await one.make(bound(1, 0), caller=caller)
    one.processes.end(PID)
    second_process = one.processes.start(PID + 1)
    caller = Caller(1000, 1000, frozenset(), PID + 1, second_process.inode)
    (second,) = await one.make(bound(1, 0), caller=caller)
    assert (first.lifetime, second.lifetime) == (first_process, second_process)
    assert second.generation > first.generation


async def test_the_same_request_of_another_living_process_is_another_spec(one: World) -> None:
    callers = [Caller(1000, 1000, frozenset(), pid, one.processes.start(pid).inode) for pid in (PID, PID + 1)]
    await one.make(bound(1, 0), caller=callers[0])
    assert isinstance(await failure_of(one.make(bound(1, 0), caller=callers[1])), IdInUse)


async def test_the_same_request_again_gives_the_same_endpoint(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    (endpoint,) = await one.make(bound())
    assert await one.make(bound()) == [endpoint]


async def test_a_caller_that_vifd_cant_see_is_told_so(one: World) -> None:
    error = await failure_of(one.make(bound(pid=0), caller=Caller(1000, 1000, frozenset(), 0, 77)))
    assert isinstance(error, HostNotReady)
    assert "another pid namespace" in str(error)
    assert one.is_empty()


async def test_a_caller_whose_process_ended_and_whose_pid_is_anothers_is_refused(one: World) -> None:
    process = one.processes.start(PID)
    one.processes.end(PID)
    one.processes.start(PID)
    caller = Caller(1000, 1000, frozenset(), PID, process.inode)
    assert isinstance(await failure_of(one.make(bound(pid=0), caller=caller)), NoProcess)
    assert one.is_empty()


async def test_where_the_kernel_tells_no_inode_the_callers_pid_is_checked(one: World) -> None:
    one.processes.start(PID, uid=BOB.uid)
    one.processes.start(PID + 1)
    assert isinstance(await failure_of(one.make(bound(pid=0), caller=Caller(1000, 1000, frozenset(), PID))), NotAllowed)
    (endpoint,) = await one.make(bound(pid=0), caller=Caller(1000, 1000, frozenset(), PID + 1))
    assert endpoint.lifetime == one.processes.identify(PID + 1)


async def test_a_process_that_isnt_there_is_refused(one: World) -> None:
    assert isinstance(await failure_of(one.make(bound())), NoProcess)
    assert one.is_empty()


async def test_a_batch_with_one_such_process_makes_nothing(one: World) -> None:
    one.processes.start(PID)
    assert isinstance(await failure_of(one.make(bound(1), bound(2, PID + 1))), NoProcess)
    assert one.is_empty()


async def test_a_process_of_somebody_else_is_refused(one: World) -> None:
    one.processes.start(PID, uid=BOB.uid)
    error = await failure_of(one.make(bound()))
    assert isinstance(error, NotAllowed)
    assert f"process {PID} isn't uid {ALICE.uid}'s" in str(error)
    assert str(BOB.uid) not in str(error)
    assert one.is_empty()


@pytest.mark.parametrize("caller", [ROOT, BOB])
async def test_who_may_release_somebodys_endpoints_may_name_its_process(one: World, caller: Caller) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=BOB.uid, role=Role.DELEGATE)]))
    one.processes.start(PID, uid=ALICE.uid)
    (endpoint,) = await one.make(bound(), caller=caller)
    assert endpoint.lifetime == one.processes.identify(PID)


async def test_where_processes_cant_be_told_apart_the_request_fails_with_the_reason(one: World) -> None:
    one.processes.start(PID)
    one.processes.hidden = True
    assert isinstance(await failure_of(one.make(bound())), HostNotReady)
    assert one.is_empty()


async def test_a_process_that_cant_be_watched_now_is_tried_again_and_nothing_is_released(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound())
    one.processes.hidden = True
    one.time.advance(0)
    one.processes.hidden = False
    await settled(one)
    assert len(one.registry) == 1
    one.time.advance(RETRY_SECONDS)
    one.processes.end(PID)
    await ended(one)
    await gone(one, 1)


async def test_a_bug_that_one_endpoint_meets_makes_none_other_stay(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_process: ProcessLifetime) -> None:
        raise ZeroDivisionError

    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(leased(1))
    await one.make(bound(2))
    monkeypatch.setattr(one.processes, "open", fail)
    with pytest.raises(ZeroDivisionError):
        one.time.advance(0)
    one.time.advance(30)
    await gone(one, 1)


async def test_a_process_that_outlives_its_endpoints_is_watched_no_longer(one: World) -> None:
    lifetimes = one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound(1), bound(2))
    one.time.advance(0)
    await one.drop()
    assert len(lifetimes._watched) == 1
    await one.drop(released(2))
    assert lifetimes._watched == {}
    one.processes.end(PID)
    await ended(one)


async def test_200_processes_that_end_at_once_are_few_batches(one: World) -> None:
    one.keep_lifetimes()
    for number in range(1, 201):
        one.processes.start(PID + number)
        await one.make(bound(number, PID + number))
    one.time.advance(0)
    calls = len(one.room.calls)
    for number in range(1, 201):
        one.processes.end(PID + number)
    while len(one.registry):
        await ended(one)
    assert one.is_empty()
    assert len(one.room.calls) - calls <= 8


# --- over a restart


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
