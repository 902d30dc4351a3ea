"""vDPA devices: where they are made, what becomes of them, and what is done about those that are open still."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.messages import endpoint_id
from tests.support.vdpa_host import FIRST, SECOND
from tests.support.vdpa_world import VdpaWorld, vdpa_asked, vdpa_world
from tests.support.worlds import ALICE, failure_of, released
from vifd.endpoints.busy import Busy
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.mending import Mender
from vifd.errors import KernelRefused, NetworkFull, Unsupported
from vifd.kernel import names
from vifd.model import DriftKind, Kind, Port, State, VdpaDevice


@pytest.fixture
def one(tmp_path: Path) -> Iterator[VdpaWorld]:
    with vdpa_world(tmp_path) as made:
        yield made


def name(number: int) -> str:
    return names.device_name(Kind.VDPA, endpoint_id(number))


def mender(one: VdpaWorld) -> Mender:
    busy: Busy = one.engine.busy
    return Mender(one.journal, one.room, one.registry, one.networks, busy)


async def test_an_endpoint_has_a_device_which_the_journal_and_the_answer_name(one: VdpaWorld) -> None:
    (made,) = await one.make(vdpa_asked())
    assert made.location == VdpaDevice("/dev/vhost-vdpa-0", name(1), 1)
    assert (made.function, made.state, made.port.mtu_bytes) == (names.place(FIRST, 0), State.READY, 1500)
    assert one.recorded()[endpoint_id(1)] == made
    assert one.host.owners == {name(1): (ALICE.uid, 0o600)}


async def test_devices_are_spread_and_a_full_management_device_is_left_alone(one: VdpaWorld) -> None:
    made = await one.make(vdpa_asked(1), vdpa_asked(2))
    assert [endpoint.function for endpoint in made] == [names.place(FIRST, 0), names.place(SECOND, 0)]
    one.host.full.add(FIRST)
    (third,) = await one.make(vdpa_asked(3))
    assert third.function == names.place(SECOND, 1)
    assert one.host.devices[name(3)][0] == SECOND


async def test_when_all_are_full_the_network_is_and_nothing_is_left(one: VdpaWorld) -> None:
    one.host.full |= {FIRST, SECOND}
    error = await failure_of(one.make(vdpa_asked()))
    assert isinstance(error, NetworkFull)
    assert f"vDPA management device {FIRST} takes no more devices" in str(error)
    assert one.is_empty()
    assert (one.host.devices, one.host.marked()) == ({}, [])


async def test_a_device_stays_as_it_was_made(one: VdpaWorld) -> None:
    await one.make(vdpa_asked())
    changes = Changes(one.journal, one.room, one.registry, one.networks, one.engine)
    error = await failure_of(changes.update(ALICE, Change(endpoint_id(1), Port(mtu_bytes=1400), ["mtu_bytes"])))
    assert isinstance(error, Unsupported)
    assert one.recorded()[endpoint_id(1)].port.mtu_bytes == 1500


async def test_an_owner_that_was_changed_is_mended_and_the_device_stays(one: VdpaWorld) -> None:
    await one.make(vdpa_asked())
    one.host.owners[name(1)] = (4242, 0o600)
    one.host.open.add(name(1))
    one.host.steps.clear()
    drifts, _ = await mender(one).check(ALICE, endpoint_id(1), repair=True)
    assert [drift.kind for drift in drifts] == [DriftKind.OWNER]
    assert one.host.steps == [f"give to {ALICE.uid}"]


async def test_a_device_that_is_gone_is_made_again(one: VdpaWorld) -> None:
    await one.make(vdpa_asked(1), vdpa_asked(2))
    one.host.delete(name(1))
    one.host.numbers = 7
    drifts, endpoint = await mender(one).check(ALICE, endpoint_id(1), repair=True)
    assert [drift.kind for drift in drifts] == [DriftKind.DEVICE_MISSING]
    assert endpoint.location == VdpaDevice("/dev/vhost-vdpa-7", name(1), 1)
    assert one.recorded()[endpoint_id(1)].location == endpoint.location
    assert one.host.owners[name(1)] == (ALICE.uid, 0o600)


async def test_what_is_open_stays_and_is_tried_again(one: VdpaWorld) -> None:
    await one.make(vdpa_asked())
    one.host.open.add(name(1))
    assert isinstance(await failure_of(one.drop(released())), KernelRefused)
    assert one.recorded()[endpoint_id(1)].state is State.RELEASING
    (task,) = one.leftovers.retry()
    with pytest.raises(KernelRefused, match="open still"):
        await task
    one.host.open.clear()
    await asyncio.gather(*one.leftovers.retry())
    assert (one.is_empty(), one.host.devices, one.host.marked()) == (True, {}, [])


async def test_a_device_lives_on_over_a_restart(one: VdpaWorld) -> None:
    (made,) = await one.make(vdpa_asked())
    one.crash()
    with contextlib.closing(one.restarted()) as after:
        assert await after.recover() == [made]
        assert list(one.host.devices) == [name(1)]
        (second,) = await after.make(vdpa_asked(2))
        assert second.function == names.place(SECOND, 0)


async def test_a_marked_device_that_no_record_knows_is_deleted(one: VdpaWorld) -> None:
    await one.make(vdpa_asked())
    one.journal.write([], forget=[endpoint_id(1)])
    one.crash()
    with contextlib.closing(one.restarted()) as after:
        assert await after.recover() == []
    assert (one.host.devices, one.host.marked()) == ({}, [])


async def test_a_stray_device_that_is_open_is_nobodys_and_tried_again(one: VdpaWorld) -> None:
    await one.make(vdpa_asked())
    one.host.open.add(name(1))
    one.journal.write([], forget=[endpoint_id(1)])
    one.crash()
    with contextlib.closing(one.restarted()) as after:
        (stuck,) = await after.recover()
        assert (stuck.endpoint_id, stuck.state, stuck.function) == (endpoint_id(1), State.RELEASING, name(1))
        one.host.open.clear()
        await asyncio.gather(*after.leftovers.retry())
        assert (after.is_empty(), one.host.devices, one.host.marked()) == (True, {}, [])


async def test_a_request_that_fails_leaves_nothing(one: VdpaWorld) -> None:
    one.host.failing["add"] = OSError(errno.EINVAL, "Invalid argument")
    assert isinstance(await failure_of(one.make(vdpa_asked())), KernelRefused)
    assert (one.is_empty(), one.host.devices, one.host.marked()) == (True, {}, [])
