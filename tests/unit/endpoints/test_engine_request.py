import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BRIDGE, TAP, World, asked, failure_of, released
from vifd.errors import (
    HostNotReady,
    IdInUse,
    KernelRefused,
    NetworkFull,
    NoAcceptableKind,
    TryAgain,
    UnknownNetwork,
    Unsupported,
    WrongState,
)
from vifd.model import BridgePort, Kind, Outcome, Port, State, TapDevice, TapPreference, VdpaPreference


async def test_a_request_makes_a_device_and_answers_with_it(one: World) -> None:
    (endpoint,) = await one.make()
    device = one.room.devices[endpoint.endpoint_id]
    assert endpoint.state is State.READY
    assert endpoint.location == TapDevice(device.ifname, device.ifindex, 1, vnet_hdr=True)
    assert (device.up, device.mtu_bytes) == (True, 1500)


async def test_an_answered_endpoint_is_in_the_journal_as_it_was_answered(one: World) -> None:
    (endpoint,) = await one.make()
    assert one.recorded() == {endpoint.endpoint_id: endpoint}


async def test_the_mtu_that_was_vifds_choice_is_filled_in(one: World) -> None:
    (endpoint,) = await one.make()
    assert endpoint.port.mtu_bytes == 1500


async def test_the_mac_that_was_vifds_choice_is_the_same_in_each_life(one: World) -> None:
    (first,) = await one.make()
    await one.drop()
    (second,) = await one.make()
    assert first.port.mac == second.port.mac != ""


async def test_a_bridge_endpoint_has_no_device_of_its_own(one: World) -> None:
    (endpoint,) = await one.make(asked(acceptable=BRIDGE))
    assert isinstance(endpoint.location, BridgePort)
    assert (endpoint.location.bridge_name, one.room.devices) == ("br-blue", {})


async def test_a_fake_endpoint_needs_no_kernel(one: World) -> None:
    (endpoint,) = await one.make(asked(network="fake", acceptable=[VdpaPreference(2)]))
    assert endpoint.location is not None
    assert endpoint.location.kind is Kind.VDPA
    assert one.room.devices == {}


async def test_the_same_request_again_gives_the_same_endpoint(one: World) -> None:
    assert await one.make() == await one.make()
    assert one.room.calls == [("apply", 1)]


async def test_the_same_request_again_gives_the_endpoint_as_it_is_now(one: World) -> None:
    (endpoint,) = await one.make()
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    (again,) = await one.make()
    assert again.state is State.ATTACHED


async def test_the_same_id_with_another_spec_is_refused_and_changes_nothing(one: World) -> None:
    (before,) = await one.make()
    error = await failure_of(one.make(asked(acceptable=[TapPreference(queues=2)])))
    assert isinstance(error, IdInUse)
    assert list(one.registry) == [before]


async def test_the_same_id_of_another_owner_is_refused(one: World) -> None:
    await one.make()
    assert isinstance(await failure_of(one.make(asked(uid=BOB.uid), caller=BOB)), IdInUse)


async def test_a_new_life_has_a_larger_generation(one: World) -> None:
    (first,) = await one.make()
    await one.drop()
    (second,) = await one.make()
    assert second.generation > first.generation > 0


async def test_a_network_that_isnt_configured_is_unknown(one: World) -> None:
    assert isinstance(await failure_of(one.make(asked(network="green"))), UnknownNetwork)
    assert one.is_empty()


async def test_the_outcome_of_each_preference_is_kept_with_the_endpoint(one: World) -> None:
    (endpoint,) = await one.make(asked(acceptable=[VdpaPreference(), *TAP, *BRIDGE]))
    assert [c.outcome for c in endpoint.considered] == [Outcome.KIND_NOT_OFFERED, Outcome.CHOSEN, Outcome.NOT_NEEDED]


async def test_a_request_that_cant_be_met_leaves_nothing(one: World) -> None:
    error = await failure_of(one.make(asked(acceptable=[VdpaPreference()])))
    assert isinstance(error, NoAcceptableKind)
    assert one.is_empty()


async def test_an_option_that_cant_be_honoured_is_refused(one: World) -> None:
    unguarded = asked(acceptable=BRIDGE, port=Port(guard_enabled=True))
    assert isinstance(await failure_of(one.make(unguarded)), Unsupported)


async def test_what_the_kernel_refuses_is_answered_so(one: World) -> None:
    one.room.fail_operation(2)
    error = await failure_of(one.make())
    assert isinstance(error, KernelRefused)
    assert error.metadata == {"operation": "CreateTap", "device": "vdt", "errno": "12"}


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_failure_of_any_operation_leaves_nothing(one: World, number: int) -> None:
    one.room.fail_operation(number)
    await failure_of(one.make())
    assert one.is_empty()


async def test_a_request_that_failed_works_when_the_cause_is_gone(one: World) -> None:
    one.room.fail_operation(1, HostNotReady("no bridge"))
    assert isinstance(await failure_of(one.make()), HostNotReady)
    (endpoint,) = await one.make()
    assert endpoint.state is State.READY


async def test_a_full_bridge_is_answered_so_and_leaves_nothing(one: World) -> None:
    one.room.ports_a_bridge = 1
    await one.make()
    assert isinstance(await failure_of(one.make(asked(2))), NetworkFull)
    assert list(one.room.devices) == [endpoint_id(1)]


async def test_the_network_system_is_told_of_a_new_endpoint_before_it_is_made(one: World) -> None:
    one.room.fail_operation(1)
    await failure_of(one.make(asked(network="red")))
    assert one.noting.told == [("bind", endpoint_id(1)), ("unbind", endpoint_id(1))]


async def test_an_endpoint_that_the_network_system_refuses_is_not_made(one: World) -> None:
    one.noting.refuses["bind", endpoint_id(1)] = TryAgain("the controller isn't reachable")
    assert isinstance(await failure_of(one.make(asked(network="red"))), TryAgain)
    assert one.room.calls == []
    assert one.is_empty()


async def test_a_preview_shows_the_plan_and_makes_nothing(one: World) -> None:
    (answer,) = await one.engine.request(ALICE, [asked(validate_only=True)])
    assert answer.endpoint.generation == 0
    assert [type(operation).__name__ for operation in answer.plan] == ["EnsureBridge", "CreateTap", "ConfigurePort"]
    assert one.is_empty()
    assert one.room.calls == []


async def test_a_preview_of_what_exists_with_another_spec_is_refused(one: World) -> None:
    await one.make()
    assert isinstance(await failure_of(one.make(asked(acceptable=BRIDGE, validate_only=True))), IdInUse)


async def test_a_preview_of_what_cant_be_met_is_refused(one: World) -> None:
    assert isinstance(await failure_of(one.make(asked(acceptable=[VdpaPreference()], validate_only=True))), NoAcceptableKind)


async def test_a_tap_that_was_opened_before_the_answer_is_attached(one: World) -> None:
    one.carriers[11] = True
    (endpoint,) = await one.make()
    assert (endpoint.ifindex, endpoint.state) == (11, State.ATTACHED)


async def test_an_endpoint_whose_release_failed_has_to_be_released_first(one: World) -> None:
    await one.make()
    one.room.keep(endpoint_id(1))
    await failure_of(one.drop())
    assert isinstance(await failure_of(one.make()), WrongState)


async def test_nothing_is_made_once_vifd_stops(one: World) -> None:
    one.engine.refuse_work()
    assert isinstance(await failure_of(one.make()), TryAgain)
    assert isinstance(await failure_of(one.drop(released())), TryAgain)
    assert one.is_empty()


async def test_a_problem_of_a_network_is_forgotten_when_an_endpoint_is_made_on_it(one: World) -> None:
    one.networks.problems["blue"] = "uplink eth9 isn't there"
    await one.make()
    assert one.networks.problems == {}
