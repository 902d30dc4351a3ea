import asyncio

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BRIDGE, World, asked, failure_of, released
from vifd.config import PolicyRule
from vifd.endpoints.policy import Policy
from vifd.errors import IdInUse, KernelRefused, NoAcceptableKind, NotAllowed, QuotaReached, StaleGeneration, TryAgain
from vifd.model import State, VdpaPreference


async def test_a_batch_is_made_in_one_call_and_answered_in_order(one: World) -> None:
    made = await one.make(asked(2), asked(1, acceptable=BRIDGE), asked(3, network="red"))
    assert [endpoint.endpoint_id for endpoint in made] == [endpoint_id(2), endpoint_id(1), endpoint_id(3)]
    assert one.room.calls == [("apply", 3)]


@pytest.mark.parametrize("number", range(1, 10))
async def test_a_failure_of_any_operation_undoes_the_whole_batch(one: World, number: int) -> None:
    one.room.fail_operation(number)
    assert isinstance(await failure_of(one.make(asked(1), asked(2), asked(3))), KernelRefused)
    assert one.is_empty()


async def test_one_that_cant_be_met_keeps_the_whole_batch_from_being_made(one: World) -> None:
    assert isinstance(await failure_of(one.make(asked(1), asked(2, acceptable=[VdpaPreference()]))), NoAcceptableKind)
    assert one.is_empty()
    assert one.room.calls == []


async def test_one_whose_id_is_in_use_keeps_the_whole_batch_from_being_made(one: World) -> None:
    await one.make(asked(2, acceptable=BRIDGE))
    assert isinstance(await failure_of(one.make(asked(1), asked(2))), IdInUse)
    assert len(one.registry) == 1


async def test_a_batch_gives_those_that_exist_as_they_are_and_makes_the_others(one: World) -> None:
    (before,) = await one.make(asked(2))
    first, second = await one.make(asked(1), asked(2))
    assert second == before
    assert first.state is State.READY
    assert one.room.calls == [("apply", 1), ("apply", 1)]


async def test_the_failure_of_a_batch_leaves_those_that_existed(one: World) -> None:
    (before,) = await one.make(asked(2))
    one.room.fail_operation(1)
    await failure_of(one.make(asked(1), asked(2)))
    assert list(one.registry) == [before]


async def test_a_request_that_shares_one_endpoint_with_a_batch_waits_for_it(one: World) -> None:
    one.room.hold()
    batch = asyncio.create_task(one.make(asked(1), asked(2)))
    alone = asyncio.create_task(one.make(asked(2)))
    await one.room.entered()
    one.room.go_on()
    assert (await batch)[1:] == await alone


async def test_batches_that_overlap_at_once_are_both_answered(one: World) -> None:
    one.room.hold()
    batches = [asyncio.create_task(one.make(asked(1), asked(2))), asyncio.create_task(one.make(asked(3), asked(2)))]
    await one.room.entered()
    one.room.go_on()
    (_, shared), (_, same) = await asyncio.gather(*batches)
    assert shared == same
    assert len(one.registry) == 3


async def test_a_failure_of_the_network_system_undoes_the_whole_batch(one: World) -> None:
    one.noting.refuses["bind", endpoint_id(2)] = TryAgain("the controller isn't reachable")
    await failure_of(one.make(asked(1, network="red"), asked(2, network="red")))
    assert one.is_empty()
    assert [told for told in one.noting.told if told[0] == "unbind"] == [("unbind", endpoint_id(1)), ("unbind", endpoint_id(2))]


async def test_a_failure_of_the_undoing_keeps_none_of_a_batch(one: World) -> None:
    one.room.fail_operation(1)
    one.noting.refuses["unbind", endpoint_id(1)] = TryAgain("the controller isn't reachable")
    assert isinstance(await failure_of(one.make(asked(1, network="red"), asked(2, network="red"))), KernelRefused)
    assert (len(one.registry), one.room.devices) == (0, {})
    assert one.noting.told[-1] == ("unbind", endpoint_id(2))
    # The next start tells it once more.
    assert {i: endpoint.state for i, endpoint in one.recorded().items()} == {endpoint_id(1): State.PENDING}


@pytest.mark.parametrize("error", [TryAgain("the controller isn't reachable"), ZeroDivisionError("a driver's bug")])
async def test_what_a_network_system_keeps_of_a_batch_keeps_none_of_the_others(one: World, error: Exception) -> None:
    await one.make(asked(1, network="red"), asked(2, network="red"))
    one.noting.refuses["unbind", endpoint_id(1)] = error
    await failure_of(one.drop(released(1), released(2)))
    assert [(endpoint.endpoint_id, endpoint.state) for endpoint in one.registry] == [(endpoint_id(1), State.RELEASING)]
    assert {i: endpoint.state for i, endpoint in one.recorded().items()} == {endpoint_id(1): State.RELEASING}
    one.noting.refuses.clear()
    await one.drop(released(1))
    assert one.is_empty()


async def test_a_quota_counts_what_the_whole_batch_would_come_to(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid, max_endpoints=3)]))
    await one.make(asked(1))
    assert isinstance(await failure_of(one.make(asked(2), asked(3), asked(4))), QuotaReached)
    await one.make(asked(1), asked(2), asked(3))
    assert len(one.registry) == 3


async def test_requests_at_once_cant_pass_a_quota_together(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid, max_endpoints=1)]))
    results = await asyncio.gather(one.make(asked(1)), one.make(asked(2)), return_exceptions=True)
    assert [isinstance(result, QuotaReached) for result in results] == [False, True]


async def test_what_is_released_counts_no_more(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid, max_endpoints=1)]))
    await one.make(asked(1))
    await one.drop(released(1))
    await one.make(asked(2))


async def test_a_batch_is_released_in_one_call(one: World) -> None:
    await one.make(asked(1), asked(2), asked(3))
    await one.drop(released(3), released(1), released(9))
    assert one.room.calls[1:] == [("revert", 2)]
    assert [endpoint.endpoint_id for endpoint in one.registry] == [endpoint_id(2)]


async def test_a_batch_with_a_stale_generation_releases_nothing(one: World) -> None:
    first, second = await one.make(asked(1), asked(2))
    stale = released(2, second.generation - 1)
    assert isinstance(await failure_of(one.drop(released(1, first.generation), stale)), StaleGeneration)
    assert len(one.room.devices) == 2


async def test_a_batch_with_somebody_elses_endpoint_releases_nothing(one: World) -> None:
    await one.make(asked(1))
    await one.make(asked(2, uid=BOB.uid), caller=BOB)
    assert isinstance(await failure_of(one.drop(released(1), released(2))), NotAllowed)
    assert len(one.room.devices) == 2


async def test_what_the_kernel_keeps_of_a_batch_keeps_none_of_the_others(one: World) -> None:
    await one.make(asked(1), asked(2), asked(3))
    one.room.keep(endpoint_id(2))
    assert isinstance(await failure_of(one.drop(*map(released, (1, 2, 3)))), KernelRefused)
    assert list(one.room.devices) == list(one.recorded()) == [endpoint_id(2)]


async def test_a_preview_of_a_batch_counts_all_of_it_against_the_quota(one: World) -> None:
    one.networks.configure(one.drivers, Policy([PolicyRule(uid=ALICE.uid, max_endpoints=1)]))
    previews = one.make(asked(1, validate_only=True), asked(2, validate_only=True))
    assert isinstance(await failure_of(previews), QuotaReached)
