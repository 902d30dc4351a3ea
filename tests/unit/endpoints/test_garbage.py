from __future__ import annotations

import asyncio

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, ROOT, World, asked, failure_of, released
from vifd.config import PolicyRule, Role
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.garbage import Collection
from vifd.endpoints.policy import Policy
from vifd.errors import KernelRefused, TryAgain
from vifd.model import Caller, Port, State


def ids(*numbers: int) -> list[str]:
    return [endpoint_id(number) for number in numbers]


def keep(*numbers: int, **options: object) -> Collection:
    return Collection(frozenset(ids(*numbers)), **options)


def left(one: World) -> list[str]:
    return sorted(endpoint.endpoint_id for endpoint in one.registry)


async def test_what_isnt_kept_is_released(one: World) -> None:
    await one.make(*(asked(number) for number in (3, 1, 2)))
    assert await one.garbage.collect(ALICE, keep(2, 9)) == ids(1, 3)
    assert (left(one), list(one.recorded()), list(one.room.devices)) == (ids(2), ids(2), ids(2))


async def test_again_there_is_nothing_to_release(one: World) -> None:
    await one.make(asked(1), asked(2))
    await one.garbage.collect(ALICE, keep(2))
    assert await one.garbage.collect(ALICE, keep(2)) == []
    assert [call for call, _ in one.room.calls] == ["apply", "revert"]


async def test_a_dry_run_only_tells(one: World) -> None:
    await one.make(asked(1), asked(2))
    assert await one.garbage.collect(ALICE, keep(2, dry_run=True)) == ids(1)
    assert left(one) == ids(1, 2)


async def test_only_those_on_a_network(one: World) -> None:
    await one.make(asked(1), asked(2, "red"))
    assert await one.garbage.collect(ALICE, keep(network="red")) == ids(2)
    assert left(one) == ids(1)


@pytest.mark.parametrize("caller", [ROOT, BOB])
async def test_whatever_the_callers_role_only_its_own_are_released(one: World, caller: Caller) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid), PolicyRule(uid=BOB.uid, role=Role.ADMIN)]))
    await one.make(asked(1), asked(2, uid=BOB.uid), asked(3, uid=ROOT.uid), caller=ROOT)
    released = ids(2) if caller is BOB else ids(3)
    assert await one.garbage.collect(caller, keep()) == released
    assert left(one) == sorted({*ids(1, 2, 3)} - {*released})


async def test_what_is_being_made_stays(one: World) -> None:
    await one.make(asked(1))
    await one.room.entered()
    one.room.hold()
    making = asyncio.create_task(one.make(asked(2)))
    await one.room.entered()
    collecting = asyncio.create_task(one.garbage.collect(ALICE, keep()))
    one.room.go_on()
    assert await collecting == ids(1)
    (endpoint,) = await making
    assert (list(one.registry), endpoint.state) == ([endpoint], State.READY)


async def test_what_is_asked_for_after_the_call_stays_also_under_the_same_id(one: World) -> None:
    """While the collection waits for a work on the first, the second is released and requested anew by its owner."""
    first, second = await one.make(asked(1), asked(2))
    end = asyncio.Event()
    one.engine.busy.begin([first], end.wait())
    collecting = asyncio.create_task(one.garbage.collect(ALICE, keep()))
    await asyncio.sleep(0)
    await one.drop(released(2))
    (anew,) = await one.make(asked(2))
    end.set()
    assert await collecting == ids(1, 2)
    assert list(one.registry) == [anew]
    assert anew.generation > second.generation


async def test_what_is_being_changed_is_released_after_that(one: World) -> None:
    await one.make(asked(1))
    await one.room.entered()
    one.room.hold()
    changes = Changes(one.journal, one.room, one.registry, one.networks, one.engine)
    changing = asyncio.create_task(changes.update(ALICE, Change(endpoint_id(1), Port(isolated=True), ["isolated"])))
    await one.room.entered()
    collecting = asyncio.create_task(one.garbage.collect(ALICE, keep()))
    await asyncio.sleep(0)
    one.room.go_on()
    assert (await changing).port.isolated
    assert await collecting == ids(1)
    assert one.is_empty()


async def test_a_collection_and_a_release_at_once_share_the_work(one: World) -> None:
    await one.make(asked(1), asked(2))
    await asyncio.gather(one.drop(), one.garbage.collect(ALICE, keep()), one.garbage.collect(ALICE, keep()))
    assert one.is_empty()
    assert sum(plans for call, plans in one.room.calls if call == "revert") == 2


async def test_what_the_kernel_keeps_fails_the_call_and_the_others_are_gone(one: World) -> None:
    await one.make(asked(1), asked(2), asked(3))
    one.room.keep(endpoint_id(2))
    assert isinstance(await failure_of(one.garbage.collect(ALICE, keep())), KernelRefused)
    assert [endpoint.state for endpoint in one.registry] == [State.RELEASING]
    one.room.let_go(endpoint_id(2))
    assert await one.garbage.collect(ALICE, keep()) == ids(2)
    assert one.is_empty()


async def test_more_than_the_helper_takes_in_a_call_are_released(one: World) -> None:
    for start in range(1, 601, 50):
        await one.make(*map(asked, range(start, start + 50)))
    assert len(await one.garbage.collect(ALICE, keep(7))) == 599
    assert left(one) == ids(7)


async def test_a_vifd_that_stops_collects_nothing(one: World) -> None:
    await one.make()
    one.engine.refuse_work()
    assert isinstance(await failure_of(one.garbage.collect(ALICE, keep())), TryAgain)
    assert left(one) == ids(1)
