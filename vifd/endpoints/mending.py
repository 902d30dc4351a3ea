"""Drifts: what of an endpoint somebody else has changed, and how it is mended.

They are looked for when the kernel tells of something (`look`), when a caller asks (`check`), at each start, and now and then for
what no event tells, like a tap that was given away. What couldn't be mended is tried again each time. A repair touches no device
that doesn't carry the endpoint's mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from logging import getLogger

import msgspec

from vifd.endpoints.busy import Busy
from vifd.endpoints.changes import change_plan
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Registry
from vifd.endpoints.systems import bugs_told
from vifd.endpoints.views import Views
from vifd.errors import NotAllowed, VifdError
from vifd.kernel import ops
from vifd.kernel.room import Room
from vifd.model import Caller, Drift, DriftKind, Endpoint, MacvtapDevice, PciDevice, State, TapDevice, VdpaDevice

_log = getLogger(__name__)
_AT_ONCE = 64
#: What of a VF is mended by binding it again.
_OF_BINDING = {DriftKind.OWNER, DriftKind.BINDING, DriftKind.NAME}


async def find_drifts(room: Room, entries: Sequence[Entry]) -> list[tuple[Drift, ...]]:
    """Compare endpoints with what is there, a few at a time, so that requests get their turn in between."""
    planned = [entry for entry in entries if entry.plan]
    found: dict[str, tuple[Drift, ...]] = {}
    for start in range(0, len(planned), _AT_ONCE):
        part = planned[start : start + _AT_ONCE]
        answers = await room.check([entry.plan for entry in part])
        found |= {entry.endpoint.endpoint_id: tuple(drifts) for entry, drifts in zip(part, answers, strict=True)}
    return [found.get(entry.endpoint.endpoint_id, ()) for entry in entries]


async def mend(room: Room, entry: Entry, drifts: Iterable[Drift]) -> tuple[Entry, tuple[Drift, ...]]:
    """Mend an endpoint as far as it goes.

    Args:
        room: the kernel.
        entry: the endpoint as it should be.
        drifts: what differs.

    Returns:
        The endpoint, whose device may be a new one, and what differs still, with the reason.
    """
    kinds = {drift.kind for drift in drifts}
    is_missing = DriftKind.DEVICE_MISSING in kinds
    plan = entry.plan if is_missing else change_plan(None, entry) or entry.plan
    # By itself, for what else differs is mended also where a tap can't be given back now.
    owner = () if is_missing else _owner_plan(entry, kinds)
    answers = await room.change([(one,) for one in (plan, *([owner] if owner else []))])
    for made in answers:
        if not isinstance(made, VifdError):
            entry = Entry(_moved(entry.endpoint, made[0]), entry.plan)
    if is_missing:
        await room.restore_guard()  # it has the device that is gone still
    (left,) = await find_drifts(room, [entry])
    first, given = answers[:1], answers[1:]
    return entry, tuple(_with_reason(drift, *(given if drift.kind in _OF_BINDING else []), *first) for drift in left)


def tell_of_mending(endpoint: Endpoint, drifts: Iterable[Drift], left: Iterable[Drift]) -> None:
    """Log that an endpoint was mended, and what of it couldn't be."""
    about = _about(endpoint)
    _log.warning("an endpoint is mended", extra=about | {"drifts": [str(drift.kind) for drift in drifts]})
    for drift in left:
        _log.error("a drift is left", extra=about | {"drift": str(drift.kind), "error": drift.message})


def _about(endpoint: Endpoint) -> dict[str, object]:
    return {"endpoint_id": endpoint.endpoint_id}


def _owner_plan(entry: Entry, kinds: set[DriftKind]) -> ops.Plan:
    """Give the plan that gives a tap back to its owner, or binds a VF again; a macvtap's node is part of its change."""
    taps = [op for op in entry.plan if isinstance(op, ops.CreateTap) and DriftKind.OWNER in kinds]
    given = tuple(ops.EnsureOwner(op.endpoint_id, op.ifname, op.owner_uid, op.owner_gid) for op in taps)
    return given or tuple(op for op in entry.plan if isinstance(op, ops.BindFunction) and kinds & _OF_BINDING)


def _with_reason(drift: Drift, *answers: list[ops.Made] | VifdError) -> Drift:
    """Say of a drift why it is there still."""
    reason = next((answer for answer in answers if isinstance(answer, VifdError)), None)
    return drift if reason is None else msgspec.structs.replace(drift, message=f"{drift.message}; it can't be mended: {reason}")


def _facts(drifts: Iterable[Drift]) -> list[tuple[DriftKind, str, str]]:
    """Give what differs, without the words."""
    return [(drift.kind, drift.expected, drift.actual) for drift in drifts]


def _moved(endpoint: Endpoint, made: ops.Made) -> Endpoint:
    """Give an endpoint as it is with the device that was made, or found."""
    location, replace = endpoint.location, msgspec.structs.replace
    if isinstance(location, PciDevice):
        fields = {} if made.function is None else _of_function(made.function)
        fields |= {"representor_ifindex": made.ifindex} if made.ifindex else {}
        return replace(endpoint, location=replace(location, **fields))
    if isinstance(location, MacvtapDevice | VdpaDevice) and made.device_path and location.device_path != made.device_path:
        location = replace(location, device_path=made.device_path)
        endpoint = replace(endpoint, location=location)
    if isinstance(location, TapDevice | MacvtapDevice) and made.ifindex and location.ifindex != made.ifindex:
        return replace(endpoint, location=replace(location, ifindex=made.ifindex), state=State.READY)
    return endpoint


def _of_function(found: ops.FunctionMade) -> dict[str, object]:
    """Give what may be another after a VF was bound anew; its address and its number stay."""
    names = ("pf_ifname", "iommu_group", "numa_node", "vfio_path", "vfio_device_path", "ifname", "representor")
    return {name: getattr(found, name) for name in names}


class Mender:
    """Finds drifts, tells of them, and mends.

    Args:
        journal: notes devices that are made again.
        room: the kernel.
        registry: the endpoints.
        networks: says which networks mend by themselves.
        busy: what is happening to endpoints.
    """

    def __init__(self, journal: Journal, room: Room, registry: Registry, networks: Networks, busy: Busy) -> None:
        self._journal, self._room, self._registry, self._networks, self._busy = journal, room, registry, networks, busy
        self._views = Views(registry, networks)
        #: By whether they are of VFs: those may take seconds, for which no tap waits.
        self._suspects: dict[bool, set[str]] = {False: set(), True: set()}
        self._looking: dict[bool, asyncio.Task[None]] = {}

    async def check(self, caller: Caller, endpoint_id: str, *, repair: bool) -> tuple[tuple[Drift, ...], Endpoint]:
        """Compare an endpoint with what is there, and mend it if that is wanted.

        Args:
            caller: who asks; to have it mended takes the right to change it.
            endpoint_id: the endpoint.
            repair: whether to mend.

        Returns:
            What differed, and the endpoint, with what differs now.

        Raises:
            UnknownEndpoint: there is none that the caller may see.
            NotAllowed: it is somebody else's, and was to be mended.
            TryAgain: vifd is stopping.
        """
        endpoint = self._views.get(caller, endpoint_id)
        if repair and not self._networks.policy.may_change(caller, endpoint.owner, endpoint.network):
            raise NotAllowed(f"endpoint {endpoint_id} belongs to another user, and so does its repair")
        await self._busy.wait([endpoint_id])
        endpoint = self._views.get(caller, endpoint_id)
        self._busy.check_running()
        drifts: tuple[Drift, ...] = await self._busy.start([endpoint], self._settle(endpoint, repair=repair))
        return drifts, self._registry.find(endpoint_id) or endpoint

    def look(self, endpoint_ids: Iterable[str]) -> None:
        """Compare endpoints soon, for something about them was heard; those that something is happening to are left out."""
        for endpoint_id in endpoint_ids:
            endpoint = self._registry.find(endpoint_id)
            if endpoint is not None:
                self._suspects[bool(endpoint.function)].add(endpoint_id)
        for of_vfs, suspects in self._suspects.items():
            if suspects and of_vfs not in self._looking and not self._busy.refuses:
                self._looking[of_vfs] = task = asyncio.get_running_loop().create_task(self._look(suspects))
                task.add_done_callback(partial(self._note_end, of_vfs))

    async def patrol(self, interval_s: float) -> None:
        """Compare every endpoint, some each interval, for what no event tells. It doesn't return."""
        while True:
            for endpoint_ids in self._parts():
                await asyncio.sleep(interval_s)
                self.look(endpoint_ids)
            await asyncio.sleep(interval_s)

    async def on_ruleset(self) -> None:
        """Put the guard's table back, for somebody changed nftables; tell who was without it."""
        if not await self._room.restore_guard():
            return
        guarded = [e for e in self._registry if e.state.is_live and e.port.guard_enabled and e.ifindex]
        _log.warning("somebody changed the guard's table; it is put back", extra={"endpoints": len(guarded)})
        drift = Drift(DriftKind.GUARD, "in place", "changed", "another program changed vifd's table of nftables; it is put back")
        for endpoint in guarded:
            self._registry.update(msgspec.structs.replace(endpoint, drifts=(*endpoint.drifts, drift)))
            self._registry.update(endpoint)

    async def close(self) -> None:
        """End looking, once no more work is taken."""
        if self._looking:
            await asyncio.wait(self._looking.values())

    def _parts(self) -> list[list[str]]:
        ids = [endpoint.endpoint_id for endpoint in self._registry if endpoint.state.is_live and endpoint.location is not None]
        return [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]

    async def _look(self, suspects: set[str]) -> None:
        while suspects and not self._busy.refuses:
            ids = set(suspects)
            suspects.clear()
            endpoints = [e for i in ids if (e := self._registry.find(i)) is not None and self._may_look_at(e)]
            found = await find_drifts(self._room, [self._entry(endpoint) for endpoint in endpoints])
            for endpoint, drifts in zip(endpoints, found, strict=True):
                now = self._registry.find(endpoint.endpoint_id)
                if now is None or not self._may_look_at(now) or now.port != endpoint.port:
                    continue
                driver = self._networks.drivers.get(now.network)
                repair = driver is not None and driver.repairs
                # What couldn't be mended before may be now.
                if _facts(drifts) != _facts(now.drifts) or (drifts and repair):
                    try:
                        await self._busy.start([now], self._settle(now, repair=repair))
                    except VifdError as error:  # which is no reason to leave the others as they are
                        _log.error("an endpoint could not be looked at", extra=_about(now) | {"error": str(error)})

    def _may_look_at(self, endpoint: Endpoint) -> bool:
        idle = endpoint.endpoint_id not in self._busy and not self._busy.refuses
        return idle and endpoint.state.is_live and bool(self._plan_of(endpoint))

    async def _settle(self, endpoint: Endpoint, *, repair: bool) -> tuple[Drift, ...]:
        """Find what differs, tell it, and mend it if that is wanted; give what differed."""
        entry = self._entry(endpoint)
        (of_kernel,) = await find_drifts(self._room, [entry])
        of_system = await self._ask_system(endpoint)
        drifts = (*of_kernel, *of_system)
        is_news = self._tell(endpoint.endpoint_id, drifts)
        if not drifts or not repair or not endpoint.state.is_live:
            return drifts
        mended, left = await mend(self._room, entry, of_kernel) if of_kernel else (entry, ())
        if of_system:
            left = (*left, *await self._ask_system(mended.endpoint, repair=True))
        if is_news:
            tell_of_mending(endpoint, drifts, left)
        now = self._registry.find(endpoint.endpoint_id)
        if now is not None:
            location, state = mended.endpoint.location, mended.endpoint.state
            fields = {"location": location, "state": state} if location != endpoint.location else {}
            if fields or left != now.drifts:
                self._registry.update(msgspec.structs.replace(now, drifts=left, **fields))
        if mended.endpoint.location != endpoint.location:
            # Last, for the device is another whether that can be noted or not; each start finds it anew.
            self._journal.write([Entry(msgspec.structs.replace(mended.endpoint, drifts=()), entry.plan)])
        return drifts

    async def _ask_system(self, endpoint: Endpoint, *, repair: bool = False) -> Sequence[Drift]:
        """Ask an endpoint's network system what differs; to repair that, it is told of the endpoint once more first."""
        driver = self._networks.drivers.get(endpoint.network)
        if driver is None:
            return ()
        with bugs_told(driver.name):
            if repair:
                await driver.bind(endpoint)
            return await driver.check(endpoint)

    def _tell(self, endpoint_id: str, drifts: tuple[Drift, ...]) -> bool:
        """Tell what differs, unless that is known; give whether it was news."""
        now = self._registry.find(endpoint_id)
        is_news = now is not None and _facts(now.drifts) != _facts(drifts)
        if now is not None and is_news:
            self._registry.update(msgspec.structs.replace(now, drifts=drifts))
        return is_news

    def _entry(self, endpoint: Endpoint) -> Entry:
        return Entry(endpoint, self._plan_of(endpoint))

    def _plan_of(self, endpoint: Endpoint) -> ops.Plan:
        return self._registry.plan_of(endpoint.endpoint_id)

    def _note_end(self, of_vfs: bool, task: asyncio.Task[None]) -> None:
        del self._looking[of_vfs]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("drifts could not be looked for", extra={"error": str(error)})
        else:
            self.look(())
