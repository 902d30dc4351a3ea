import asyncio

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, TAP, World, asked, failure_of, released
from vifd.errors import IdInUse, KernelRefused, TryAgain
from vifd.kernel.room import HelperLostError
from vifd.model import State, TapPreference


async def test_identical_requests_at_once_share_one_piece_of_work(one: World) -> None:
    one.room.hold()
    first, second = asyncio.create_task(one.make()), asyncio.create_task(one.make())
    await one.room.entered()
    one.room.go_on()
    assert await first == await second
    assert one.room.calls == [("apply", 1)]


async def test_identical_requests_at_once_share_the_failure(one: World) -> None:
    one.room.hold()
    one.room.fail_operation(1)
    first, second = asyncio.create_task(failure_of(one.make())), asyncio.create_task(failure_of(one.make()))
    await one.room.entered()
    one.room.go_on()
    assert await first is await second
    assert one.room.calls == [("apply", 1)]


async def test_a_request_with_another_spec_is_refused_while_the_first_is_made(one: World) -> None:
    one.room.hold()
    first = asyncio.create_task(one.make())
    await one.room.entered()
    assert isinstance(await failure_of(one.make(asked(acceptable=[TapPreference(2)]))), IdInUse)
    one.room.go_on()
    await first


async def test_a_request_of_another_owner_is_refused_while_the_first_is_made(one: World) -> None:
    one.room.hold()
    first = asyncio.create_task(one.make())
    await one.room.entered()
    assert isinstance(await failure_of(one.make(asked(uid=BOB.uid), caller=BOB)), IdInUse)
    one.room.go_on()
    await first


async def test_requests_that_come_while_one_is_made_are_made_together(one: World) -> None:
    one.room.hold()
    tasks = [asyncio.create_task(one.make(asked(number))) for number in range(1, 6)]
    await one.room.entered()
    one.room.go_on()
    await asyncio.gather(*tasks)
    assert one.room.calls == [("apply", 1), ("apply", 4)]


async def test_what_fails_in_a_batch_takes_no_other_with_it(one: World) -> None:
    one.room.hold()
    tasks = [asyncio.create_task(one.make(asked(number))) for number in (1, 2, 3)]
    await one.room.entered()
    one.room.fail_operation(5)  # of the second, as the first has three
    one.room.go_on()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, KernelRefused) for result in results] == [False, True, False]
    assert sorted(one.room.devices) == sorted(one.recorded()) == [endpoint_id(1), endpoint_id(3)]


async def test_work_goes_on_when_its_caller_leaves(one: World) -> None:
    one.room.hold()
    task = asyncio.create_task(one.make())
    await one.room.entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.room.go_on()
    (endpoint,) = await one.make()
    assert endpoint.state is State.READY
    assert one.room.calls == [("apply", 1)]


async def test_a_failure_whose_caller_left_is_nobodys_error(one: World) -> None:
    one.room.hold()
    one.room.fail_operation(1)
    task = asyncio.create_task(one.make())
    await one.room.entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.room.go_on()
    await one.engine.close()
    assert one.is_empty()


async def test_a_caller_that_leaves_takes_none_of_those_with_it_that_wait_for_the_same(one: World) -> None:
    one.room.hold()
    first, second = asyncio.create_task(one.make()), asyncio.create_task(one.make())
    await one.room.entered()
    first.cancel()
    one.room.go_on()
    (endpoint,) = await second
    assert endpoint.state is State.READY


async def test_a_release_goes_on_when_its_caller_leaves(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    task = asyncio.create_task(one.drop())
    await one.room.entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.room.go_on()
    await one.engine.close()
    assert one.is_empty()


async def test_a_release_waits_for_the_endpoint_to_be_made(one: World) -> None:
    one.room.hold()
    making, dropping = asyncio.create_task(one.make()), asyncio.create_task(one.drop())
    await one.room.entered()
    one.room.go_on()
    (endpoint,) = await making
    await dropping
    assert endpoint.state is State.READY
    assert one.is_empty()


async def test_a_release_of_what_fails_to_be_made_is_fine(one: World) -> None:
    one.room.hold()
    one.room.fail_operation(1)
    making, dropping = asyncio.create_task(failure_of(one.make())), asyncio.create_task(one.drop())
    await one.room.entered()
    one.room.go_on()
    await making
    await dropping
    assert one.is_empty()


async def test_a_request_waits_for_the_release_and_makes_a_new_life(one: World) -> None:
    (first,) = await one.make()
    await one.room.entered()
    one.room.hold()
    dropping, making = asyncio.create_task(one.drop()), asyncio.create_task(one.make())
    await one.room.entered()
    one.room.go_on()
    await dropping
    (second,) = await making
    assert second.generation > first.generation
    assert list(one.room.devices) == [endpoint_id(1)]


async def test_releases_at_once_share_one_piece_of_work(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    tasks = [asyncio.create_task(one.drop()) for _ in range(3)]
    await one.room.entered()
    one.room.go_on()
    await asyncio.gather(*tasks)
    assert one.room.calls == [("apply", 1), ("revert", 1)]


async def test_releases_at_once_share_the_failure(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    one.room.keep(endpoint_id(1))
    tasks = [asyncio.create_task(failure_of(one.drop())) for _ in range(2)]
    await one.room.entered()
    one.room.go_on()
    first, second = await asyncio.gather(*tasks)
    assert first is second


async def test_a_request_waits_for_no_release_of_others(one: World) -> None:
    await one.make(asked(1))
    await one.room.entered()
    one.room.hold()
    dropping = asyncio.create_task(one.drop(released(1)))
    await one.room.entered()
    making = asyncio.create_task(one.make(asked(2)))
    await one.room.entered()
    assert one.room.calls == [("apply", 1), ("revert", 1), ("apply", 1)]
    one.room.go_on()
    await asyncio.gather(dropping, making)


async def test_a_lost_helper_is_no_answer_to_anybody(one: World) -> None:
    one.room.lose()
    with pytest.raises(HelperLostError):
        await one.make()
    assert [entry.state for entry in one.recorded().values()] == [State.PENDING]


async def test_a_lost_helper_leaves_a_release_to_the_next_start(one: World) -> None:
    await one.make()
    one.room.lose()
    with pytest.raises(HelperLostError):
        await one.drop()
    assert [entry.state for entry in one.recorded().values()] == [State.RELEASING]


async def test_closing_finishes_what_was_begun_and_refuses_what_comes(one: World) -> None:
    one.room.hold()
    tasks = [asyncio.create_task(one.make(asked(number))) for number in (1, 2)]
    await one.room.entered()
    closing = asyncio.create_task(one.engine.close())
    late = asyncio.create_task(failure_of(one.make(asked(3))))
    assert isinstance(await late, TryAgain)
    one.room.go_on()
    await closing
    assert all(task.done() for task in tasks)
    assert sorted(one.recorded()) == [endpoint_id(1), endpoint_id(2)]


async def test_who_waits_for_a_release_gets_no_new_life_once_vifd_stops(one: World) -> None:
    await one.make()
    await one.room.entered()
    one.room.hold()
    dropping, waiting = asyncio.create_task(one.drop()), asyncio.create_task(failure_of(one.make()))
    await one.room.entered()
    one.engine.refuse_work()
    one.room.go_on()
    await dropping
    assert isinstance(await waiting, TryAgain)
    assert one.is_empty()


async def test_many_callers_at_once_leave_what_the_last_of_each_wanted(one: World) -> None:
    async def use(number: int) -> None:
        for _ in range(3):
            await one.make(asked(number, acceptable=TAP), caller=ALICE)
            await one.drop(released(number))
        if number % 2:
            await one.make(asked(number))

    await asyncio.gather(*(use(number) for number in range(1, 41)))
    odd = {endpoint_id(number) for number in range(1, 41, 2)}
    assert {endpoint.endpoint_id for endpoint in one.registry} == set(one.recorded()) == set(one.room.devices) == odd
