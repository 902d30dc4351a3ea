"""Live changes, over a kernel in memory and a real journal."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BOOT, BRIDGE, ROOT, World, asked, failure_of, world
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.mending import Mender
from vifd.endpoints.policy import Policy
from vifd.errors import KernelRefused, NotAllowed, TryAgain, UnknownEndpoint, Unsupported, WrongState
from vifd.model import Drift, DriftKind, Endpoint, Limits, Port, RateLimit, Vlan

LIMITS = Limits(from_vm=RateLimit(rate_bps=10**8), to_vm=RateLimit())


@pytest.fixture
def changes(one: World) -> Changes:
    return changes_of(one)


def changes_of(one: World) -> Changes:
    return Changes(one.journal, one.room, one.registry, one.networks, one.engine)


def mender_of(one: World) -> Mender:
    return Mender(one.journal, one.room, one.registry, one.networks, one.engine.busy)


def change(number: int = 1, **port: Any) -> Change:
    return Change(endpoint_id(number), Port(**port), list(port))


def current(one: World, number: int = 1) -> Endpoint:
    found = one.registry.find(endpoint_id(number))
    assert found is not None
    return found


async def test_a_change_is_in_the_kernel_the_journal_and_the_answer(one: World, changes: Changes) -> None:
    await one.make()
    changed = await changes.update(ALICE, change(isolated=True, limits=LIMITS))
    assert (changed.port.isolated, changed.port.limits) == (True, LIMITS)
    assert one.room.ports[endpoint_id(1)] == changed.port
    assert one.recorded()[endpoint_id(1)].port == changed.port
    assert current(one) == changed


async def test_what_leaves_the_guard_alone_is_for_who_has_to_have_it_too(one: World, changes: Changes) -> None:
    one.networks.configure(dict(one.drivers), Policy(()))
    await one.make(asked(port=Port(guard_enabled=False)), caller=ROOT)
    changed = await changes.update(ALICE, change(isolated=True))
    assert (changed.owner.uid, changed.port.isolated, changed.port.guard_enabled) == (ALICE.uid, True, False)
    assert isinstance(await failure_of(changes.update(ALICE, change(guard_enabled=False))), NotAllowed)
    assert (await changes.update(ALICE, change(guard_enabled=None))).port.guard_enabled


async def test_what_is_already_so_is_left_alone(one: World, changes: Changes) -> None:
    (made,) = await one.make()
    calls = len(one.room.calls)
    assert await changes.update(ALICE, change(mtu_bytes=made.port.mtu_bytes)) == made
    assert len(one.room.calls) == calls


async def test_what_the_kernel_refuses_leaves_the_old_state(one: World, changes: Changes) -> None:
    (made,) = await one.make()
    one.room.fail_operation(2, KernelRefused("ChangePort", "vdt", errno.ENOMEM, "no memory"))
    assert isinstance(await failure_of(changes.update(ALICE, change(isolated=True))), KernelRefused)
    assert current(one) == made
    assert one.recorded()[endpoint_id(1)].port == made.port
    assert (await changes.update(ALICE, change(isolated=True))).port.isolated


async def test_what_cannot_be_journaled_is_not_begun(one: World, changes: Changes) -> None:
    (made,) = await one.make()
    one.let_journal_write(allowed=False)
    calls = len(one.room.calls)
    assert isinstance(await failure_of(changes.update(ALICE, change(isolated=True))), TryAgain)
    assert len(one.room.calls) == calls
    one.let_journal_write(allowed=True)
    assert current(one) == made
    assert one.recorded()[endpoint_id(1)].port == made.port


async def test_a_change_that_died_before_its_end_is_the_old_after_a_start(
    one: World, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.journal.set_boot_id(BOOT)
    (made,) = await one.make()
    write, written = one.journal.write, []

    def write_once(entries: Any) -> None:
        if written:
            raise TryAgain("the process is dead")
        written.append(entries)
        write(entries)

    monkeypatch.setattr(one.journal, "write", write_once)
    monkeypatch.setattr(changes, "_apply", one_way(changes))
    assert isinstance(await failure_of(changes.update(ALICE, change(isolated=True))), TryAgain)
    assert one.room.ports[endpoint_id(1)].isolated  # the new is in the kernel
    one.crash()
    with world(tmp_path / "journal.db", one.room) as second:
        (found,) = await second.recover()
        assert found.port == made.port
        assert not second.room.ports[endpoint_id(1)].isolated


def one_way(changes: Changes) -> Any:
    """Who is dead takes nothing back: the second call does nothing."""
    apply, applied = changes._apply, []

    async def once(plan: Any) -> Any:
        if not applied:
            applied.append(plan)
            return await apply(plan)
        return None

    return once


async def test_others_have_nothing_to_change(one: World, changes: Changes) -> None:
    await one.make()
    assert isinstance(await failure_of(changes.update(BOB, change(isolated=True))), UnknownEndpoint)
    assert isinstance(await failure_of(changes.update(ALICE, change(2, isolated=True))), UnknownEndpoint)


async def test_a_bridge_has_no_port(one: World, changes: Changes) -> None:
    await one.make(asked(acceptable=BRIDGE))
    assert isinstance(await failure_of(changes.update(ALICE, change(isolated=True))), Unsupported)


async def test_what_the_network_cannot_have_is_refused_before_anything_is_touched(one: World, changes: Changes) -> None:
    (made,) = await one.make()
    in_vlan = BridgeDriver("blue", BridgeOptions("br-blue", "eth1", vlan=100))
    one.networks.configure({**one.networks.drivers, "blue": in_vlan}, one.networks.policy)
    calls = len(one.room.calls)
    error = await failure_of(changes.update(ALICE, change(vlan=Vlan(7))))
    assert isinstance(error, WrongState)
    assert "network blue is VLAN 100 itself" in str(error)
    assert (current(one), len(one.room.calls)) == (made, calls)
    assert (await changes.update(ALICE, change(isolated=True))).port.isolated


async def test_a_network_that_is_gone_changes_nothing(one: World, changes: Changes) -> None:
    await one.make()
    one.networks.configure({}, one.networks.policy)
    assert isinstance(await failure_of(changes.update(ALICE, change(isolated=True))), WrongState)


# --- drifts


async def test_a_check_tells_and_a_repair_mends(one: World) -> None:
    (made,) = await one.make()
    mender = mender_of(one)
    one.room.ports[endpoint_id(1)] = Port(mac=made.port.mac, guard_enabled=not made.port.guard_enabled)
    drifts, told = await mender.check(ALICE, endpoint_id(1), repair=False)
    assert [drift.kind for drift in drifts] == [DriftKind.GUARD]
    assert told.drifts == drifts
    drifts, mended = await mender.check(ALICE, endpoint_id(1), repair=True)
    assert [drift.kind for drift in drifts] == [DriftKind.GUARD]
    assert mended.drifts == ()
    assert one.room.ports[endpoint_id(1)].guard_enabled == made.port.guard_enabled


async def test_a_device_that_is_gone_is_made_again_and_journaled(one: World) -> None:
    (made,) = await one.make()
    del one.room.devices[endpoint_id(1)]
    drifts, mended = await mender_of(one).check(ALICE, endpoint_id(1), repair=True)
    assert [drift.kind for drift in drifts] == [DriftKind.DEVICE_MISSING]
    assert mended.ifindex == one.room.devices[endpoint_id(1)].ifindex != made.ifindex
    assert one.recorded()[endpoint_id(1)].ifindex == mended.ifindex
    assert mended.generation == made.generation


async def test_a_device_that_is_made_again_is_known_though_it_cannot_be_noted(one: World) -> None:
    await one.make()
    del one.room.devices[endpoint_id(1)]
    one.let_journal_write(allowed=False)
    assert isinstance(await failure_of(mender_of(one).check(ALICE, endpoint_id(1), repair=True)), TryAgain)
    found = one.registry.find_by_ifindex(one.room.devices[endpoint_id(1)].ifindex)
    assert found == current(one)
    assert found.drifts == ()


async def test_what_cannot_be_mended_is_told_with_the_reason(one: World) -> None:
    await one.make()
    del one.room.devices[endpoint_id(1)]
    one.room.fail_operation(2, KernelRefused("CreateTap", "vdt", errno.EBUSY, "it is somebody's"))
    _, left = await mender_of(one).check(ALICE, endpoint_id(1), repair=True)
    (drift,) = left.drifts
    assert drift.kind is DriftKind.DEVICE_MISSING
    assert "it is somebody's" in drift.message


async def test_what_is_heard_is_mended_without_being_asked(one: World) -> None:
    await one.make(asked(1), asked(2))
    mender = mender_of(one)
    del one.room.devices[endpoint_id(2)]
    mender.look([endpoint_id(1), endpoint_id(2), endpoint_id(3)])
    assert mender._looking
    await mender.close()
    assert endpoint_id(2) in one.room.devices
    assert current(one, 2).drifts == ()


async def test_what_only_the_network_system_knows_is_mended_by_telling_it_once_more(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.make(asked(network="red"))
    one.noting.drifts[endpoint_id(1)] = (Drift(DriftKind.GUARD, "", "", "the switch has another rule"),)
    monkeypatch.setattr(one.noting, "_note", lambda *_: one.noting.drifts.clear())
    drifts, mended = await mender_of(one).check(ALICE, endpoint_id(1), repair=True)
    assert ([drift.kind for drift in drifts], mended.drifts) == ([DriftKind.GUARD], ())


async def test_what_a_network_system_has_wrong_still_stays_though_the_rest_is_mended(one: World) -> None:
    await one.make(asked(network="red"))
    stale = Drift(DriftKind.GUARD, "", "", "the switch has another rule")
    one.noting.drifts[endpoint_id(1)] = (stale,)
    one.room.change_mtu(endpoint_id(1), 1400)
    drifts, mended = await mender_of(one).check(ALICE, endpoint_id(1), repair=True)
    assert [drift.kind for drift in drifts] == [DriftKind.MTU, DriftKind.GUARD]
    assert mended.drifts == (stale,)


@pytest.mark.parametrize("error", [TryAgain("the switch is away"), ZeroDivisionError("a driver's bug")])
async def test_a_network_system_that_cannot_be_asked_leaves_nobody_else_as_it_is(
    one: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    await one.make(asked(1, network="red"), asked(2), asked(3, network="red"))
    for number in (1, 2, 3):
        one.room.change_mtu(endpoint_id(number), 1400)
    one.noting.refuses |= {("check", endpoint_id(number)): error for number in (1, 3)}
    await look(mender_of(one), 1, 2, 3)
    assert [one.room.devices[endpoint_id(number)].mtu_bytes for number in (1, 2, 3)] == [1400, 1500, 1400]
    assert "could not be looked at" in caplog.text


async def test_a_vifd_that_stops_looks_at_nothing(one: World) -> None:
    await one.make()
    mender = mender_of(one)
    one.room.change_mtu(endpoint_id(1), 1400)
    one.engine.refuse_work()
    await look(mender, 1)
    assert isinstance(await failure_of(mender.check(ALICE, endpoint_id(1), repair=True)), TryAgain)
    assert one.room.devices[endpoint_id(1)].mtu_bytes == 1400


async def look(mender: Mender, *numbers: int) -> None:
    mender.look(map(endpoint_id, numbers))
    while mender._looking:
        await mender.close()


async def test_a_tap_that_was_given_away_is_given_back(one: World) -> None:
    await one.make()
    one.room.give_away(endpoint_id(1), held=False)
    await look(mender_of(one), 1)
    assert (one.room.given_away, current(one).drifts) == ({}, ())


async def test_a_tap_that_is_held_is_given_back_later_and_told_of_once(one: World) -> None:
    (made,) = await one.make()
    mender = mender_of(one)
    one.room.give_away(endpoint_id(1), held=True)
    one.room.change_mtu(endpoint_id(1), 1400)
    told: list[Endpoint] = []
    one.registry.listen(lambda _, endpoint: told.append(endpoint))
    for _ in range(3):
        await look(mender, 1)
    assert [[drift.kind for drift in endpoint.drifts] for endpoint in told] == [
        [DriftKind.MTU, DriftKind.OWNER],
        [DriftKind.OWNER],
    ]
    assert current(one).drifts[0].message == "it belongs to uid 4242; it can't be mended: its only queue is held"
    assert one.room.devices[endpoint_id(1)].mtu_bytes == 1500
    one.room.give_away(endpoint_id(1), held=False)
    await look(mender, 1)
    assert current(one) == made


async def test_the_patrol_looks_at_every_endpoint_by_itself(one: World) -> None:
    await one.make(asked(1), asked(2))
    mender, mended = mender_of(one), asyncio.Event()
    one.room.give_away(endpoint_id(2), held=False)
    one.registry.listen(lambda _, endpoint: None if endpoint.drifts else mended.set())
    patrol = asyncio.create_task(mender.patrol(0))
    await mended.wait()
    patrol.cancel()
    await mender.close()
    assert one.room.given_away == {}


async def test_a_table_that_was_changed_is_told_by_each_guarded_endpoint(one: World) -> None:
    await one.make()
    mender = mender_of(one)
    await mender.on_ruleset()
    before = current(one)
    one.room.flushed = True
    await mender.on_ruleset()
    assert current(one) == before
    assert not one.room.flushed


async def test_only_its_owner_has_it_mended(one: World) -> None:
    await one.make()
    assert isinstance(await failure_of(mender_of(one).check(BOB, endpoint_id(1), repair=True)), UnknownEndpoint)
