from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BRIDGE, ROOT, World, asked, failure_of, released
from vifd.config import PolicyRule, Role
from vifd.endpoints.policy import Policy
from vifd.errors import KernelRefused, NotAllowed, StaleGeneration, TryAgain
from vifd.model import State


async def test_a_release_leaves_nothing(one: World) -> None:
    await one.make()
    await one.drop()
    assert one.is_empty()


async def test_a_release_of_what_isnt_there_is_fine_and_asks_nobody(one: World) -> None:
    await one.drop()
    assert one.room.calls == []


async def test_a_release_again_is_fine(one: World) -> None:
    await one.make()
    await one.drop()
    await one.drop()
    assert one.room.calls == [("apply", 1), ("revert", 1)]


async def test_a_bridge_endpoint_is_released(one: World) -> None:
    await one.make(asked(acceptable=BRIDGE))
    await one.drop()
    assert one.is_empty()


async def test_a_release_of_the_present_generation_is_done(one: World) -> None:
    (endpoint,) = await one.make()
    await one.drop(released(1, endpoint.generation))
    assert one.is_empty()


async def test_a_late_release_of_an_old_life_cant_hurt_the_new_one(one: World) -> None:
    (old,) = await one.make()
    await one.drop()
    (new,) = await one.make()
    assert isinstance(await failure_of(one.drop(released(1, old.generation))), StaleGeneration)
    assert list(one.registry) == [new]


async def test_a_generation_that_never_was_is_stale_too(one: World) -> None:
    (endpoint,) = await one.make()
    assert isinstance(await failure_of(one.drop(released(1, endpoint.generation + 1))), StaleGeneration)


async def test_somebody_elses_endpoint_isnt_released(one: World) -> None:
    (endpoint,) = await one.make()
    assert isinstance(await failure_of(one.drop(caller=BOB)), NotAllowed)
    assert list(one.registry) == [endpoint]


async def test_root_releases_whichever(one: World) -> None:
    await one.make()
    await one.drop(caller=ROOT)
    assert one.is_empty()


async def test_a_delegate_releases_what_it_made_for_another(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=BOB.uid, role=Role.DELEGATE)]))
    (endpoint,) = await one.make(asked(uid=ALICE.uid), caller=BOB)
    assert endpoint.owner.uid == ALICE.uid
    await one.drop(caller=BOB)
    assert one.is_empty()


async def test_an_owner_whom_the_policy_forgot_may_still_release(one: World) -> None:
    await one.make()
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=BOB.uid)]))
    await one.drop()
    assert one.is_empty()


async def test_what_the_kernel_keeps_stays_as_releasing(one: World) -> None:
    await one.make()
    one.room.keep(endpoint_id(1))
    assert isinstance(await failure_of(one.drop()), KernelRefused)
    assert [endpoint.state for endpoint in one.registry] == [State.RELEASING]
    assert [endpoint.state for endpoint in one.recorded().values()] == [State.RELEASING]


async def test_a_release_that_failed_works_when_the_cause_is_gone(one: World) -> None:
    await one.make()
    one.room.keep(endpoint_id(1))
    await failure_of(one.drop())
    one.room.let_go(endpoint_id(1))
    await one.drop()
    assert one.is_empty()


async def test_the_network_system_is_told_once_the_device_is_gone(one: World) -> None:
    await one.make(asked(network="red"))
    one.room.keep(endpoint_id(1))
    await failure_of(one.drop())
    assert one.noting.told == [("bind", endpoint_id(1))]
    one.room.let_go(endpoint_id(1))
    await one.drop()
    assert one.noting.told == [("bind", endpoint_id(1)), ("unbind", endpoint_id(1))]


async def test_a_release_that_the_network_system_refuses_can_be_done_again(one: World) -> None:
    await one.make(asked(network="red"))
    one.noting.refuses["unbind", endpoint_id(1)] = TryAgain("the controller isn't reachable")
    assert isinstance(await failure_of(one.drop()), TryAgain)
    one.noting.refuses.clear()
    await one.drop()
    assert one.is_empty()


async def test_an_endpoint_of_a_network_that_was_taken_from_the_configuration_is_released(one: World) -> None:
    await one.make(asked(network="red"))
    one.networks.configure({}, Policy(()))
    await one.drop()
    assert one.is_empty()


async def test_an_endpoint_whose_device_somebody_deleted_is_released(one: World) -> None:
    await one.make()
    one.room.delete(endpoint_id(1))
    await one.drop()
    assert one.is_empty()
