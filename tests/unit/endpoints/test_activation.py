"""Where VMs run, over a kernel in memory and a real journal."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BRIDGE, World, asked, failure_of, released, world
from vifd.endpoints.activation import Activation
from vifd.errors import KernelRefused, NotAllowed, TryAgain, UnknownEndpoint, WrongState
from vifd.model import Endpoint, State

ONE = endpoint_id(1)


@pytest.fixture
def activation(one: World) -> Activation:
    return activation_of(one)


def activation_of(one: World) -> Activation:
    return Activation(one.journal, one.room, one.registry, one.networks, one.engine.busy)


def state(one: World) -> State:
    endpoint = one.registry.find(ONE)
    assert endpoint is not None
    return endpoint.state


async def attached(one: World, network: str = "red") -> Endpoint:
    """Give a tap that a hypervisor has opened."""
    (endpoint,) = await one.make(asked(network=network))
    one.room.open(ONE)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    return endpoint


async def test_a_vm_that_is_seen_is_active_at_once_and_its_network_is_told(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex)
    assert state(one) is State.ACTIVE
    await activation.close()
    assert ("activate", ONE) in one.noting.told
    assert ("announce", 1) in one.room.calls


async def test_a_vm_is_told_of_once_however_often_it_is_seen(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    for _ in range(3):
        activation.on_learned(endpoint.ifindex)
        await activation.close()
    assert one.noting.told.count(("activate", ONE)) == 1


async def test_a_vm_may_be_seen_before_its_carrier_is(one: World, activation: Activation) -> None:
    (endpoint,) = await one.make(asked(network="red"))
    activation.on_learned(endpoint.ifindex)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    assert state(one) is State.ACTIVE
    await activation.close()


async def test_a_vm_that_leaves_is_not_active_any_more(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex)
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    await activation.close()
    assert state(one) is State.READY
    assert ("activate", ONE) not in one.noting.told


async def test_a_frame_of_a_device_that_is_nobodys_is_ignored(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex + 1)
    assert state(one) is State.ATTACHED


async def test_what_a_vm_does_while_it_is_released_is_ignored(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    await one.room.entered()
    one.room.hold()
    dropping = asyncio.create_task(one.drop())
    await one.room.entered()
    activation.on_learned(endpoint.ifindex)
    assert state(one) is State.RELEASING
    one.room.go_on()
    await dropping
    await activation.close()
    assert one.is_empty()


async def test_a_network_system_that_cannot_be_told_is_logged(
    one: World, activation: Activation, caplog: pytest.LogCaptureFixture
) -> None:
    one.noting.refuses["activate", ONE] = TryAgain("the switch is away")
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex)
    await activation.close()
    assert "the network system can't be told" in caplog.text
    assert one.recorded()[ONE].state is State.READY


@pytest.fixture
def told(one: World, monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """How often the network system was told of something; it is told again at once of what it refused."""
    monkeypatch.setattr("vifd.endpoints.activation._RETRY_SECONDS", 0.001)
    count, note = asyncio.Semaphore(0), one.noting._note

    def counting(what: str, endpoint: Endpoint) -> None:
        count.release()
        note(what, endpoint)

    monkeypatch.setattr(one.noting, "_note", counting)
    return count


@pytest.mark.parametrize("error", [TryAgain("the switch is away"), ZeroDivisionError("a driver's bug")])
async def test_a_network_system_that_cannot_be_told_is_told_later(
    one: World, activation: Activation, told: asyncio.Semaphore, error: Exception
) -> None:
    one.noting.refuses["activate", ONE] = error
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex)
    for _ in ("bind", "activate", "activate", "activate"):
        await told.acquire()
    one.noting.refuses.clear()
    await told.acquire()
    await activation.close()
    assert one.recorded()[ONE].state is State.ACTIVE


async def test_what_left_is_told_of_no_more(one: World, activation: Activation, told: asyncio.Semaphore) -> None:
    one.noting.refuses["activate", ONE] = TryAgain("the switch is away")
    endpoint = await attached(one)
    activation.on_learned(endpoint.ifindex)
    for _ in ("bind", "activate", "activate"):
        await told.acquire()
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    await asyncio.wait(activation._telling.values())
    assert state(one) is State.READY


async def test_a_tap_that_comes_and_goes_is_told_of_once_at_a_time(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    one.room.hold()
    for _ in range(100):
        activation.on_learned(endpoint.ifindex)
        await asyncio.sleep(0)
        one.follower.on_carrier(endpoint.ifindex, carrier=False)
    activation.on_learned(endpoint.ifindex)
    one.room.go_on()
    await activation.close()
    assert one.room.calls.count(("announce", 1)) == 1
    assert state(one) is State.ACTIVE


async def test_a_callers_word_makes_it_active(one: World, activation: Activation) -> None:
    await attached(one)
    assert (await activation.activate(ALICE, ONE)).state is State.ACTIVE
    assert one.noting.told[-1] == ("activate", ONE)


async def test_a_second_word_changes_nothing(one: World, activation: Activation) -> None:
    await attached(one)
    first = await activation.activate(ALICE, ONE)
    assert await activation.activate(ALICE, ONE) == first
    assert one.noting.told.count(("activate", ONE)) == 1


async def test_a_tap_that_nobody_has_open_has_no_vm(one: World, activation: Activation) -> None:
    await one.make()
    failure = await failure_of(activation.activate(ALICE, ONE))
    assert isinstance(failure, WrongState)
    assert "open" in str(failure)
    assert state(one) is State.READY


async def test_of_a_tap_that_is_set_down_nobody_can_tell_whether_it_has_one(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    one.registry.update(replace(endpoint, state=State.READY, port=replace(endpoint.port, link_up=False)))
    one.room.close(ONE)  # as the kernel shows one that is set down
    failure = await failure_of(activation.activate(ALICE, ONE))
    assert isinstance(failure, WrongState)
    assert "set down" in str(failure)


async def test_a_tap_that_is_closed_while_its_network_is_told_has_no_vm(
    one: World, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await attached(one)

    def close(*_: object) -> None:
        one.room.close(ONE)
        one.follower.on_carrier(endpoint.ifindex, carrier=False)

    monkeypatch.setattr(one.noting, "_note", close)
    assert isinstance(await failure_of(activation.activate(ALICE, ONE)), WrongState)
    assert state(one) is State.READY


async def test_a_vifd_that_stops_takes_nobodys_word(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    one.engine.refuse_work()
    assert isinstance(await failure_of(activation.activate(ALICE, ONE)), TryAgain)
    activation.on_learned(endpoint.ifindex)
    assert state(one) is State.ATTACHED


async def test_a_tap_that_was_opened_just_now_has_one(one: World, activation: Activation) -> None:
    await one.make()
    one.room.open(ONE)  # and its event isn't there yet
    assert (await activation.activate(ALICE, ONE)).state is State.ACTIVE


async def test_of_a_port_that_the_hypervisor_makes_its_word_counts(one: World, activation: Activation) -> None:
    await one.make(asked(acceptable=BRIDGE))
    assert (await activation.activate(ALICE, ONE)).state is State.ACTIVE


async def test_whoever_may_not_change_it_cannot_activate_it(one: World, activation: Activation) -> None:
    await attached(one)
    assert isinstance(await failure_of(activation.activate(BOB, ONE)), UnknownEndpoint | NotAllowed)
    assert isinstance(await failure_of(activation.activate(ALICE, endpoint_id(2))), UnknownEndpoint)
    assert state(one) is State.ATTACHED


async def test_a_word_that_the_network_system_does_not_take_changes_nothing(one: World, activation: Activation) -> None:
    await attached(one)
    one.noting.refuses["activate", ONE] = TryAgain("the switch is away")
    assert isinstance(await failure_of(activation.activate(ALICE, ONE)), TryAgain)
    assert state(one) is State.ATTACHED
    assert one.recorded()[ONE].state is State.READY


async def test_what_can_not_be_announced_is_active_all_the_same(
    one: World, activation: Activation, caplog: pytest.LogCaptureFixture
) -> None:
    await attached(one)
    one.room.announcing_fails = "up0: Network is down"
    assert (await activation.activate(ALICE, ONE)).state is State.ACTIVE
    assert "can't be announced" in caplog.text


async def test_an_endpoint_whose_release_failed_is_not_activated(one: World, activation: Activation) -> None:
    await attached(one)
    one.room.keep(ONE)
    assert isinstance(await failure_of(one.drop()), KernelRefused)
    assert isinstance(await failure_of(activation.activate(ALICE, ONE)), WrongState)


@pytest.mark.parametrize(("is_open", "then"), [(True, State.ACTIVE), (False, State.READY)])
async def test_a_restart_remembers_whose_vm_runs(tmp_path: Path, is_open: bool, then: State) -> None:
    with world(tmp_path / "journal.db") as before:
        await before.recover()
        await attached(before)
        await activation_of(before).activate(ALICE, ONE)
        room = before.room
    if not is_open:
        room.close(ONE)
    with world(tmp_path / "journal.db", room) as after:
        (endpoint,) = await after.recover()
        assert endpoint.state is then
        assert after.recorded()[ONE].state is then


async def test_a_restart_takes_who_opens_a_tap_for_no_vm_that_has_left(tmp_path: Path) -> None:
    with world(tmp_path / "journal.db") as before:
        await before.recover()
        endpoint = await attached(before)
        activation = activation_of(before)
        await activation.activate(ALICE, ONE)
        before.follower.on_carrier(endpoint.ifindex, carrier=False)
        before.follower.on_carrier(endpoint.ifindex, carrier=True)  # by a QEMU that waits for the VM to come back
        await activation.close()
    with world(tmp_path / "journal.db", before.room) as after:
        activation_of(after)
        assert [endpoint.state for endpoint in await after.recover()] == [State.ATTACHED]


async def test_a_vm_that_leaves_after_a_restart_is_noted_too(tmp_path: Path) -> None:
    with world(tmp_path / "journal.db") as before:
        await before.recover()
        endpoint = await attached(before)
        await activation_of(before).activate(ALICE, ONE)
    with world(tmp_path / "journal.db", before.room) as after:
        activation = activation_of(after)
        await after.recover()
        assert state(after) is State.ACTIVE
        after.follower.on_carrier(endpoint.ifindex, carrier=False)
        await activation.close()
        assert after.recorded()[ONE].state is State.READY


async def test_a_vm_that_comes_back_at_once_leaves_as_another_does(one: World, activation: Activation) -> None:
    endpoint = await attached(one)
    await activation.activate(ALICE, ONE)
    for came_back in (True, False):
        one.follower.on_carrier(endpoint.ifindex, carrier=False)
        if came_back:
            activation.on_learned(endpoint.ifindex)
        await asyncio.wait(activation._noting)
    assert one.recorded()[ONE].state is State.READY
    await activation.close()


async def test_a_restart_remembers_a_port_that_the_hypervisor_made(tmp_path: Path) -> None:
    with world(tmp_path / "journal.db") as before:
        await before.recover()
        await before.make(asked(acceptable=BRIDGE))
        await activation_of(before).activate(ALICE, ONE)
    with world(tmp_path / "journal.db", before.room) as after:
        (endpoint,) = await after.recover()
        assert endpoint.state is State.ACTIVE


async def test_what_bridges_learn_matters_as_long_as_a_vm_is_awaited(one: World, activation: Activation) -> None:
    wanted: list[bool] = []
    activation.follow(wanted.append)
    first, second = await one.make(asked(1), asked(2))
    assert wanted == [False, True]
    activation.on_learned(first.ifindex)
    activation.on_learned(second.ifindex)
    assert wanted == [False, True, False]
    one.follower.on_carrier(second.ifindex, carrier=False)
    assert wanted[-1] is True
    await activation.close()
    await one.drop(released(2))
    assert wanted[-1] is False


async def test_what_has_no_tap_awaits_no_vm(one: World, activation: Activation) -> None:
    wanted: list[bool] = []
    activation.follow(wanted.append)
    await one.make(asked(acceptable=BRIDGE), asked(2, network="fake"))
    assert wanted[-1] is False
