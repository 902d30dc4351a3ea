"""VFs: which one an endpoint gets, what becomes of it, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.messages import endpoint_id
from tests.support.nics import NicWorld, macvtap_asked, nic_world, vf, vf_asked
from tests.support.worlds import ALICE, BOB, ROOT, asked, failure_of, released
from vifd.drivers.functions import FunctionState
from vifd.errors import FunctionTaken, KernelRefused, NetworkFull, NoAcceptableKind, NotAllowed
from vifd.kernel import names
from vifd.model import Caller, Instance, Kind, MacvtapDevice, PciDevice, PciHostDriver, Port, State


@pytest.fixture
def nics(tmp_path: Path) -> Iterator[NicWorld]:
    with nic_world(tmp_path) as made:
        yield made


def functions(one: NicWorld, *numbers: int) -> list[str]:
    return [found.function for number in numbers if (found := one.registry.find(endpoint_id(number))) is not None]


async def test_an_endpoint_has_a_vf_which_the_journal_and_the_answer_name(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked(driver=PciHostDriver.KERNEL))
    assert made.location == PciDevice(vf(0, 0), "ens1f0", 0, PciHostDriver.KERNEL, 0, "/dev/vfio/0", numa_node=0)
    assert (made.function, made.state) == (vf(0, 0), State.READY)
    assert nics.recorded()[endpoint_id(1)] == made
    assert nics.nics.claimed == {vf(0, 0): endpoint_id(1)}


async def test_the_vf_is_in_the_journal_before_the_kernel_is_touched(nics: NicWorld) -> None:
    nics.room.hold()
    task = asyncio.create_task(nics.make(vf_asked()))
    await nics.room.entered()
    assert nics.recorded()[endpoint_id(1)].function == vf(0, 0)
    nics.room.go_on()
    await task


async def test_the_endpoints_of_a_batch_have_one_each(nics: NicWorld) -> None:
    made = await nics.make(vf_asked(1), asked(2), vf_asked(3), vf_asked(4))
    assert [one.function for one in made] == [vf(0, 0), "", vf(1, 0), vf(0, 1)]


async def test_requests_that_run_at_once_never_get_the_same_one(nics: NicWorld) -> None:
    made = await asyncio.gather(*(nics.make(vf_asked(number)) for number in range(1, 7)))
    assert len({one.function for (one,) in made}) == 6


async def test_the_same_request_again_gives_the_same_vf(nics: NicWorld) -> None:
    (one,), (again,) = await nics.make(vf_asked()), await nics.make(vf_asked())
    assert again == one


async def test_when_all_are_in_use_the_network_is_full_until_one_is_released(nics: NicWorld) -> None:
    for number in range(1, 7):
        await nics.make(vf_asked(number))
    error = await failure_of(nics.make(vf_asked(7)))
    assert isinstance(error, NetworkFull)
    assert "of 6, 6 in use by endpoints" in str(error)
    assert nics.registry.find(endpoint_id(7)) is None
    await nics.drop(released(3))
    (made,) = await nics.make(vf_asked(7))
    assert made.function == vf(0, 1)


async def test_a_batch_that_does_not_fit_takes_nothing(nics: NicWorld) -> None:
    error = await failure_of(nics.make(asked(9), *(vf_asked(number) for number in range(1, 8))))
    assert isinstance(error, NetworkFull)
    assert nics.is_empty()
    assert (nics.nics.claimed, nics.registry.functions()) == ({}, {})


async def test_a_preview_takes_none_and_knows_the_one_that_is_there(nics: NicWorld) -> None:
    first = await nics.engine.request(ALICE, [vf_asked(1, validate_only=True), vf_asked(2, validate_only=True)])
    assert [answer.endpoint.function for answer in first] == [vf(0, 0), vf(1, 0)]
    assert [str(step).startswith(("take VF", "bind VF")) for step in first[0].plan] == [True, True]
    assert (nics.registry.functions(), nics.nics.ran) == ({}, [])
    await nics.make(vf_asked(1))
    (again,) = await nics.engine.request(ALICE, [vf_asked(1, validate_only=True)])
    assert again.endpoint.function == vf(0, 0)


async def test_the_instances_numa_node_decides(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked(instance=Instance(numa_node=1)))
    assert made.function == vf(1, 0)


async def test_a_macvtap_on_a_vf_is_an_endpoint_of_its_own_kind(nics: NicWorld) -> None:
    made, other = await nics.make(macvtap_asked(1), vf_asked(2))
    ifname = names.device_name(Kind.MACVTAP, endpoint_id(1))
    assert isinstance(made.location, MacvtapDevice)
    assert (made.location.ifname, made.location.device_path, made.location.mode) == (ifname, f"/dev/vifd/{ifname}", "passthru")
    assert (made.function, other.function, made.port.guard_enabled) == (vf(0, 0), vf(1, 0), True)
    assert nics.recorded()[endpoint_id(1)] == made
    await nics.drop(released(1))
    assert nics.nics.claimed == {vf(1, 0): endpoint_id(2)}
    assert nics.room.devices == {}


async def test_a_macvtap_whose_vf_is_somebody_elses_stands_on_another_one(nics: NicWorld) -> None:
    nics.nics.foreign = {vf(0, 0)}
    (made,) = await nics.make(macvtap_asked())
    assert made.function == vf(1, 0)
    assert nics.nics.claimed == {vf(1, 0): endpoint_id(1)}


async def test_the_parts_of_a_pair_name_each_other(nics: NicWorld) -> None:
    mac = "52:54:00:12:34:56"
    parts = [
        asked(1, port=Port(mac=mac), partner_endpoint_id=endpoint_id(2)),
        vf_asked(2, port=Port(mac=mac), partner_endpoint_id=endpoint_id(1)),
    ]
    made = await nics.make(*parts)
    assert [one.partner_endpoint_id for one in made] == [endpoint_id(2), endpoint_id(1)]
    assert {one.port.mac for one in made} == {mac}
    assert await nics.make(*parts) == made
    assert {name: one.partner_endpoint_id for name, one in nics.recorded().items()} == {
        endpoint_id(1): endpoint_id(2),
        endpoint_id(2): endpoint_id(1),
    }


# --- a VF that is somebody else's


async def test_a_vf_that_is_somebody_elses_is_left_alone_and_another_one_is_got(nics: NicWorld) -> None:
    nics.nics.foreign = {vf(0, 0), vf(1, 0)}
    (made,) = await nics.make(vf_asked())
    assert isinstance(made.location, PciDevice)
    assert made.function == made.location.address == vf(0, 1)
    assert nics.recorded()[endpoint_id(1)].function == vf(0, 1)
    assert nics.nics.claimed == {vf(0, 1): endpoint_id(1)}
    assert nics.registry.functions() == {vf(0, 1): State.READY}


async def test_a_vf_that_was_somebody_elses_is_not_tried_again_for_a_minute(nics: NicWorld) -> None:
    nics.nics.foreign = {vf(0, 0)}
    await nics.make(vf_asked(1))
    calls = len(nics.room.calls)
    nics.nics.foreign = set()
    await nics.make(vf_asked(2))
    assert functions(nics, 1, 2) == [vf(1, 0), vf(0, 1)]
    assert len(nics.room.calls) == calls + 1
    nics.time.advance(61)
    await nics.make(vf_asked(3))
    assert functions(nics, 3) == [vf(0, 0)]


async def test_when_each_is_somebody_elses_it_says_so_and_nothing_is_left(nics: NicWorld) -> None:
    nics.nics.foreign = {vf(pf, index) for pf in range(2) for index in range(3)}
    error = await failure_of(nics.make(asked(2), vf_asked(1)))
    assert isinstance(error, NetworkFull)
    assert "of 6, 6 taken by others on this host" in str(error)
    assert nics.is_empty()
    assert nics.registry.functions() == {}


async def test_in_a_batch_only_the_one_that_could_not_be_got_is_another(nics: NicWorld) -> None:
    nics.nics.foreign = {vf(1, 0)}
    made = await nics.make(asked(1), vf_asked(2), vf_asked(3))
    assert [one.function for one in made] == ["", vf(0, 0), vf(1, 1)]
    assert nics.nics.claimed == {vf(0, 0): endpoint_id(2), vf(1, 1): endpoint_id(3)}


# --- lanes


async def test_vfs_of_different_pfs_and_taps_do_not_wait_for_each_other(nics: NicWorld) -> None:
    nics.room.hold()
    tasks = [asyncio.create_task(nics.make(one)) for one in (vf_asked(1), vf_asked(2), asked(3))]
    for _ in tasks:
        await nics.room.entered()
    assert [name for name, _ in nics.room.calls] == ["apply"] * 3
    nics.room.go_on()
    await asyncio.gather(*tasks)
    assert functions(nics, 1, 2) == [vf(0, 0), vf(1, 0)]


async def test_vfs_of_one_pf_are_made_one_batch_after_the_other(tmp_path: Path) -> None:
    with nic_world(tmp_path, pfs=("ens1f0",)) as nics:
        nics.room.hold()
        tasks = [asyncio.create_task(nics.make(vf_asked(number))) for number in (1, 2, 3)]
        await nics.room.entered()
        nics.room.go_on()
        await asyncio.gather(*tasks)
        assert nics.room.calls == [("apply", 1), ("apply", 2)]


async def test_what_is_taken_down_together_is_split_by_lanes(nics: NicWorld) -> None:
    await nics.make(vf_asked(1), vf_asked(2), asked(3), vf_asked(4), asked(5))
    before = len(nics.room.calls)
    await nics.drop(*(released(number) for number in range(1, 6)))
    assert sorted(nics.room.calls[before:]) == [("revert", 1), ("revert", 2), ("revert", 2)]
    assert nics.is_empty()
    assert nics.nics.claimed == {}


async def test_an_endpoint_whose_network_is_gone_is_released_in_a_lane_of_its_own(nics: NicWorld) -> None:
    await nics.make(vf_asked(1), vf_asked(2), vf_asked(3))
    del nics.drivers["fast"]
    before = len(nics.room.calls)
    await nics.drop(*(released(number) for number in (1, 2, 3)))
    assert nics.room.calls[before:] == [("revert", 1)] * 3
    assert nics.registry.functions() == {}


# --- quarantine


async def test_a_vf_that_cannot_be_made_as_new_is_nobodys_until_it_is(nics: NicWorld) -> None:
    await nics.make(vf_asked(1))
    nics.room.keep(endpoint_id(1))
    assert isinstance(await failure_of(nics.drop()), KernelRefused)
    assert nics.registry.functions() == {vf(0, 0): State.RELEASING}
    assert "busy" in nics.registry.why_left(endpoint_id(1))
    (other,) = await nics.make(vf_asked(2))
    assert other.function == vf(1, 0)
    (task,) = nics.leftovers.retry()
    assert isinstance(await failure_of(task), KernelRefused)
    nics.room.let_go(endpoint_id(1))
    (task,) = nics.leftovers.retry()
    await task
    assert nics.registry.functions() == {vf(1, 0): State.READY}
    assert (nics.leftovers.retry(), nics.registry.why_left(endpoint_id(1))) == ([], "")


async def test_a_release_that_fails_does_not_keep_the_others_of_its_batch(nics: NicWorld) -> None:
    await nics.make(vf_asked(1), vf_asked(2), asked(3))
    nics.room.keep(endpoint_id(2))
    assert isinstance(await failure_of(nics.drop(released(1), released(2), released(3))), KernelRefused)
    assert [one.endpoint_id for one in nics.registry] == [endpoint_id(2)]


async def test_a_leftover_is_known_after_a_restart_and_tried_again(nics: NicWorld) -> None:
    await nics.make(vf_asked(1))
    nics.room.keep(endpoint_id(1))
    await failure_of(nics.drop())
    nics.crash()
    with contextlib.closing(nics.restarted()) as after:
        await after.recover()
        assert after.registry.functions() == {vf(0, 0): State.RELEASING}
        assert "before vifd started" in after.registry.why_left(endpoint_id(1))
        assert (await after.make(vf_asked(2)))[0].function == vf(1, 0)
        after.room.let_go(endpoint_id(1))
        await asyncio.gather(*after.leftovers.retry())
        assert after.registry.functions() == {vf(1, 0): State.READY}


async def test_a_vf_stays_its_endpoints_over_a_restart(nics: NicWorld) -> None:
    await nics.make(vf_asked(1))
    nics.crash()
    with contextlib.closing(nics.restarted()) as after:
        (endpoint,) = await after.recover()
        assert (endpoint.function, endpoint.state, endpoint.drifts) == (vf(0, 0), State.READY, ())
        assert (await after.make(vf_asked(2)))[0].function == vf(1, 0)


async def test_a_vf_whose_endpoint_was_never_answered_is_free_after_a_restart(nics: NicWorld) -> None:
    nics.room.hold()
    task = asyncio.create_task(nics.make(vf_asked(1)))
    await nics.room.entered()
    nics.nics.claimed[vf(0, 0)] = endpoint_id(1)  # the helper came as far as that
    nics.crash()
    task.cancel()
    nics.room.go_on()
    with contextlib.closing(nics.restarted()) as after:
        assert await after.recover() == []
        assert (after.nics.claimed, after.registry.functions()) == ({}, {})


async def test_a_marked_vf_that_no_record_knows_is_given_back(nics: NicWorld) -> None:
    nics.nics.claimed = {vf(0, 0): endpoint_id(7)}
    assert await nics.recover() == []
    assert nics.nics.claimed == {}


async def test_a_marked_vf_that_no_record_knows_and_that_is_stuck_is_nobodys_and_tried_again(nics: NicWorld) -> None:
    nics.nics.claimed = {vf(0, 0): endpoint_id(7)}
    nics.room.keep(endpoint_id(7))
    (found,) = await nics.recover()
    assert (found.state, found.function, found.owner.uid) == (State.RELEASING, vf(0, 0), 0)
    assert nics.recorded() == {endpoint_id(7): found}
    assert (await nics.make(vf_asked(1)))[0].function == vf(1, 0)
    assert told(nics, ALICE)[vf(0, 0)] == (FunctionState.QUARANTINED, "")
    nics.room.let_go(endpoint_id(7))
    await asyncio.gather(*nics.leftovers.retry())
    assert nics.registry.functions() == {vf(1, 0): State.READY}
    assert list(nics.recorded()) == [endpoint_id(1)]


# --- what is told, and to whom


def told(nics: NicWorld, caller: Caller) -> dict[str, tuple[FunctionState, str]]:
    info = next(info for info in nics.views.networks(caller) if info.name == "fast")
    return {one.function.address: (one.state, one.endpoint_id) for pf in info.physical_functions for one in pf.functions}


async def test_who_has_a_vf_is_told_to_who_may_see_the_endpoint(nics: NicWorld) -> None:
    await nics.make(vf_asked(1), vf_asked(2))
    nics.room.keep(endpoint_id(2))
    await failure_of(nics.drop(released(2)))
    nics.nics.foreign = {vf(0, 1)}
    await nics.make(vf_asked(3))
    free = (FunctionState.FREE, "")
    assert told(nics, ALICE) == {
        vf(0, 0): (FunctionState.IN_USE, endpoint_id(1)),
        vf(0, 1): (FunctionState.TAKEN, ""),
        vf(0, 2): free,
        vf(1, 0): (FunctionState.QUARANTINED, endpoint_id(2)),
        vf(1, 1): (FunctionState.IN_USE, endpoint_id(3)),
        vf(1, 2): free,
    }
    hidden = {address: (state, "") for address, (state, _) in told(nics, ALICE).items()}
    assert told(nics, BOB) == hidden
    assert told(nics, ROOT) == told(nics, ALICE)


# --- what is refused


async def test_a_vm_that_has_to_move_gets_no_vf(nics: NicWorld) -> None:
    error = await failure_of(nics.make(vf_asked(live_migratable=True)))
    assert isinstance(error, NoAcceptableKind)
    assert "can't move to another host with pci" in str(error)


async def test_only_an_administrator_gets_a_trusted_vf(nics: NicWorld) -> None:
    wanted = Port(trusted=True)
    assert isinstance(await failure_of(nics.make(vf_asked(port=wanted))), NotAllowed)
    assert nics.is_empty()
    (made,) = await nics.make(vf_asked(port=wanted), caller=ROOT)
    assert made.port.trusted is True


async def test_a_helper_that_names_a_vf_that_nobody_asked_for_is_not_asked_again(nics: NicWorld) -> None:
    nics.room.fail_operation(1, FunctionTaken("0000:99:00.0", "VF 0000:99:00.0 is somebody else's"))
    error = await failure_of(nics.make(vf_asked()))
    assert "0000:99:00.0" in str(error)
    assert [name for name, _ in nics.room.calls] == ["apply"]
    assert nics.registry.functions() == {}
