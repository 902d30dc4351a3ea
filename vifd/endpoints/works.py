"""The two batches: endpoints that are made, and endpoints that are taken down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any

import msgspec
from msgspec import Struct

from vifd.drivers.base import NetworkDriver
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.systems import bugs_told
from vifd.errors import TryAgain, VifdError
from vifd.kernel.ops import Made, Plan
from vifd.kernel.room import Room
from vifd.model import Endpoint, EndpointSpec, Preference, State

_log = getLogger(__name__)


class Job(Struct, frozen=True):
    """One endpoint to be made: as PENDING, its plan, who knows where it will be, and what was asked for, settled."""

    endpoint: Endpoint
    plan: Plan
    driver: NetworkDriver[Any]
    preference: Preference
    spec: EndpointSpec

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
        has_system: tells of which endpoints a network system knows as well: they are in the journal before it hears of them, and
            until it has forgotten them.
    """

    def __init__(self, journal: Journal, room: Room, has_system: Callable[[Endpoint], bool]) -> None:
        self._journal, self._room, self._has_system = journal, room, has_system
        self._checkpoint: asyncio.Future[None] | None = None  # keeps it from being collected

    def note(self, jobs: Sequence[Job]) -> None:
        """Note what network systems are about to be told of.

        Raises:
            TryAgain: the journal can't be written.
        """
        if entries := [Entry(job.endpoint, job.plan) for job in jobs if self._has_system(job.endpoint)]:
            self._write(entries)

    def forget(self, endpoints: Sequence[Endpoint]) -> None:
        """Forget endpoints of which nothing is left, and that network systems have forgotten.

        Raises:
            TryAgain: the journal can't be written.
        """
        self._write([], forget=[endpoint.endpoint_id for endpoint in endpoints])

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
        finished = [_finish(group, answer) for group, answer in zip(groups, answers, strict=True)]
        results: list[list[Endpoint] | VifdError] = []
        done: list[Entry] = []
        failed: list[str] = []
        stranded: list[Plan] = []
        for group, answer, entries in zip(groups, answers, finished, strict=True):
            if isinstance(entries, VifdError):
                failed += [job.endpoint.endpoint_id for job in group if not self._has_system(job.endpoint)]
                stranded += [job.plan for job in group if entries is not answer]
                results.append(entries)
            else:
                done += entries
                results.append([entry.endpoint for entry in entries])
        if stranded:
            await self._room.revert(stranded)
        try:
            self._write(done, forget=failed)
        except TryAgain:
            await self._room.revert([entry.plan for entry in done])
            raise
        return results

    async def take_down(self, groups: Sequence[Sequence[Entry]]) -> list[list[VifdError | None]]:
        """Take endpoints down, and forget those that are gone, unless a network system knows of them.

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
        gone = [entry.endpoint for entry, error in zip(entries, answers, strict=True) if error is None]
        self._write([], forget=[endpoint.endpoint_id for endpoint in gone if not self._has_system(endpoint)])
        rest = iter(answers)
        return [[next(rest) for _ in group] for group in groups]

    def _write(self, entries: Sequence[Entry], *, forget: Sequence[str] = ()) -> None:
        self._journal.write(entries, forget=forget)
        if self._journal.wants_checkpoint():
            self._checkpoint = asyncio.get_running_loop().run_in_executor(None, self._journal.checkpoint)
            self._checkpoint.add_done_callback(_note_checkpoint)


def _finish(group: Sequence[Job], answer: list[Made] | VifdError) -> list[Entry] | VifdError:
    """Give what a group has become; a driver that raises has made its group fail, and nobody else's."""
    if isinstance(answer, VifdError):
        return answer
    try:
        with bugs_told(group[0].driver.name):
            return [job.finish(made) for job, made in zip(group, answer, strict=True)]
    except VifdError as error:
        return error


def _note_checkpoint(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("the journal's log could not be moved into its file", extra={"error": str(error)})
