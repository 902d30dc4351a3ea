import asyncio
from collections.abc import Sequence

import pytest

from vifd.endpoints.lanes import Lane, Lanes


class Work:
    """Doubles what it gets, batch by batch, once it may; breaks over items below zero."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Semaphore(0)
        self.may_end = asyncio.Event()

    async def do(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.release()
        await self.may_end.wait()
        if min(items) < 0:
            raise ValueError("broken")
        return [2 * item for item in items]


def lane(work: Work, capacity: int = 100) -> Lane[int, int]:
    return Lane(work.do, weight=lambda item: item, capacity=capacity)


async def test_a_lone_item_waits_for_nobody() -> None:
    work = Work()
    work.may_end.set()
    assert await lane(work).do(1) == 2
    assert work.batches == [[1]]


async def test_what_comes_meanwhile_is_one_batch_in_order() -> None:
    work = Work()
    one = lane(work)
    tasks = [asyncio.create_task(one.do(item)) for item in (1, 2, 3, 4)]
    await work.begun.acquire()
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


async def test_there_is_one_batch_at_a_time() -> None:
    work = Work()
    one = lane(work)
    tasks = [asyncio.create_task(one.do(item)) for item in (1, 2)]
    await work.begun.acquire()
    assert work.batches == [[1]]
    work.may_end.set()
    await asyncio.gather(*tasks)


async def test_a_batch_takes_no_more_than_its_capacity() -> None:
    work = Work()
    one = lane(work, capacity=10)
    tasks = [asyncio.create_task(one.do(item)) for item in (1, 4, 6, 5, 5, 1)]
    await work.begun.acquire()
    work.may_end.set()
    await asyncio.gather(*tasks)
    assert work.batches == [[1], [4, 6], [5, 5], [1]]


async def test_an_item_that_is_heavier_than_a_batch_goes_alone() -> None:
    work = Work()
    one = lane(work, capacity=10)
    tasks = [asyncio.create_task(one.do(item)) for item in (1, 50, 2)]
    await work.begun.acquire()
    work.may_end.set()
    await asyncio.gather(*tasks)
    assert work.batches == [[1], [50], [2]]


async def test_a_failure_reaches_everybody_of_its_batch() -> None:
    work = Work()
    one = lane(work)
    tasks = [asyncio.create_task(one.do(item)) for item in (1, 2, -3)]
    await work.begun.acquire()
    work.may_end.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [int, ValueError, ValueError]


async def test_a_lane_goes_on_after_a_failure() -> None:
    work = Work()
    one = lane(work)
    work.may_end.set()
    with pytest.raises(ValueError, match="broken"):
        await one.do(-1)
    assert await one.do(2) == 4


async def test_what_waited_behind_a_failure_is_done() -> None:
    work = Work()
    one = lane(work)
    first, second = asyncio.create_task(one.do(-1)), asyncio.create_task(one.do(2))
    await work.begun.acquire()
    work.may_end.set()
    with pytest.raises(ValueError, match="broken"):
        await first
    assert await second == 4


async def test_closing_finishes_what_waits() -> None:
    work = Work()
    one = lane(work, capacity=1)
    tasks = [asyncio.create_task(one.do(1)) for _ in range(4)]
    await work.begun.acquire()
    work.may_end.set()
    await tasks[0]
    await one.close()
    assert work.batches == [[1]] * 4
    await asyncio.gather(*tasks)


async def test_closing_an_idle_lane_is_done_at_once() -> None:
    await lane(Work()).close()


async def test_lanes_do_their_work_at_the_same_time_and_each_in_order() -> None:
    work = Work()
    lanes: Lanes[int, int] = Lanes(work.do, weight=lambda item: item, capacity=100)
    tasks = [asyncio.create_task(lanes[name].do(item)) for name, item in (("a", 1), ("b", 2), ("a", 3), ("a", 4))]
    await work.begun.acquire()
    await work.begun.acquire()
    assert work.batches == [[1], [2]]
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert work.batches == [[1], [2], [3, 4]]


async def test_closing_lanes_finishes_what_waits_in_each() -> None:
    work = Work()
    lanes: Lanes[int, int] = Lanes(work.do, weight=lambda item: item, capacity=100)
    tasks = [asyncio.create_task(lanes[name].do(item)) for name, item in (("a", 1), ("a", 2), ("b", 3), ("b", 4))]
    await work.begun.acquire()
    work.may_end.set()
    await asyncio.gather(tasks[0], tasks[2])
    await lanes.close()
    assert sorted(work.batches) == [[1], [2], [3], [4]]
    await asyncio.gather(*tasks)
