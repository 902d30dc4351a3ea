"""Endpoints that are released when a process ends."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.lifetimes import PID, RETRY_SECONDS, bound, check, ended, gone, leased, settled
from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, ROOT, World, asked, failure_of, released
from vifd.config import PolicyRule, Role
from vifd.endpoints.lifetimes import Clock, Lifetimes
from vifd.endpoints.policy import Policy
from vifd.errors import HostNotReady, IdInUse, NoProcess, NotAllowed, UnknownEndpoint
from vifd.model import Caller, ProcessLifetime, State


async def test_an_endpoint_ends_with_its_process(one: World) -> None:
    one.keep_lifetimes()
    one.processes.start(PID)
    await one.make(bound(1), bound(2), asked(3))
    one.time.advance(0)
    one.processes.end(PID)
    await ended(one)
    await gone(one, 1, 2)
    assert [endpoint.endpoint_id for endpoint in one.registry] == [endpoint_id(3)]


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
            await check(one)

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
