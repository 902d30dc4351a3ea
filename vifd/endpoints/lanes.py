"""Lanes: work on one part of the kernel waits in one queue, and what waits together is done together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Lane(Generic[T, R]):
    """Runs batches in a thread of its own, one at a time; a lone item waits for nobody.

    Args:
        name: of the thread.
        work: does a batch; blocks; gives a result for each item, in order.
        weight: how much of a batch an item takes.
        capacity: how much a batch takes at most; an item that alone is heavier goes alone.
    """

    def __init__(
        self, name: str, work: Callable[[Sequence[T]], Sequence[R]], *, weight: Callable[[T], int], capacity: int
    ) -> None:
        self._work, self._weight, self._capacity = work, weight, capacity
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._busy: asyncio.Task[None] | None = None

    async def do(self, item: T) -> R:
        """Have an item done; whatever the caller's fate, what was begun is finished.

        Raises:
            Exception: what the work raised; then every item of the batch gets it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._busy is None:
            self._busy = loop.create_task(self._run())
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Finish what waits, then end the thread."""
        while self._busy is not None:
            await self._busy
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = self._take()
                try:
                    results = await loop.run_in_executor(self._thread, self._work, [item for item, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        future.set_exception(error)
                else:
                    for (_, future), result in zip(batch, results, strict=True):
                        future.set_result(result)
        finally:
            self._busy = None

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        count, load = 0, 0
        for item, _ in self._waiting:
            load += self._weight(item)
            if count and load > self._capacity:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch
