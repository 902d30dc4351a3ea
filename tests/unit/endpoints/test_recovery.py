from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.messages import endpoint_id
from tests.support.records import bridge_entry, entry
from tests.support.rooms import PLANS_A_CALL, FakeRoom
from tests.support.worlds import BOOT, World, asked, failure_of, world
from vifd.errors import HostNotReady, JournalDamaged, KernelRefused, TryAgain, VifdError
from vifd.kernel import ops
from vifd.kernel.room import HelperLostError
from vifd.model import DriftKind, Kind, State, TapDevice


@pytest.fixture
def one(one: World) -> World:
    """A world whose journal is of the present boot."""
    one.journal.set_boot_id(BOOT)
    return one


@pytest.fixture
def next_start(one: World, tmp_path: Path) -> Iterator[World]:
    """The vifd that starts after the first has died: the same journal, the same kernel."""
    one.crash()
    with world(tmp_path / "journal.db", one.room) as second:
        yield second


async def states(one: World) -> dict[int, State]:
    return {int(endpoint.endpoint_id[-2:], 16): endpoint.state for endpoint in await one.recover()}


async def test_an_empty_start_does_nothing(one: World) -> None:
    assert await one.recover() == []
    assert one.is_empty()


async def test_an_answered_endpoint_lives_on_as_it_was(one: World, tmp_path: Path) -> None:
    made = await one.make(asked(1), asked(2))
    one.crash()
    with world(tmp_path / "journal.db", one.room) as second:
        assert await second.recover() == made


async def test_a_pending_endpoint_with_a_device_is_undone(one: World) -> None:
    one.journal.write([entry(1, state=State.PENDING)])
    one.room.put(endpoint_id(1))
    assert await one.recover() == []
    assert one.is_empty()


async def test_a_pending_endpoint_without_a_device_is_forgotten(one: World) -> None:
    one.journal.write([entry(1, state=State.PENDING), bridge_entry(2, state=State.PENDING)])
    assert await one.recover() == []
    assert one.is_empty()


async def test_a_release_that_was_begun_is_finished(one: World) -> None:
    one.journal.write([entry(1, state=State.RELEASING), entry(2, state=State.RELEASING)])
    one.room.put(endpoint_id(1))
    assert await one.recover() == []
    assert one.is_empty()


async def test_a_release_that_the_kernel_refuses_stays_as_releasing(one: World) -> None:
    one.journal.write([entry(1, state=State.RELEASING)])
    one.room.put(endpoint_id(1))
    one.room.keep(endpoint_id(1))
    assert await states(one) == {1: State.RELEASING}
    one.room.let_go(endpoint_id(1))
    await one.drop()
    assert one.is_empty()


async def test_a_pending_endpoint_that_the_kernel_keeps_stays_as_releasing(one: World) -> None:
    one.journal.write([entry(1, state=State.PENDING)])
    one.room.put(endpoint_id(1))
    one.room.keep(endpoint_id(1))
    assert await states(one) == {1: State.RELEASING}


async def test_a_tap_that_is_open_is_attached(one: World) -> None:
    one.journal.write([entry(1), entry(2)])
    one.room.put(endpoint_id(1), carrier=True)
    one.room.put(endpoint_id(2))
    assert await states(one) == {1: State.ATTACHED, 2: State.READY}


async def test_an_endpoint_that_was_attached_and_is_closed_is_ready(one: World) -> None:
    one.journal.write([entry(1, state=State.ATTACHED)])
    one.room.put(endpoint_id(1))
    assert await states(one) == {1: State.READY}


async def test_an_endpoint_without_a_device_is_ready(one: World) -> None:
    one.journal.write([bridge_entry(1)])
    assert await states(one) == {1: State.READY}
    assert one.room.calls == [("check", 1), ("inspect", 0)]


async def test_a_device_that_is_gone_is_made_again(one: World) -> None:
    one.journal.write([entry(1, ifindex=5)])
    (endpoint,) = await one.recover()
    device = one.room.devices[endpoint_id(1)]
    assert isinstance(endpoint.location, TapDevice)
    assert (endpoint.state, endpoint.location.ifindex, endpoint.drifts) == (State.READY, device.ifindex, ())
    assert one.recorded()[endpoint_id(1)].location == endpoint.location


async def test_a_device_that_cant_be_made_again_is_a_drift(one: World) -> None:
    one.journal.write([entry(1)])
    one.room.fail_operation(1, HostNotReady("br-blue is no bridge"))
    (endpoint,) = await one.recover()
    (drift,) = endpoint.drifts
    assert (endpoint.state, drift.kind) == (State.READY, DriftKind.DEVICE_MISSING)
    assert "br-blue is no bridge" in drift.message


async def test_a_device_that_couldnt_be_made_again_is_at_the_next_start(one: World, next_start: World) -> None:
    next_start.journal.write([entry(1)])
    next_start.room.fail_operation(1)
    await next_start.recover()
    next_start.registry.remove(endpoint_id(1))
    (endpoint,) = await next_start.recover()
    assert (endpoint.drifts, list(next_start.room.devices)) == ((), [endpoint_id(1)])


async def test_a_device_of_another_index_is_found_by_its_mark(one: World) -> None:
    one.journal.write([entry(1, ifindex=5)])
    one.room.put(endpoint_id(1))
    (endpoint,) = await one.recover()
    assert endpoint.ifindex == one.room.devices[endpoint_id(1)].ifindex != 5
    assert one.recorded()[endpoint_id(1)].ifindex == endpoint.ifindex


async def test_one_that_cant_be_made_again_keeps_none_of_the_others(one: World) -> None:
    one.journal.write([entry(number) for number in (1, 2, 3)])
    one.room.fail_operation(4)
    recovered = await one.recover()
    assert [len(endpoint.drifts) for endpoint in recovered] == [0, 1, 0]


async def test_after_a_reboot_every_endpoint_is_forgotten(one: World) -> None:
    one.journal.write([entry(1), bridge_entry(2), entry(3, state=State.PENDING), entry(4, state=State.RELEASING)])
    assert await one.recover("boot-2") == []
    assert one.is_empty()
    assert one.journal.boot_id == "boot-2"


async def test_after_a_reboot_the_same_id_has_a_larger_generation(one: World, tmp_path: Path) -> None:
    (before,) = await one.make()
    one.crash()
    with world(tmp_path / "journal.db") as second:
        await second.recover("boot-2")
        (after,) = await second.make()
    assert after.generation > before.generation


async def test_an_idle_stray_is_deleted(one: World) -> None:
    one.room.put(endpoint_id(7))
    await one.recover()
    assert one.room.devices == {}


async def test_a_stray_in_use_stays(one: World) -> None:
    one.room.put(endpoint_id(7), carrier=True)
    await one.recover()
    assert list(one.room.devices) == [endpoint_id(7)]


async def test_a_stray_that_the_kernel_keeps_stops_nothing(one: World) -> None:
    one.room.put(endpoint_id(7))
    one.room.keep(endpoint_id(7))
    assert await one.recover() == []


async def test_stray_vfs_are_given_back_and_told_apart_by_their_addresses(
    one: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number, address in ((7, "0000:01:10.0"), (8, "0000:01:10.2")):
        vf = ops.Device(address, 0, Kind.PCI, endpoint_id(number), 0, 0, "", up=False, carrier=False)
        one.room.devices[endpoint_id(number)] = vf

    async def revert(plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        assert [(op.endpoint_id, op.address) for (op,) in plans] == [
            (endpoint_id(7), "0000:01:10.0"),
            (endpoint_id(8), "0000:01:10.2"),
        ]
        del one.room.devices[endpoint_id(7)]
        return [None, KernelRefused("ReleaseFunction", "0000:01:10.2", 0, "it can't be reset")]

    monkeypatch.setattr(one.room, "revert", revert)
    await one.recover()
    told = {record.device: record.message for record in caplog.records if hasattr(record, "device")}
    assert told == {
        "0000:01:10.0": "a VF of vifd's that no record knows is deleted",
        "0000:01:10.2": "a stray VF can't be deleted",
    }


@pytest.mark.parametrize("up", [True, False])
async def test_a_stray_vf_stays_as_long_as_its_macvtap_may_be_in_use(
    one: World, up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vf = ops.Device("0000:01:10.0", 0, Kind.PCI, endpoint_id(7), 0, 0, "", up=False, carrier=False)
    macvtap = ops.Device("vdmaaaaaaaaaa", 9, Kind.MACVTAP, endpoint_id(7), 0, 1500, "", up=up, carrier=False)
    found, reverted = [macvtap, vf], list[ops.Plan]()

    async def inspect(_: Sequence[str]) -> list[ops.Device]:
        return [] if reverted else found

    async def revert(plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        reverted.extend(plans)
        return [None for _ in plans]

    monkeypatch.setattr(one.room, "inspect", inspect)
    monkeypatch.setattr(one.room, "revert", revert)
    assert await one.recover() == []
    assert [type(operation) for (operation,) in reverted] == ([] if up else [ops.CreateMacvtap, ops.ClaimFunction])


async def test_a_device_with_a_record_is_no_stray(one: World) -> None:
    await one.make()
    one.registry.remove(endpoint_id(1))
    assert await states(one) == {1: State.READY}
    assert list(one.room.devices) == [endpoint_id(1)]


async def test_a_second_pass_changes_nothing(one: World) -> None:
    one.journal.write([entry(1), entry(2, state=State.PENDING), entry(3, state=State.RELEASING), bridge_entry(4), entry(5)])
    one.room.put(endpoint_id(1), carrier=True)
    one.room.put(endpoint_id(2))
    one.room.put(endpoint_id(7))
    one.room.put(endpoint_id(8), carrier=True)
    first = await one.recover()
    devices, records = dict(one.room.devices), one.recorded()
    for endpoint in first:
        one.registry.remove(endpoint.endpoint_id)
    one.room.calls.clear()
    assert await one.recover() == first
    assert (one.room.devices, one.recorded()) == (devices, records)
    assert {name for name, _ in one.room.calls} == {"check", "inspect"}


async def test_more_than_the_helper_takes_in_a_call_are_recovered(one: World) -> None:
    count = PLANS_A_CALL + 100
    one.journal.write([entry(number, state=State.RELEASING) for number in range(1, count)])
    one.journal.write([entry(count + 1)])
    for number in range(1, count):
        one.room.put(endpoint_id(number))
    assert len(await one.recover()) == 1
    assert list(one.room.devices) == [endpoint_id(count + 1)]


async def test_more_strays_than_the_helper_takes_in_a_call_are_deleted(one: World) -> None:
    for number in range(PLANS_A_CALL + 100):
        one.room.put(endpoint_id(number + 1))
    await one.recover()
    assert one.room.devices == {}


async def test_a_lost_helper_ends_the_start_and_changes_no_record(one: World) -> None:
    one.journal.write([entry(1), entry(2, state=State.PENDING)])
    before = one.recorded()
    one.room.lose()
    with pytest.raises(HelperLostError):
        await one.recover()
    assert one.recorded() == before


async def test_a_damaged_record_ends_the_start_and_touches_nothing(one: World) -> None:
    one.room.put(endpoint_id(7))
    one.journal._db.execute("INSERT INTO endpoints VALUES (7, 'nonsense')")
    with pytest.raises(JournalDamaged):
        await one.recover()
    assert one.room.calls == []


@pytest.mark.parametrize("moment", ["apply", "revert"])
async def test_what_a_lost_helper_left_in_the_middle_is_cleaned_up(one: World, tmp_path: Path, moment: str) -> None:
    if moment == "revert":
        await one.make()
    one.room.lose()
    work = one.make() if moment == "apply" else one.drop()
    with pytest.raises(HelperLostError):
        await work
    one.crash()
    room = FakeRoom()
    room.put(endpoint_id(1))
    with world(tmp_path / "journal.db", room) as second:
        assert await second.recover() == []
        assert second.is_empty()


async def test_an_endpoint_that_lives_on_is_known_to_the_engine(one: World, next_start: World) -> None:
    next_start.journal.write([entry(1)])
    await next_start.recover()
    error = await failure_of(next_start.make(asked(1)))
    assert type(error).__name__ == "IdInUse"
    await next_start.drop()
    assert next_start.is_empty()


@pytest.mark.parametrize("state", [State.PENDING, State.RELEASING])
async def test_a_network_system_is_told_of_what_is_taken_down(one: World, state: State) -> None:
    one.journal.write([entry(1, state=state, network="red")])
    assert await one.recover() == []
    assert one.noting.told == [("unbind", endpoint_id(1))]


async def test_a_network_system_is_told_of_what_a_reboot_took(one: World) -> None:
    await one.make(asked(1, "red"))
    one.registry.remove(endpoint_id(1))
    assert await one.recover("boot-2") == []
    assert one.noting.told == [("bind", endpoint_id(1)), ("unbind", endpoint_id(1))]


@pytest.mark.parametrize("error", [TryAgain("the network system is away"), ZeroDivisionError("a driver's bug")])
async def test_what_a_network_system_doesnt_let_go_stays_as_releasing(one: World, error: Exception) -> None:
    one.journal.write([entry(1, state=State.PENDING, network="red")])
    one.noting.refuses["unbind", endpoint_id(1)] = error
    assert await states(one) == {1: State.RELEASING}
    assert one.recorded()[endpoint_id(1)].state is State.RELEASING
    one.noting.refuses.clear()
    await one.drop()
    assert one.is_empty()
