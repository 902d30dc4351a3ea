"""The use cases over a kernel in memory and a real journal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.lives import FakeProcesses, FakeTime
from tests.support.messages import endpoint_id
from tests.support.rooms import FakeRoom
from vifd.config import PolicyRule
from vifd.drivers.base import NetworkDriver
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.drivers.fake import FakeDriver, FakeOptions
from vifd.endpoints.engine import Engine, Host, Release
from vifd.endpoints.follower import Follower
from vifd.endpoints.garbage import Garbage
from vifd.endpoints.journal import Journal
from vifd.endpoints.lifetimes import Lifetimes
from vifd.endpoints.networks import Networks
from vifd.endpoints.policy import Policy
from vifd.endpoints.queues import Queues
from vifd.endpoints.recovery import recover
from vifd.endpoints.registry import Change, Registry
from vifd.endpoints.views import Views
from vifd.errors import VifdError
from vifd.model import (
    BridgePreference,
    Caller,
    Drift,
    Endpoint,
    EndpointRequest,
    EndpointSpec,
    Filter,
    Owner,
    Preference,
    TapPreference,
)

#: Whoever may connect may use every network, without the guard too.
ANYBODY = tuple(PolicyRule(uid=uid, guard="optional") for uid in (1000, 1001))
ALICE, BOB, ROOT = Caller(1000, 1000), Caller(1001, 1001), Caller(0, 0)
BOOT = "boot-1"
TAP = (TapPreference(),)


class NotingDriver(BridgeDriver):
    """The bridge driver of a network whose system wants to be told, and may fail.

    What it is told is in `told`, in order: ("bind", "…0001").
    """

    def __init__(self, network: str, options: BridgeOptions) -> None:
        super().__init__(network, options)
        self.told: list[tuple[str, str]] = []
        self.refuses: dict[tuple[str, str], Exception] = {}
        #: What it knows to differ, by endpoint.
        self.drifts: dict[str, tuple[Drift, ...]] = {}

    async def bind(self, endpoint: Endpoint) -> None:
        self._note("bind", endpoint)

    async def unbind(self, endpoint: Endpoint) -> None:
        self._note("unbind", endpoint)

    async def activate(self, endpoint: Endpoint) -> None:
        self._note("activate", endpoint)

    async def check(self, endpoint: Endpoint) -> Sequence[Drift]:
        self._refuse("check", endpoint)
        return self.drifts.get(endpoint.endpoint_id, ())

    def _note(self, what: str, endpoint: Endpoint) -> None:
        self.told.append((what, endpoint.endpoint_id))
        self._refuse(what, endpoint)

    def _refuse(self, what: str, endpoint: Endpoint) -> None:
        if (error := self.refuses.get((what, endpoint.endpoint_id))) is not None:
            raise error


def asked(
    number: int = 1,
    network: str = "blue",
    acceptable: Sequence[Preference] = TAP,
    *,
    uid: int = ALICE.uid,
    validate_only: bool = False,
    **spec: Any,
) -> EndpointRequest:
    """Give a request under one of many ids."""
    wanted = EndpointSpec(network, tuple(acceptable), Owner(uid), **spec)
    return EndpointRequest(endpoint_id(number), wanted, repr(wanted), validate_only)


def released(number: int = 1, generation: int = 0) -> Release:
    """Give a release of one of many ids."""
    return Release(endpoint_id(number), generation)


class World:
    """An engine with all around it. Networks: blue and red on bridges, noise on a bridge with a driver that notes, fake.

    Args:
        path: the journal's.
        room: the kernel; a new one if there is none.
        rules: the policy.
        ports_a_bridge: how many ports fit on one bridge of a new kernel.
    """

    def __init__(
        self, path: Path, room: FakeRoom | None = None, *, rules: Sequence[PolicyRule] = ANYBODY, ports_a_bridge: int = 1023
    ) -> None:
        self.path, self.room = path, room or FakeRoom(ports_a_bridge=ports_a_bridge)
        self.journal = Journal(path)
        self.carriers: dict[int, bool] = {}
        self.networks = Networks()
        self.time, self.processes = FakeTime(), FakeProcesses()
        self.registry = Registry(self.networks, self.time.now)
        self.noting = NotingDriver("red", BridgeOptions("br-red"))
        self.drivers: dict[str, NetworkDriver[Any]] = {
            "blue": BridgeDriver("blue", BridgeOptions("br-blue")),
            "red": self.noting,
            "fake": FakeDriver("fake", FakeOptions()),
        }
        self.networks.configure(self.drivers, Policy(rules))
        host = Host(lambda ifindex: self.carriers.get(ifindex, False), self.processes)
        self.engine = Engine(self.journal, self.room, self.registry, self.networks, host)
        self.garbage = Garbage(self.registry, self.engine)
        self.views = Views(self.registry, self.networks)
        self.queues = Queues(self.registry, self.networks, self.room)
        self.follower = Follower(self.registry, self.networks, self.room)
        self.lifetimes: Lifetimes | None = None

    def keep_lifetimes(self) -> Lifetimes:
        """Let lifetimes end from now on, as the daemon does from its start; in the test's own event loop."""
        self.lifetimes = Lifetimes(self.registry, self.engine, self.processes, self.time.clock)
        return self.lifetimes

    async def make(self, *requests: EndpointRequest, caller: Caller = ALICE) -> list[Endpoint]:
        """Request endpoints; the default is one tap on blue."""
        return [answer.endpoint for answer in await self.engine.request(caller, requests or [asked()])]

    async def drop(self, *releases: Release, caller: Caller = ALICE) -> None:
        """Release endpoints; the default is the first."""
        await self.engine.release(caller, releases or [released()])

    async def recover(self, boot_id: str = BOOT) -> list[Endpoint]:
        """Do what a start does."""
        entries = await recover(self.journal, self.room, boot_id, self.drivers, self.processes)
        for entry in entries:
            self.registry.add(entry.endpoint, entry.plan)
        return sorted((entry.endpoint for entry in entries), key=lambda endpoint: endpoint.endpoint_id)

    def recorded(self) -> dict[str, Endpoint]:
        """What another process would read in the journal."""
        with contextlib.closing(Journal(self.path)) as journal:
            return {entry.endpoint.endpoint_id: entry.endpoint for entry in journal.load()}

    def let_journal_write(self, *, allowed: bool) -> None:
        """Make every write to the journal fail as on a file system that went read-only, or work again."""
        self.journal._db.execute(f"PRAGMA query_only={'OFF' if allowed else 'ON'}")

    def is_empty(self) -> bool:
        """Tell whether nothing is left anywhere."""
        return not (len(self.registry) or self.recorded() or self.room.devices)

    def crash(self) -> None:
        """End as `kill -9` does: the kernel and the file stay as they are."""
        self.journal.close()


@contextlib.contextmanager
def world(path: Path, room: FakeRoom | None = None, **options: Any) -> Iterator[World]:
    """Give a world whose journal is closed in the end, and whose processes are."""
    one = World(path, room, **options)
    try:
        yield one
    finally:
        one.journal.close()
        one.processes.close()


async def failure_of(work: Any) -> VifdError:
    """Give the error that work ends with."""
    try:
        await work
    except VifdError as error:
        return error
    raise AssertionError("it didn't fail")


class Watch:
    """A watch that is read event by event."""

    def __init__(self, one: World, caller: Caller = ALICE, wanted: Filter | None = None) -> None:
        self._events = one.views.watch(caller, wanted or Filter())

    async def next(self) -> tuple[str, str, str]:
        """Give the next event: what happened, the id's last digit, and the state."""
        change, endpoint = await anext(self._events)
        return (change.name, endpoint.endpoint_id[-1], endpoint.state.value) if endpoint else (change.name, "", "")

    async def synced(self) -> list[tuple[str, str, str]]:
        """Read up to SYNCED: what was current."""
        found = []
        while (event := await self.next())[0] != Change.SYNCED.name:
            found.append(event)
        return found

    async def close(self) -> None:
        """Leave."""
        await self._events.aclose()


BRIDGE = (BridgePreference(),)
