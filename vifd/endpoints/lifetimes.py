"""Lifetimes: endpoints that are released by themselves, when a process ends or when nobody has called for them for a time.

One timer and one heap serve them all. An endpoint is looked at when its time may be over: when its lease would be if nobody had
called since it was looked at last, and when its process has ended; and again later, where it couldn't be released.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import NamedTuple, Protocol

import msgspec

from vifd.endpoints.engine import Engine
from vifd.endpoints.registry import Change, Registry
from vifd.errors import TryAgain, VifdError
from vifd.kernel.processes import Processes
from vifd.model import Endpoint, LeaseLifetime, ProcessLifetime, State

_log = getLogger(__name__)
_RETRY_SECONDS = 10.0
_HELD_UP_SECONDS = 1.0
_LONGEST_SLEEP_SECONDS = 3600.0
_AGENDA_SPARE = 64  # so many entries of endpoints that are gone may stay, however long their leases were


class Timer(Protocol):
    """What a clock's `call_later` gives."""

    def cancel(self) -> None:
        """Let it not come."""


class Clock(NamedTuple):
    """Time as lifetimes have it: CLOCK_MONOTONIC, which stands still while the host is suspended and nobody could call.

    Args:
        now: gives it, in seconds.
        call_later: calls a function after some seconds.
    """

    now: Callable[[], float]
    call_later: Callable[[float, Callable[[], None]], Timer]

    @staticmethod
    def of_loop() -> Clock:
        """Give that of the running event loop."""
        return Clock(time.monotonic, asyncio.get_running_loop().call_later)


class _Watched(msgspec.Struct):
    """A process that somebody's endpoints live as long as."""

    pidfd: int
    endpoint_ids: set[str]


class Lifetimes:
    """Follows the endpoints, and releases those whose lifetime is over.

    Args:
        registry: the endpoints, before there are any.
        engine: takes down.
        processes: where processes are watched.
        clock: the time.
    """

    def __init__(self, registry: Registry, engine: Engine, processes: Processes, clock: Clock) -> None:
        self._registry, self._engine, self._processes, self._clock = registry, engine, processes, clock
        self._loop = asyncio.get_running_loop()
        self._agenda: list[tuple[float, str, int]] = []  # when to look at which life of which endpoint
        self._timer: Timer | None = None
        self._wake_at = 0.0
        self._not_before = 0.0  # no lease counts from an earlier time
        self._watched: dict[ProcessLifetime, _Watched] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._closed = False
        registry.listen(self._on_change)

    def close(self) -> None:
        """Release no more, and watch nothing. What was begun is the engine's to finish."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for process in list(self._watched):
            self._unwatch(process)

    def _on_change(self, change: Change, endpoint: Endpoint) -> None:
        match change, endpoint.lifetime:
            case Change.ADDED, LeaseLifetime() as lease:
                self._look_at(endpoint, self._clock.now() + lease.ttl_s)
            case Change.ADDED, ProcessLifetime():
                self._look_at(endpoint, self._clock.now())
            case Change.REMOVED, ProcessLifetime() as process if process in self._watched:
                watched = self._watched[process]
                watched.endpoint_ids.discard(endpoint.endpoint_id)
                if not watched.endpoint_ids:
                    self._unwatch(process)
            case _:
                pass

    def _look_at(self, endpoint: Endpoint, when: float) -> None:
        if len(self._agenda) >= 2 * len(self._registry) + _AGENDA_SPARE:
            self._agenda = [entry for entry in self._agenda if self._find(entry) is not None]
            heapq.heapify(self._agenda)
        heapq.heappush(self._agenda, (when, endpoint.endpoint_id, endpoint.generation))
        self._wait()

    def _find(self, entry: tuple[float, str, int]) -> Endpoint | None:
        """Give the endpoint that is to be looked at, if that life of it isn't over."""
        _, endpoint_id, generation = entry
        endpoint = self._registry.find(endpoint_id)
        return endpoint if endpoint is not None and endpoint.generation == generation else None

    def _wait(self) -> None:
        if self._closed or not self._agenda:
            return
        wake_at = self._agenda[0][0]
        if self._timer is not None:
            if self._wake_at <= wake_at:
                return
            self._timer.cancel()
        self._wake_at = wake_at
        delay = min(max(0.0, wake_at - self._clock.now()), _LONGEST_SLEEP_SECONDS)
        self._timer = self._clock.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer, now = None, self._clock.now()
        if now - self._wake_at > _HELD_UP_SECONDS:
            # Calls may be waiting that would have renewed a lease in time.
            _log.warning("vifd was held up; every lease begins anew", extra={"seconds": round(now - self._wake_at, 1)})
            self._not_before = now
        over = []
        try:
            while self._agenda and self._agenda[0][0] <= now:
                endpoint = self._find(heapq.heappop(self._agenda))
                if endpoint is not None and self._is_over(endpoint, now):
                    over.append(endpoint)
        finally:  # a bug that one endpoint meets is no reason to forget the others
            self._release([endpoint for endpoint in over if self._is_idle(endpoint)])
            self._wait()

    def _is_over(self, endpoint: Endpoint, now: float) -> bool:
        """Tell whether an endpoint's time is over; where it isn't, see to it that it is looked at again when it may be."""
        if endpoint.state is State.RELEASING:
            return True  # somebody tried, and nothing brings it back
        match endpoint.lifetime:
            case LeaseLifetime() as lease:
                end = max(self._registry.last_call(endpoint.endpoint_id), self._not_before) + lease.ttl_s
                if end > now:
                    heapq.heappush(self._agenda, (end, endpoint.endpoint_id, endpoint.generation))
                return end <= now
            case ProcessLifetime() as process:
                return not self._watch(process, endpoint)
            case _:
                return False

    def _is_idle(self, endpoint: Endpoint) -> bool:
        """Tell whether nothing is happening to an endpoint; else it is looked at again after that."""
        is_idle = endpoint.endpoint_id not in self._engine.busy
        if not is_idle:
            task = self._loop.create_task(self._look_after_work(endpoint))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        return is_idle

    async def _look_after_work(self, endpoint: Endpoint) -> None:
        """Look at an endpoint once nothing is happening to it: in turn with calls that wait for that, however many come."""
        await self._engine.busy.wait([endpoint.endpoint_id])
        now = self._find((0.0, endpoint.endpoint_id, endpoint.generation))
        if now is not None and not self._closed and self._is_over(now, self._clock.now()):
            self._release([now])
        self._wait()

    def _release(self, endpoints: Sequence[Endpoint]) -> None:
        if not endpoints:
            return
        for endpoint in endpoints:
            _log.info("an endpoint's lifetime is over: it is released", extra=_about(endpoint))
        try:
            tasks = self._engine.begin_to_take_down(endpoints)
        except TryAgain:  # vifd is stopping; its next start sees to it
            return
        done = asyncio.gather(*tasks, return_exceptions=True)
        done.add_done_callback(lambda done: self._look_again(endpoints, done.result()))

    def _look_again(self, endpoints: Sequence[Endpoint], results: Sequence[BaseException | None]) -> None:
        """Try again later what couldn't be released: it stays as RELEASING."""
        for error in filter(None, results):
            known = isinstance(error, VifdError)
            _log.error(
                "an endpoint can't be released; it is tried again", exc_info=None if known else error, extra={"error": str(error)}
            )
        for endpoint in endpoints:
            now = self._registry.find(endpoint.endpoint_id)
            if now is not None and now.generation == endpoint.generation:
                self._look_at(now, self._clock.now() + _RETRY_SECONDS)

    def _watch(self, process: ProcessLifetime, endpoint: Endpoint) -> bool:
        """Watch a process for an endpoint; tell whether it lives."""
        watched = self._watched.get(process)
        if watched is None:
            try:
                pidfd = self._processes.open(process)
            except VifdError as error:
                _log.error("a process can't be watched; it is tried again", extra=_about(endpoint) | {"error": str(error)})
                heapq.heappush(self._agenda, (self._clock.now() + _RETRY_SECONDS, endpoint.endpoint_id, endpoint.generation))
                return True
            if pidfd is None:
                return False
            watched = self._watched[process] = _Watched(pidfd, set())
            self._loop.add_reader(pidfd, self._on_end, process)
        watched.endpoint_ids.add(endpoint.endpoint_id)
        return True

    def _on_end(self, process: ProcessLifetime) -> None:
        ids = self._unwatch(process)
        for endpoint in filter(None, map(self._registry.find, ids)):
            self._look_at(endpoint, self._clock.now())

    def _unwatch(self, process: ProcessLifetime) -> set[str]:
        watched = self._watched.pop(process)
        self._loop.remove_reader(watched.pidfd)
        os.close(watched.pidfd)
        return watched.endpoint_ids


def _about(endpoint: Endpoint) -> dict[str, object]:
    match endpoint.lifetime:
        case ProcessLifetime(pid=pid):
            reason = f"process {pid} has ended"
        case LeaseLifetime(ttl_ns=ttl_ns):
            reason = f"nobody called for it for {ttl_ns / 1e9:g} s"
        case _:
            reason = ""
    return {"endpoint_id": endpoint.endpoint_id, "uid": endpoint.owner.uid, "reason": reason}
