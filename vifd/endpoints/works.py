"""The two batches: endpoints that are made, and endpoints that are taken down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from vifd.drivers.base import NetworkDriver
from vifd.endpoints.journal import Entry, Journal
from vifd.errors import TryAgain, VifdError
from vifd.kernel.ops import Made, Plan
from vifd.kernel.room import Room
from vifd.model import Endpoint, Preference, State


class Job(Struct, frozen=True):
    """One endpoint to be made: as PENDING, its plan, and who knows where it will be."""

    endpoint: Endpoint
    plan: Plan
    driver: NetworkDriver[Any]
    preference: Preference

    def finish(self, made: Made) -> Entry:
        """Give the endpoint as it is once the plan has come to this."""
        location = self.driver.locate(self.endpoint.endpoint_id, self.preference, made)
        port = self.endpoint.port
        if made.mtu_bytes and not port.mtu_bytes:
            port = msgspec.structs.replace(port, mtu_bytes=made.mtu_bytes)
        return Entry(msgspec.structs.replace(self.endpoint, state=State.READY, location=location, port=port), self.plan)


class Works:
    """Journal, kernel, journal: in this order, for a whole batch at once.

    Args:
        journal: where intents and outcomes are noted.
        room: the kernel.
    """

    def __init__(self, journal: Journal, room: Room) -> None:
        self._journal, self._room = journal, room
        self._checkpoint: asyncio.Future[None] | None = None  # keeps it from being collected

    async def make(self, groups: Sequence[Sequence[Job]]) -> list[list[Endpoint] | VifdError]:
        """Make groups of endpoints, each all or none.

        Returns:
            For each group, the endpoints that are READY now, or why none is.

        Raises:
            TryAgain: the journal can't be written; nothing is there.
            HelperLostError: nothing can be said.
        """
        jobs = [job for group in groups for job in group]
        self._write([Entry(job.endpoint, job.plan) for job in jobs])
        answers = await self._room.apply([tuple(job.plan for job in group) for group in groups])
        done: list[Entry] = []
        failed: list[str] = []
        results: list[list[Endpoint] | VifdError] = []
        for group, answer in zip(groups, answers, strict=True):
            if isinstance(answer, VifdError):
                failed += [job.endpoint.endpoint_id for job in group]
                results.append(answer)
            else:
                entries = [job.finish(made) for job, made in zip(group, answer, strict=True)]
                done += entries
                results.append([entry.endpoint for entry in entries])
        try:
            self._write(done, forget=failed)
        except TryAgain:
            await self._room.revert([entry.plan for entry in done])
            raise
        return results

    async def take_down(self, groups: Sequence[Sequence[Entry]]) -> list[list[VifdError | None]]:
        """Take endpoints down and forget those that are gone.

        Args:
            groups: endpoints as RELEASING.

        Returns:
            For each endpoint of each group, None, or why it is still there.

        Raises:
            TryAgain: the journal can't be written.
            HelperLostError: nothing can be said.
        """
        entries = [entry for group in groups for entry in group]
        self._write(entries)
        answers = await self._room.revert([entry.plan for entry in entries])
        gone = [entry.endpoint.endpoint_id for entry, error in zip(entries, answers, strict=True) if error is None]
        self._write([], forget=gone)
        rest = iter(answers)
        return [[next(rest) for _ in group] for group in groups]

    def _write(self, entries: Sequence[Entry], *, forget: Sequence[str] = ()) -> None:
        self._journal.write(entries, forget=forget)
        if self._journal.wants_checkpoint():
            self._checkpoint = asyncio.get_running_loop().run_in_executor(None, self._journal.checkpoint)
