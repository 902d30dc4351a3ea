"""Lanes: work on one part of the kernel waits in one queue, and what waits together is done together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Lane(Generic[T, R]):
    """Does batches, one at a time; a lone item waits for nobody.

    Args:
        work: does a batch; gives a result for each item, in order.
        weight: how much of a batch an item takes.
        capacity: how much a batch takes at most; an item that alone is heavier goes alone.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, weight: Callable[[T], int], capacity: int
    ) -> None:
        self._work, self._weight, self._capacity = work, weight, capacity
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._next: asyncio.Task[None] | None = None
        self._busy = False

    async def do(self, item: T) -> R:
        """Have an item done.

        The caller must not be cancelled: who comes to an idle lane does its own item, and those that came meanwhile follow in a
        task.

        Raises:
            Exception: what the work raised; then every item of the batch gets it.
        """
        if self._busy:
            future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            self._waiting.append((item, future))
            return await future
        self._busy = True
        try:
            (result,) = await self._work([item])
        finally:
            self._go_on()
        return result

    async def close(self) -> None:
        """Finish what waits."""
        while self._next is not None:
            await self._next

    def _go_on(self) -> None:
        self._busy = bool(self._waiting)
        self._next = asyncio.get_running_loop().create_task(self._do_waiting()) if self._waiting else None

    async def _do_waiting(self) -> None:
        batch = self._take()
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        finally:
            self._go_on()

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        count, load = 0, 0
        for item, _ in self._waiting:
            load += self._weight(item)
            if count and load > self._capacity:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


class Lanes(Generic[T, R]):
    """A lane for each part of the kernel, by name: made when it is first needed, and kept, for there are few.

    Args:
        work: does a batch, see Lane; the batches of different lanes at the same time.
        weight: see Lane.
        capacity: see Lane.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, weight: Callable[[T], int], capacity: int
    ) -> None:
        self._work, self._weight, self._capacity = work, weight, capacity
        self._lanes: dict[str, Lane[T, R]] = {}

    def __getitem__(self, name: str) -> Lane[T, R]:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(self._work, weight=self._weight, capacity=self._capacity)
        return lane

    async def close(self) -> None:
        """Finish what waits."""
        for lane in self._lanes.values():
            await lane.close()
