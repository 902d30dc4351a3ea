"""The life of endpoints: who asks for what, in which order things happen, and what is left when something fails.

All state lives in the event loop's thread, so what stands between two awaits is atomic. Work that was begun is finished even if
its caller goes away: the same request again finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from logging import getLogger
from typing import NamedTuple

import msgspec

from vifd.endpoints.busy import Busy
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.lanes import Lanes
from vifd.endpoints.networks import Networks
from vifd.endpoints.planning import Held, Planner, with_another_function
from vifd.endpoints.policy import unknown_network
from vifd.endpoints.registry import Registry
from vifd.endpoints.systems import bind, unbind
from vifd.endpoints.works import Job, Works
from vifd.errors import (
    FunctionTaken,
    HostNotReady,
    IdInUse,
    NoProcess,
    NotAllowed,
    StaleGeneration,
    TryAgain,
    UnknownNetwork,
    VifdError,
    WrongState,
)
from vifd.kernel.ops import Plan
from vifd.kernel.processes import Processes
from vifd.kernel.room import HelperLostError, Room
from vifd.model import (
    Caller,
    Endpoint,
    EndpointRequest,
    Owner,
    ProcessLifetime,
    State,
    TapDevice,
)

_log = getLogger(__name__)
_PLANS_A_BATCH = 128
_PICKS = 64  # of PCI functions for one group: each one that is somebody else's costs a turn


class Answer(NamedTuple):
    """What a request came to; the plan only for `validate_only`."""

    endpoint: Endpoint
    plan: Plan = ()


class Release(NamedTuple):
    """What is to be released: the life with this generation; 0: whichever."""

    endpoint_id: str
    generation: int = 0


class Host(NamedTuple):
    """What the engine asks of the host beside the kernel's room.

    Args:
        has_carrier: tells what the link monitor knows of a device, by its index.
        processes: those that endpoints may live as long as.
    """

    has_carrier: Callable[[int], bool]
    processes: Processes


class Engine:
    """Makes and takes down.

    Args:
        journal: where everything is noted first.
        room: the kernel.
        registry: the endpoints; filled by the recovery.
        networks: the networks and the policy.
        host: what else there is.
    """

    def __init__(self, journal: Journal, room: Room, registry: Registry, networks: Networks, host: Host) -> None:
        self._journal, (self._has_carrier, self._processes) = journal, host
        self._registry, self._networks = registry, networks
        works = self._works = Works(journal, room, self._has_system)
        self._planner = Planner(registry, networks, journal.next_generation)
        self._making: Lanes[Sequence[Job], list[Endpoint] | VifdError] = Lanes(works.make, weight=len, capacity=_PLANS_A_BATCH)
        # Lanes of their own: a deletion waits for RCU for tens of milliseconds, and no request should wait with it.
        self._deleting: Lanes[Sequence[Entry], list[VifdError | None]]
        self._deleting = Lanes(works.take_down, weight=len, capacity=_PLANS_A_BATCH)
        #: What is happening to endpoints; who changes them shares it.
        self.busy = Busy()

    def refuse_work(self) -> None:
        """Take no new work, and end every watch."""
        self.busy.refuses = True
        self._registry.close()

    async def close(self) -> None:
        """Finish what was begun."""
        self.refuse_work()
        await self.busy.drain()
        await self._making.close()
        await self._deleting.close()

    # --- request

    async def request(self, caller: Caller, requests: Sequence[EndpointRequest]) -> list[Answer]:
        """Make endpoints, all or none; those that exist with the same spec are returned as they are.

        Args:
            caller: who asks.
            requests: with different ids.

        Returns:
            For each request, its endpoint.

        Raises:
            VifdError: nothing new is there.
        """
        self.busy.check_running()
        for request in requests:
            self._check_network(caller, request)
        requests = [self._settle_lifetime(caller, request) for request in requests]
        if requests[0].validate_only:
            self._check_quota(caller, [r for r in requests if self._registry.find(r.endpoint_id) is None])
            with self._planner.holding() as held:
                return [self._preview(caller, request, held) for request in requests]
        while (waiting := [r for r in requests if r.endpoint_id in self.busy]) or (over := self._find_over(requests)):
            await (self._join(waiting[0]) if waiting else self.take_down(over))
        present = {r.endpoint_id: self._check_same(r, e) for r in requests if (e := self._registry.find(r.endpoint_id))}
        missing = [request for request in requests if request.endpoint_id not in present]
        if missing:
            self.busy.check_running()
            self._check_quota(caller, missing)
            with self._planner.holding() as held:
                jobs = [self._planner.decide(caller, request, held) for request in missing]
                for job in jobs:
                    self._registry.add(job.endpoint, job.plan)
            made = await self.busy.start([job.endpoint for job in jobs], self._create(jobs), lambda e: e.spec_hash)
            present |= {endpoint.endpoint_id: endpoint for endpoint in made}
        return [Answer(present[request.endpoint_id]) for request in requests]

    def _check_network(self, caller: Caller, request: EndpointRequest) -> None:
        self._networks.policy.check_request(caller, request.spec)
        if request.spec.network not in self._networks.drivers:
            raise UnknownNetwork(unknown_network(request.spec.network))

    def _settle_lifetime(self, caller: Caller, request: EndpointRequest) -> EndpointRequest:
        """Put in which process is meant: its pid may be another's later."""
        wanted = request.spec.lifetime
        if not isinstance(wanted, ProcessLifetime):
            return request
        pid = wanted.pid or caller.pid
        if not pid:
            raise HostNotReady(
                "vifd can't see the caller's process, for it is in another pid namespace, and could not find it again after a "
                "restart; name a process of vifd's pid namespace, or ask for another lifetime"
            )
        process = self._processes.identify(pid)
        if wanted.pid or not caller.process_inode:
            uid = self._processes.uid_of(process)
            if not self._networks.policy.may_change(caller, Owner(uid), request.spec.network):
                # Whose it is, isn't said: /proc may keep that from the caller (hidepid=, proc(5)).
                raise NotAllowed(f"process {pid} isn't uid {caller.uid}'s; name one of the caller's own")
        elif process.inode != caller.process_inode:
            raise NoProcess("the process that opened this connection has ended; connect from the one that is meant")
        return msgspec.structs.replace(request, spec=msgspec.structs.replace(request.spec, lifetime=process))

    def _find_over(self, requests: Sequence[EndpointRequest]) -> list[Endpoint]:
        """Find endpoints of these ids whose process has ended though nobody has noticed yet: they are no answer any more."""
        present = [endpoint for r in requests if (endpoint := self._registry.find(r.endpoint_id)) is not None]
        return [e for e in present if isinstance(e.lifetime, ProcessLifetime) and self._processes.has_ended(e.lifetime)]

    def _check_quota(self, caller: Caller, missing: Sequence[EndpointRequest]) -> None:
        wanted = Counter((request.spec.owner.uid, request.spec.network) for request in missing)
        by_owner = Counter(request.spec.owner.uid for request in missing)
        for uid, network in wanted:
            self._networks.policy.check_quota(caller, network, self._registry.count_of(uid) + by_owner[uid])

    async def _join(self, request: EndpointRequest) -> None:
        """Wait for what is happening to an endpoint; share its failure if it is the same request's."""
        work = self.busy.find(request.endpoint_id)
        if work is None:
            return
        same = work.spec_hash == request.spec_hash and work.owner_uid == request.spec.owner.uid
        if work.spec_hash and not same:
            raise _in_use(request.endpoint_id)
        await asyncio.wait([work.task])
        if same and (error := work.task.exception()) is not None:
            raise error

    def _check_same(self, request: EndpointRequest, endpoint: Endpoint) -> Endpoint:
        spec = request.spec
        if (endpoint.spec_hash, endpoint.owner.uid, endpoint.lifetime) != (request.spec_hash, spec.owner.uid, spec.lifetime):
            raise _in_use(request.endpoint_id)
        self._registry.note_call(request.endpoint_id)
        if endpoint.state is State.RELEASING:
            raise WrongState(f"the release of endpoint {request.endpoint_id} failed; release it again, then request it")
        return endpoint

    def _preview(self, caller: Caller, request: EndpointRequest, held: Held) -> Answer:
        endpoint = self._registry.find(request.endpoint_id)
        if endpoint is not None:
            self._check_same(request, endpoint)
        job = self._planner.decide(caller, request, held, generation=0)
        return Answer(job.endpoint, job.plan)

    async def _create(self, jobs: list[Job]) -> list[Endpoint]:
        try:
            self._works.note(jobs)
            for job in jobs:
                await bind(job.driver, job.endpoint)
            made = await self._make(jobs)
        except BaseException as error:
            for job in jobs:
                self._registry.remove(job.endpoint.endpoint_id)
            undone = [job.endpoint for job in jobs if await _is_unbound(job)]
            if not isinstance(error, HelperLostError):
                with contextlib.suppress(TryAgain):  # which the journal has logged; the next start undoes it once more
                    self._works.forget(undone)
            raise
        made = [self._as_seen(endpoint) for endpoint in made]
        for endpoint in made:
            self._networks.problems.pop(endpoint.network, None)
            self._registry.note_call(endpoint.endpoint_id)  # a lease begins when there is something to renew
            self._registry.update(endpoint)
        return made

    async def _make(self, jobs: list[Job]) -> list[Endpoint]:
        """Make a group; a PCI function that turns out to be somebody's is left alone, and another one is put into the list."""
        for _ in range(_PICKS):
            made = await self._making[_lane_of(jobs)].do(jobs)
            if not isinstance(made, FunctionTaken):
                break
            index = next((i for i, job in enumerate(jobs) if job.endpoint.function == made.function), None)
            if index is None:
                break
            jobs[index].driver.note_unfit(made.function, str(made))
            taken = self._registry.functions()
            del taken[made.function]  # by nobody that vifd knows
            jobs[index] = job = with_another_function(jobs[index], taken)
            self._registry.update(job.endpoint, job.plan)
            await bind(job.driver, job.endpoint)
        if isinstance(made, VifdError):
            raise made
        return made

    def _as_seen(self, endpoint: Endpoint) -> Endpoint:
        """Put in what the link monitor saw of a device before anybody knew whose it was."""
        real = isinstance(endpoint.location, TapDevice) and self._registry.plan_of(endpoint.endpoint_id)
        attached = real and self._has_carrier(endpoint.ifindex)
        return msgspec.structs.replace(endpoint, state=State.ATTACHED) if attached else endpoint

    # --- release

    async def release(self, caller: Caller, releases: Sequence[Release]) -> None:
        """Take endpoints down. What isn't there (any more) is fine.

        Args:
            caller: who asks.
            releases: with different ids; all are checked before any is begun.

        Raises:
            NotAllowed: one is somebody else's.
            StaleGeneration: one names an older life.
            VifdError: the kernel refused one; the others are gone.
        """
        self.busy.check_running()
        await self.wait_for_work(release.endpoint_id for release in releases)
        await self.take_down([e for release in releases if (e := self._check_release(caller, release)) is not None])

    async def wait_for_work(self, endpoint_ids: Iterable[str]) -> None:
        """Wait until nothing is happening to endpoints but that they are taken down."""
        ids = list(endpoint_ids)
        while under_way := [work.task for i in ids if (work := self.busy.find(i)) is not None and not work.leaves]:
            await asyncio.wait(under_way)

    async def take_down(self, endpoints: Sequence[Endpoint]) -> None:
        """Take endpoints down, or wait for who does.

        Raises:
            VifdError: one is still there; the others are gone.
        """
        fresh = [endpoint for endpoint in endpoints if endpoint.endpoint_id not in self.busy]
        tasks = {work.task for e in endpoints if (work := self.busy.find(e.endpoint_id)) is not None}
        if fresh:
            tasks.update(self.begin_to_take_down(fresh))
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    def begin_to_take_down(self, endpoints: Sequence[Endpoint]) -> list[asyncio.Task[None]]:
        """Begin to take endpoints down that nothing is happening to: at once, so that nobody gets one of them for an answer.

        Raises:
            TryAgain: vifd is stopping.
        """
        self.busy.check_running()
        parts = [endpoints[start : start + _PLANS_A_BATCH] for start in range(0, len(endpoints), _PLANS_A_BATCH)]
        return [self.busy.begin(part, self._take_down(part), leaves=True) for part in parts]

    def _check_release(self, caller: Caller, release: Release) -> Endpoint | None:
        endpoint = self._registry.find(release.endpoint_id)
        if endpoint is None:
            return None
        if not self._networks.policy.may_change(caller, endpoint.owner, endpoint.network):
            raise NotAllowed(f"endpoint {release.endpoint_id} belongs to another user, and so is its release")
        if release.generation not in (0, endpoint.generation):
            raise StaleGeneration(
                f"generation {release.generation} of endpoint {release.endpoint_id} is over; "
                f"generation {endpoint.generation} lives now, and isn't what this release means"
            )
        return endpoint

    async def _take_down(self, endpoints: Sequence[Endpoint]) -> None:
        entries = []
        for endpoint in endpoints:
            leaving = msgspec.structs.replace(endpoint, state=State.RELEASING)
            self._registry.update(leaving)
            entries.append(Entry(leaving, self._registry.plan_of(endpoint.endpoint_id)))
        lanes: dict[str, list[Entry]] = {}
        for entry in entries:
            lanes.setdefault(self._deleting_lane(entry.endpoint), []).append(entry)
        parts = [self._take_down_in(lane, part) for lane, part in lanes.items()]
        # With taps alone there is one: it doesn't wait for a task of its own to begin.
        found = [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)
        for error in [error for errors in found for error in errors][:1]:
            raise error

    async def _take_down_in(self, lane: str, entries: Sequence[Entry]) -> list[VifdError]:
        """Take down what shares a lane; give what went wrong."""
        try:
            answers = await self._deleting[lane].do(entries)
        except VifdError as error:
            return [error]
        gone, errors = list[Endpoint](), list[VifdError]()
        for entry, answer in zip(entries, answers, strict=True):
            endpoint, problem = entry.endpoint, answer
            if problem is None and self._has_system(endpoint):
                problem = await unbind(self._networks.drivers[endpoint.network], endpoint)
            if problem is None:
                gone.append(endpoint)
            else:
                self._note_leftover(endpoint, problem)
                errors.append(problem)
        self._works.forget([endpoint for endpoint in gone if self._has_system(endpoint)])
        for endpoint in gone:
            self._registry.remove(endpoint.endpoint_id)
        return errors

    def _note_leftover(self, endpoint: Endpoint, error: VifdError) -> None:
        if self._registry.note_leftover(endpoint.endpoint_id, str(error)) and endpoint.function:
            about = {"endpoint_id": endpoint.endpoint_id, "function": endpoint.function, "error": str(error)}
            _log.error("a released PCI function is kept out of use until it can be made as new", extra=about)

    def _deleting_lane(self, endpoint: Endpoint) -> str:
        if not endpoint.function:
            return ""
        driver = self._networks.drivers.get(endpoint.network)
        return endpoint.function if driver is None else driver.lane(endpoint.function)

    def _has_system(self, endpoint: Endpoint) -> bool:
        driver = self._networks.drivers.get(endpoint.network)
        return driver is not None and driver.has_system


def _lane_of(jobs: Sequence[Job]) -> str:
    """Give the lane that a group is made in: that of its first PCI function, if it has any."""
    return next((job.driver.lane(job.endpoint.function) for job in jobs if job.endpoint.function), "")


async def _is_unbound(job: Job) -> bool:
    """Tell the network system that an endpoint came to nothing; why that fails matters less than why it came to nothing."""
    error = await unbind(job.driver, job.endpoint)
    if error is not None:
        about = {"endpoint_id": job.endpoint.endpoint_id, "error": str(error)}
        _log.error("the network system can't be told of an undone endpoint", extra=about)
    return error is None


def _in_use(endpoint_id: str) -> IdInUse:
    return IdInUse(f"endpoint {endpoint_id} exists with another spec or owner; choose a new id, or release that one first")
