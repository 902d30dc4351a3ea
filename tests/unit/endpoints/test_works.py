import asyncio

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ROOT, Watch, World, asked, failure_of, released
from vifd.errors import DriverFailed, TryAgain
from vifd.model import Endpoint, State


async def test_the_intent_is_in_the_journal_before_the_kernel_is_touched(one: World) -> None:
    one.room.hold()
    task = asyncio.create_task(one.make())
    await one.room.entered()
    (entry,) = one.recorded().values()
    assert (entry.state, entry.location) == (State.PENDING, None)
    one.room.go_on()
    await task


async def test_a_release_is_in_the_journal_before_the_kernel_is_touched(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    task = asyncio.create_task(one.drop())
    await one.room.entered()
    assert [entry.state for entry in one.recorded().values()] == [State.RELEASING]
    one.room.go_on()
    await task


async def test_the_intent_is_in_the_journal_before_a_network_system_hears_of_it(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[dict[str, Endpoint]] = []
    monkeypatch.setattr(one.noting, "_note", lambda *_: noted.append(one.recorded()))
    await one.make(asked(network="red"))
    assert [(found[endpoint_id(1)].state, found[endpoint_id(1)].location) for found in noted] == [(State.PENDING, None)]


async def test_nothing_is_made_that_cant_be_noted_first(one: World) -> None:
    one.journal.next_generation()
    one.let_journal_write(allowed=False)
    assert isinstance(await failure_of(one.make()), TryAgain)
    assert one.is_empty()
    assert one.room.calls == []


async def test_nothing_is_made_without_a_generation_that_is_noted(one: World) -> None:
    one.let_journal_write(allowed=False)
    assert isinstance(await failure_of(one.make()), TryAgain)
    assert one.is_empty()


async def test_what_cant_be_noted_as_made_is_undone(one: World) -> None:
    one.room.hold()
    task = asyncio.create_task(failure_of(one.make(asked(1), asked(2, network="red"))))
    await one.room.entered()
    one.let_journal_write(allowed=False)
    one.room.go_on()
    assert isinstance(await task, TryAgain)
    assert one.room.devices == {}
    assert len(one.registry) == 0
    assert one.noting.told == [("bind", endpoint_id(2)), ("unbind", endpoint_id(2))]


async def test_what_was_undone_for_the_journals_sake_can_be_requested_again(one: World) -> None:
    one.room.hold()
    task = asyncio.create_task(failure_of(one.make()))
    await one.room.entered()
    one.let_journal_write(allowed=False)
    one.room.go_on()
    await task
    one.let_journal_write(allowed=True)
    (endpoint,) = await one.make()
    assert one.recorded() == {endpoint.endpoint_id: endpoint}


async def test_nothing_is_taken_down_that_cant_be_noted_first(one: World) -> None:
    await one.make()
    one.let_journal_write(allowed=False)
    assert isinstance(await failure_of(one.drop()), TryAgain)
    assert list(one.room.devices) == [endpoint_id(1)]


async def test_a_release_that_couldnt_be_noted_works_when_the_journal_does(one: World) -> None:
    await one.make()
    one.let_journal_write(allowed=False)
    await failure_of(one.drop())
    one.let_journal_write(allowed=True)
    await one.drop()
    assert one.is_empty()


async def test_what_is_gone_but_cant_be_noted_as_gone_is_released_again(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    task = asyncio.create_task(failure_of(one.drop()))
    await one.room.entered()
    one.let_journal_write(allowed=False)
    one.room.go_on()
    assert isinstance(await task, TryAgain)
    one.let_journal_write(allowed=True)
    await one.drop()
    assert one.is_empty()


async def test_the_log_is_moved_while_requests_go_on(one: World) -> None:
    for _ in range(130):
        await one.make(*(asked(number, network="fake") for number in range(1, 5)))
        await one.drop(*map(released, range(1, 5)))
    await one.engine.close()
    assert one.is_empty()


async def test_a_driver_that_raises_over_what_was_made_leaves_nothing_and_fails_nobody_else(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(*_arguments: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(one.noting, "locate", locate)
    one.room.hold()
    first = asyncio.create_task(one.make(asked(1)))
    await one.room.entered()
    # These two wait for the first, and so make one batch.
    watch = Watch(one, ROOT)
    await watch.synced()
    others = asyncio.gather(one.make(asked(2, "red")), one.make(asked(3)), return_exceptions=True)
    assert [await watch.next() for _ in range(2)] == [("ADDED", "2", "pending"), ("ADDED", "3", "pending")]
    await watch.close()
    one.room.go_on()
    await first
    failure, (third,) = await others
    assert isinstance(failure, DriverFailed)
    assert third.state is State.READY
    assert set(one.room.devices) == set(one.recorded()) == {endpoint_id(1), endpoint_id(3)}
