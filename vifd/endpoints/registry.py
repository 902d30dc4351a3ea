"""The endpoints there are, in memory, and those who watch them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum

from vifd.endpoints.addresses import AddressBook
from vifd.endpoints.networks import Networks
from vifd.errors import Overloaded, TryAgain
from vifd.kernel.ops import Plan
from vifd.model import Endpoint, State

_EVENTS_A_WATCHER = 4096
_WATCHERS, _WATCHERS_A_UID = 256, 32  # fewer than a connection has calls, or who has them all on one could call no more


class Change(Enum):
    """What happened to an endpoint."""

    CURRENT = 1
    SYNCED = 2
    ADDED = 3
    CHANGED = 4
    REMOVED = 5


Event = tuple[Change, Endpoint | None]


class _Watcher:
    def __init__(self, wants: Callable[[Endpoint], bool], uid: int) -> None:
        self.wants, self.uid = wants, uid
        self.events: asyncio.Queue[Event | None] = asyncio.Queue(_EVENTS_A_WATCHER + 1)
        self.error: Exception | None = None

    def end(self, error: Exception) -> None:
        """Let the watcher read what it has, then fail. The queue has one place more than events may take."""
        if self.error is None:
            self.error = error
            self.events.put_nowait(None)

    def tell(self, event: Event) -> None:
        if self.error is None:
            if self.events.qsize() >= _EVENTS_A_WATCHER:
                self.end(Overloaded("this watcher is too slow for what happens; watch again to get all that is current"))
            else:
                self.events.put_nowait(event)


class Registry:
    """Every endpoint with its plan, as of now. It lives in the event loop's thread alone.

    Args:
        networks: what says which addresses the networks have.
        now: gives the time of calls, in seconds.
    """

    def __init__(self, networks: Networks | None = None, now: Callable[[], float] = time.monotonic) -> None:
        #: Who has which address; it follows what is added, updated and removed here.
        self.addresses = AddressBook(networks or Networks())
        self._endpoints: dict[str, Endpoint] = {}
        self._plans: dict[str, Plan] = {}
        self._now, self._last_calls = now, dict[str, float]()
        self._by_ifindex: dict[int, str] = {}
        self._by_function: dict[str, str] = {}
        self._leftovers: dict[str, str] = {}
        self._count_by_owner: dict[int, int] = {}
        self._watchers: set[_Watcher] = set()
        self._listeners: list[Callable[[Change, Endpoint], None]] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._endpoints)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())

    def find(self, endpoint_id: str) -> Endpoint | None:
        """Give an endpoint, or None."""
        return self._endpoints.get(endpoint_id)

    def find_by_ifindex(self, ifindex: int) -> Endpoint | None:
        """Give the endpoint whose device has this index, or None. What a driver only pretends has no device."""
        return self._endpoints.get(self._by_ifindex.get(ifindex, ""))

    def find_by_function(self, function: str) -> Endpoint | None:
        """Give the endpoint that has a PCI function, or None."""
        return self._endpoints.get(self._by_function.get(function, ""))

    def functions(self) -> dict[str, State]:
        """Give the PCI functions that endpoints have, by address, and the states of those endpoints."""
        return {function: self._endpoints[name].state for function, name in self._by_function.items()}

    def note_leftover(self, endpoint_id: str, reason: str) -> bool:
        """Note why an endpoint that was to be taken down is there still; tell whether that is news."""
        is_news = self._leftovers.get(endpoint_id) != reason
        self._leftovers[endpoint_id] = reason
        return is_news

    def why_left(self, endpoint_id: str) -> str:
        """Say why an endpoint that was to be taken down is there still; empty: it isn't known to be."""
        return self._leftovers.get(endpoint_id, "")

    def plan_of(self, endpoint_id: str) -> Plan:
        """Give the plan that made an endpoint."""
        return self._plans[endpoint_id]

    def count_of(self, uid: int) -> int:
        """Tell how many endpoints a uid owns."""
        return self._count_by_owner.get(uid, 0)

    def note_call(self, endpoint_id: str) -> None:
        """Note that somebody who may release an endpoint has called for it now, which renews its lease."""
        self._last_calls[endpoint_id] = self._now()

    def last_call(self, endpoint_id: str) -> float:
        """Tell when somebody called for an endpoint last; at least it was added then."""
        return self._last_calls[endpoint_id]

    def add(self, endpoint: Endpoint, plan: Plan) -> None:
        """Add an endpoint and tell the watchers."""
        self._endpoints[endpoint.endpoint_id] = endpoint
        self._plans[endpoint.endpoint_id] = plan
        if endpoint.state is State.RELEASING:
            self.note_leftover(endpoint.endpoint_id, "its release was not finished before vifd started")
        self.note_call(endpoint.endpoint_id)
        self._count_by_owner[endpoint.owner.uid] = self.count_of(endpoint.owner.uid) + 1
        self._index(endpoint)
        self.addresses.put(endpoint)
        self._tell(Change.ADDED, endpoint)

    def update(self, endpoint: Endpoint, plan: Plan | None = None) -> None:
        """Put a new state of an endpoint in the place of the old, and its new plan if it has one, and tell the watchers."""
        before = self._endpoints[endpoint.endpoint_id]
        self._unindex(before)
        self._endpoints[endpoint.endpoint_id] = endpoint
        if plan is not None:
            self._plans[endpoint.endpoint_id] = plan
        self._index(endpoint)
        if before.port != endpoint.port:
            self.addresses.put(endpoint)
        self._tell(Change.CHANGED, endpoint)

    def remove(self, endpoint_id: str) -> None:
        """Forget an endpoint and tell the watchers."""
        endpoint = self._endpoints.pop(endpoint_id)
        del self._plans[endpoint_id], self._last_calls[endpoint_id]
        self._leftovers.pop(endpoint_id, None)
        self._unindex(endpoint)
        self.addresses.drop(endpoint_id)
        left = self.count_of(endpoint.owner.uid) - 1
        if left:
            self._count_by_owner[endpoint.owner.uid] = left
        else:
            del self._count_by_owner[endpoint.owner.uid]
        self._tell(Change.REMOVED, endpoint)

    def listen(self, listener: Callable[[Change, Endpoint], None]) -> None:
        """Let a function be called for each change, at once; it must not raise."""
        self._listeners.append(listener)

    async def watch(self, wants: Callable[[Endpoint], bool], uid: int = 0) -> AsyncIterator[Event]:
        """Give every endpoint that is wanted, then SYNCED, then each change.

        Args:
            wants: tells which are.
            uid: who watches: no user but root may take every place.

        Raises:
            Overloaded: the watcher is too slow, or there are too many.
            TryAgain: vifd stops.
        """
        if self._closed:
            raise TryAgain("vifd is stopping")
        if len(self._watchers) >= _WATCHERS:
            raise Overloaded(f"there are {_WATCHERS} watchers already; end one")
        if uid and sum(watcher.uid == uid for watcher in self._watchers) >= _WATCHERS_A_UID:
            raise Overloaded(f"uid {uid} has {_WATCHERS_A_UID} watchers already; end one")
        watcher = _Watcher(wants, uid)
        current = [endpoint for endpoint in self if wants(endpoint)]
        self._watchers.add(watcher)
        try:
            for endpoint in current:
                yield Change.CURRENT, endpoint
            yield Change.SYNCED, None
            while (event := await watcher.events.get()) is not None:
                yield event
            if watcher.error is not None:
                raise watcher.error
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end(TryAgain("vifd is stopping; watch again"))

    def _index(self, endpoint: Endpoint) -> None:
        if endpoint.ifindex and self._plans[endpoint.endpoint_id] and endpoint.state is not State.RELEASING:
            self._by_ifindex[endpoint.ifindex] = endpoint.endpoint_id
        if endpoint.function:
            self._by_function[endpoint.function] = endpoint.endpoint_id

    def _unindex(self, endpoint: Endpoint) -> None:
        if self._by_ifindex.get(endpoint.ifindex) == endpoint.endpoint_id:
            del self._by_ifindex[endpoint.ifindex]
        self._by_function.pop(endpoint.function, None)

    def _tell(self, change: Change, endpoint: Endpoint) -> None:
        for listener in self._listeners:
            listener(change, endpoint)
        for watcher in self._watchers:
            if watcher.wants(endpoint):
                watcher.tell((change, endpoint))
