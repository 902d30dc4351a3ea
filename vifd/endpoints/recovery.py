"""Start-up: bring the journal and the kernel together again. A second pass changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any, TypeVar

import msgspec

from vifd.drivers.base import NetworkDriver
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.mending import find_drifts, mend, tell_of_mending
from vifd.endpoints.systems import unbind
from vifd.errors import VifdError
from vifd.kernel.names import device_name, host_mac
from vifd.kernel.ops import ClaimFunction, CreateMacvtap, CreateTap, CreateVdpa, Device, Plan
from vifd.kernel.processes import Processes
from vifd.kernel.room import Room
from vifd.model import (
    Drift,
    Endpoint,
    Kind,
    MacvtapDevice,
    MacvtapMode,
    Owner,
    Port,
    ProcessLifetime,
    State,
    TapDevice,
)

_log = getLogger(__name__)
_T = TypeVar("_T")
#: What is no network device of the host, in words.
_ALONE: Mapping[str, str] = {Kind.PCI: "VF", Kind.VDPA: "vDPA device"}
_AT_ONCE = 256  # the helper takes no more than a few hundred plans in a call


async def recover(
    journal: Journal, room: Room, boot_id: str, drivers: Mapping[str, NetworkDriver[Any]], processes: Processes
) -> list[Entry]:
    """Undo what was never answered, finish what was being taken down or is over, check and mend the rest, and sweep up strays.

    Args:
        journal: the journal as the last run left it.
        room: the kernel.
        boot_id: of the running kernel; if it is another than the journal's, the kernel part of every endpoint is gone with the
        host.
        drivers: by network; they tell their network systems of endpoints that are gone.
        processes: those that endpoints live as long as.

    Returns:
        The endpoints that live, READY, ATTACHED or ACTIVE; and those that could not be taken down, RELEASING.

    Raises:
        HelperLostError: nothing can be said.
        JournalDamaged: nothing was changed.
    """
    entries = journal.load()
    if journal.boot_id != boot_id:
        if entries:
            _log.info("the host was started anew: endpoints are forgotten", extra={"endpoints": len(entries)})
        entries = await _forget(journal, drivers, entries)
        journal.set_boot_id(boot_id)
    unfinished, finished = list[Entry](), list[Entry]()
    for entry in entries:
        (unfinished if _is_unfinished(entry) or _is_over(entry, processes) else finished).append(entry)
    kept = await _take_down(journal, room, drivers, unfinished)
    living = await _mend(journal, room, drivers, finished)
    stuck = await _sweep(room, {entry.endpoint.endpoint_id for entry in entries})
    return living + kept + _adopt(journal, stuck)


def _is_unfinished(entry: Entry) -> bool:
    return entry.endpoint.state in (State.PENDING, State.RELEASING)


def _is_over(entry: Entry, processes: Processes) -> bool:
    """Tell whether an endpoint's process has ended; whether a lease would have, nobody could say while vifd was down."""
    process = entry.endpoint.lifetime
    if not isinstance(process, ProcessLifetime):
        return False
    try:
        is_over = processes.has_ended(process)
    except VifdError as error:
        _log.error("whether an endpoint's process lives can't be told; it stays", extra=_about(entry, error))
        return False
    if is_over:
        about = {"endpoint_id": entry.endpoint.endpoint_id, "reason": f"process {process.pid} has ended"}
        _log.info("an endpoint's lifetime is over: it is released", extra=about)
    return is_over


async def _forget(journal: Journal, drivers: Mapping[str, NetworkDriver[Any]], entries: Sequence[Entry]) -> list[Entry]:
    """Forget endpoints that the kernel has no more; give those that the network system doesn't let go, as RELEASING."""
    gone, kept = [], []
    for entry in entries:
        error = await unbind(drivers.get(entry.endpoint.network), entry.endpoint)
        if error is None:
            gone.append(entry.endpoint.endpoint_id)
        else:
            _log.error("a network system doesn't let an endpoint go", extra=_about(entry, error))
            kept.append(_replace(entry, state=State.RELEASING))
    journal.write(kept, forget=gone)
    return kept


async def _take_down(
    journal: Journal, room: Room, drivers: Mapping[str, NetworkDriver[Any]], entries: Sequence[Entry]
) -> list[Entry]:
    """Take unfinished endpoints down; give those that can't be, as RELEASING."""
    answers = await _revert(room, [entry.plan for entry in entries])
    gone = [entry for entry, error in zip(entries, answers, strict=True) if error is None]
    kept = await _forget(journal, drivers, gone)
    if gone:
        _log.info("unfinished endpoints are taken down", extra={"endpoints": len(gone)})
    for entry, error in zip(entries, answers, strict=True):
        if error is not None:
            _log.error("an unfinished endpoint can't be taken down", extra=_about(entry, error))
            kept.append(_replace(entry, state=State.RELEASING))
    return kept


async def _mend(journal: Journal, room: Room, drivers: Mapping[str, NetworkDriver[Any]], entries: Sequence[Entry]) -> list[Entry]:
    """Bring back what differs, or tell of it where the network isn't to be mended; and note which devices are open."""
    drifts = await find_drifts(room, entries)
    mended = [await _settle(room, drivers, entry, differs) for entry, differs in zip(entries, drifts, strict=True)]
    devices = await _inspect(room, [entry.endpoint.endpoint_id for entry in mended if _needs_device(entry)])
    living = [_note_open(entry, devices.get(entry.endpoint.endpoint_id)) for entry in mended]
    changed = [now for before, now in zip(entries, living, strict=True) if before.changing or _as_noted(now) != _as_noted(before)]
    journal.write([_replace(entry, state=entry.endpoint.state.at_rest, drifts=()) for entry in changed])
    return living


async def _settle(room: Room, drivers: Mapping[str, NetworkDriver[Any]], entry: Entry, drifts: tuple[Drift, ...]) -> Entry:
    driver = drivers.get(entry.endpoint.network)
    if drifts and driver is not None and (entry.changing or driver.repairs):
        found = drifts
        entry, drifts = await mend(room, entry, found)
        tell_of_mending(entry.endpoint, found, drifts)
    return _replace(entry, drifts=drifts)


def _note_open(entry: Entry, device: Device | None) -> Entry:
    if device is None:
        return entry
    state = entry.endpoint.state
    if isinstance(entry.endpoint.location, TapDevice):
        open_state = State.ACTIVE if state is State.ACTIVE else State.ATTACHED
        state = open_state if device.carrier else State.READY
    return _replace(entry, state=state, location=_moved(entry.endpoint, device))


async def _sweep(room: Room, known: set[str]) -> list[Device]:
    """Delete marked devices that no record knows, unless somebody has them open; give those that can't be taken down."""
    strays = [device for device in await room.inspect([]) if device.endpoint_id not in known]
    #: Whose macvtap may be in use: the VF that one stands on stays as well.
    in_use = {device.endpoint_id for device in strays if _may_be_in_use(device)}
    for device in strays:
        if device.carrier:
            _log.warning("a tap of vifd's that no record knows is in use: it stays", extra={"device": device.ifname})
        elif _may_be_in_use(device):
            message = (
                "a macvtap of vifd's that no record knows may be in use, which nobody can tell: it stays until it is set down"
            )
            _log.warning(message, extra={"device": device.ifname})
    idle = [device for device in strays if not device.carrier and device.endpoint_id not in in_use]
    if not idle:
        return []
    answers = await _revert(room, [_plan_for(device) for device in idle])
    # Who took all its names from a device hid it from the deletion, which finds it by them.
    left = {_identity(device) for device in await room.inspect([])}
    for device, error in zip(idle, answers, strict=True):
        what = _ALONE.get(device.kind, "tap")
        if _identity(device) not in left:
            _log.warning(f"a {what} of vifd's that no record knows is deleted", extra={"device": device.ifname})
        else:
            reason = str(error or "it was renamed and has no alternative name; delete it by hand")
            _log.error(f"a stray {what} can't be deleted", extra={"device": device.ifname, "error": reason})
    return [device for device in idle if device.kind in _ALONE and _identity(device) in left]


def _adopt(journal: Journal, stuck: Sequence[Device]) -> list[Entry]:
    """Make records of VFs and vDPA devices that nobody knows of and that can't be taken down: nobody's, and tried again."""
    entries = [
        Entry(
            Endpoint(
                endpoint_id=device.endpoint_id,
                generation=journal.next_generation(),
                spec_hash="",
                network="",
                network_driver="",
                state=State.RELEASING,
                port=Port(),
                owner=Owner(0),
                create_time_ns=time.time_ns(),
                function=device.ifname,
            ),
            _plan_for(device),
        )
        for device in stuck
    ]
    journal.write(entries)
    return entries


def _identity(device: Device) -> int | str:
    """Give what tells a device from others: a VF and a vDPA device have no index, and no other name."""
    return device.ifname if device.kind in _ALONE else device.ifindex


def _may_be_in_use(device: Device) -> bool:
    return device.kind == Kind.MACVTAP and device.up


def _plan_for(device: Device) -> Plan:
    """Give a plan whose undoing deletes a device: only its name and mark count for that."""
    if device.kind == Kind.PCI:
        return (ClaimFunction(device.endpoint_id, "", device.ifname, Port()),)
    if device.kind == Kind.VDPA:
        return (CreateVdpa(device.endpoint_id, device.ifname, "", "", Port(), 1),)
    if device.kind == Kind.MACVTAP:
        ifname = device_name(Kind.MACVTAP, device.endpoint_id)
        return (CreateMacvtap(device.endpoint_id, ifname, "", "02:00:00:00:00:00", MacvtapMode.BRIDGE),)
    ifname = device_name(Kind.TAP, device.endpoint_id)
    return (CreateTap(device.endpoint_id, ifname, host_mac("02:00:00:00:00:00"), 0, None, 1, vnet_hdr=True),)


async def _inspect(room: Room, endpoint_ids: Sequence[str]) -> dict[str, Device]:
    """Look at devices; no id must not mean all of them."""
    return {device.endpoint_id: device for part in _parts(endpoint_ids) for device in await room.inspect(part)}


async def _revert(room: Room, plans: Sequence[Plan]) -> list[VifdError | None]:
    return [error for part in _parts(plans) for error in await room.revert(part)]


def _parts(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[i : i + _AT_ONCE] for i in range(0, len(items), _AT_ONCE)]


def _as_noted(entry: Entry) -> tuple[object, State]:
    """Give what the journal keeps of what a start may find changed."""
    return entry.endpoint.location, entry.endpoint.state.at_rest


def _needs_device(entry: Entry) -> bool:
    return bool(entry.plan) and entry.endpoint.ifindex != 0


def _moved(endpoint: Endpoint, device: Device) -> object:
    location = endpoint.location
    if isinstance(location, MacvtapDevice):
        return msgspec.structs.replace(location, ifindex=device.ifindex, device_path=device.device_path)
    if isinstance(location, TapDevice) and location.ifindex != device.ifindex:
        return msgspec.structs.replace(location, ifindex=device.ifindex)
    return location


def _replace(entry: Entry, **fields: object) -> Entry:
    return Entry(msgspec.structs.replace(entry.endpoint, **fields), entry.plan)


def _about(entry: Entry, error: VifdError) -> dict[str, str]:
    return {"endpoint_id": entry.endpoint.endpoint_id, "error": str(error)}
