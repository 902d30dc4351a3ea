"""What is happening to endpoints now: one piece of work an endpoint, which outlives its caller and which others find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from vifd.errors import TryAgain
from vifd.model import Endpoint


class Work(NamedTuple):
    """What is happening to an endpoint.

    Args:
        spec_hash: the spec that is being made; empty: it was made before.
        owner_uid: whose it is.
        task: the work.
        leaves: whether it is being taken down.
    """

    spec_hash: str
    owner_uid: int
    task: asyncio.Task[Any]
    leaves: bool = False


class Busy:
    """The endpoints that something is happening to."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        #: Whether vifd is stopping: nothing more is begun.
        self.refuses = False

    def __contains__(self, endpoint_id: str) -> bool:
        return endpoint_id in self._works

    def find(self, endpoint_id: str) -> Work | None:
        """Give what is happening to an endpoint, or None."""
        return self._works.get(endpoint_id)

    def check_running(self) -> None:
        """Check that new work is taken.

        Raises:
            TryAgain: vifd is stopping.
        """
        if self.refuses:
            raise TryAgain("vifd is stopping")

    async def wait(self, endpoint_ids: Iterable[str]) -> None:
        """Wait until nothing is happening to endpoints any more, whatever becomes of it."""
        wanted = list(endpoint_ids)
        while under_way := [work.task for i in wanted if (work := self._works.get(i)) is not None]:
            await asyncio.wait(under_way)

    async def drain(self) -> None:
        """Wait until nothing is happening to any endpoint."""
        while self._works:
            await asyncio.wait([work.task for work in self._works.values()])

    def begin(
        self,
        endpoints: Sequence[Endpoint],
        work: Coroutine[Any, Any, Any],
        spec_hash: Callable[[Endpoint], str] = lambda _: "",
        *,
        leaves: bool = False,
    ) -> asyncio.Task[Any]:
        """Run work on endpoints in a task of its own; from now on others find it.

        Args:
            endpoints: what it is about; nothing may be happening to them.
            work: what to do. It is finished even if who waits goes away.
            spec_hash: of an endpoint that is being made.
            leaves: whether they are being taken down.
        """
        task = asyncio.get_running_loop().create_task(work)
        for endpoint in endpoints:
            self._works[endpoint.endpoint_id] = Work(spec_hash(endpoint), endpoint.owner.uid, task, leaves)

        def done(_task: asyncio.Task[Any]) -> None:
            for endpoint in endpoints:
                del self._works[endpoint.endpoint_id]
            if not task.cancelled():
                task.exception()  # a caller that went away must not make it an unseen error

        task.add_done_callback(done)
        return task

    async def start(
        self,
        endpoints: Sequence[Endpoint],
        work: Coroutine[Any, Any, Any],
        spec_hash: Callable[[Endpoint], str] = lambda _: "",
    ) -> Any:
        """Run work on endpoints as `begin` does, wait for it, and give what it gives."""
        return await asyncio.shield(self.begin(endpoints, work, spec_hash))
