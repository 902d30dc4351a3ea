import asyncio

import pytest
from msgspec.structs import replace

from tests.support.links import port_attributes
from tests.support.messages import endpoint_id
from tests.support.worlds import World, asked, released
from vifd.endpoints.follower import Follower
from vifd.kernel import ports
from vifd.kernel.linkevents import PortState
from vifd.kernel.room import HelperLostError
from vifd.model import DriftKind, Endpoint, State, TapPreference, Vlan

TAPS = [TapPreference()]


def state(one: World, number: int = 1) -> State:
    endpoint = one.registry.find(endpoint_id(number))
    assert endpoint is not None
    return endpoint.state


async def make(one: World, network: str = "blue") -> Endpoint:
    (endpoint,) = await one.make(asked(network=network))
    return endpoint


async def test_a_tap_that_somebody_opens_is_attached(one: World) -> None:
    endpoint = await make(one)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    assert state(one) is State.ATTACHED


async def test_a_tap_that_somebody_closes_is_ready_again(one: World) -> None:
    endpoint = await make(one)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    assert state(one) is State.READY


@pytest.mark.parametrize("is_known", [False, True], ids=["heard before it is recorded", "heard after it is recorded"])
async def test_a_tap_that_is_set_down_is_ready_whoever_has_it_open(one: World, is_known: bool) -> None:
    endpoint = await make(one)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    endpoint = replace(endpoint, state=State.ACTIVE)
    one.registry.update(replace(endpoint, port=replace(endpoint.port, link_up=not is_known)))
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    assert state(one) is State.READY


async def test_an_event_of_a_device_that_is_nobodys_is_ignored(one: World) -> None:
    endpoint = await make(one)
    one.follower.on_carrier(endpoint.ifindex + 1, carrier=True)
    one.follower.on_gone(endpoint.ifindex + 1)
    one.follower.on_gone(0)
    assert list(one.registry) == [endpoint]


async def test_a_device_that_went_away_is_a_drift(one: World) -> None:
    endpoint = await make(one)
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    one.follower.on_gone(endpoint.ifindex)
    (found,) = one.registry
    (drift,) = found.drifts
    assert found.state is State.READY
    assert (drift.kind, drift.expected) == (DriftKind.DEVICE_MISSING, found.location.ifname)
    assert "release the endpoint and request it again" in drift.message


async def test_a_port_that_differs_makes_its_endpoint_a_suspect(one: World) -> None:
    endpoint, suspects = await make(one), list[str]()
    follower = Follower(one.registry, one.networks, one.room, suspects.append)

    def hear(port: PortState, ifindex: int = endpoint.ifindex) -> None:
        follower.on_port(ifindex, port_attributes(port))

    as_it_is = PortState(isolated=bool(endpoint.port.isolated), group_forward_mask=ports.group_forward_mask(endpoint.port))
    hear(as_it_is)
    hear(as_it_is._replace(multicast_router=ports.multicast_router(endpoint.port)))
    hear(as_it_is._replace(isolated=True), endpoint.ifindex + 1)
    assert suspects == []
    hear(as_it_is._replace(isolated=not as_it_is.isolated))
    hear(as_it_is._replace(group_forward_mask=1))
    hear(as_it_is._replace(multicast_router=2))
    one.registry.update(replace(endpoint, port=replace(endpoint.port, vlan=Vlan(vid=5))))
    hear(as_it_is)
    assert suspects == [endpoint.endpoint_id] * 4


async def test_a_bridge_that_went_away_makes_its_networks_endpoints_suspects(one: World) -> None:
    for number, network in ((1, "blue"), (2, "red"), (3, "fake"), (4, "blue")):
        await one.make(asked(number, network=network))
    suspects: list[str] = []
    follower = Follower(one.registry, one.networks, one.room, suspects.append)
    for ifname in ("br-blu", "br-blue", ""):
        follower.on_gone(99, ifname)
    assert suspects == [endpoint_id(1), endpoint_id(4)]
    assert [endpoint.drifts for endpoint in one.registry] == [()] * 4


async def test_a_device_that_goes_away_because_it_is_released_is_no_drift(one: World) -> None:
    endpoint = await make(one)
    await one.room.entered()
    one.room.hold()
    dropping = asyncio.create_task(one.drop())
    await one.room.entered()
    one.follower.on_gone(endpoint.ifindex)
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    assert state(one) is State.RELEASING
    one.room.go_on()
    await dropping


async def test_the_index_of_a_released_device_is_nobodys(one: World) -> None:
    endpoint = await make(one)
    await one.drop()
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    assert one.registry.find_by_ifindex(endpoint.ifindex) is None


async def test_a_fake_tap_doesnt_take_the_events_of_a_real_device(one: World) -> None:
    endpoint = await make(one, "fake")
    one.follower.on_carrier(endpoint.ifindex, carrier=True)
    one.follower.on_gone(endpoint.ifindex)
    assert list(one.registry) == [endpoint]


async def test_a_fake_tap_isnt_attached_because_a_real_device_is(one: World) -> None:
    one.carriers = dict.fromkeys(range(1, 10_001), True)
    assert (await make(one, "fake")).state is State.READY


async def test_a_resync_notes_what_was_missed(one: World) -> None:
    for number in (1, 2, 3):
        await one.make(asked(number))
    one.room.open(endpoint_id(2))
    one.room.delete(endpoint_id(3))
    await one.follower.resync()
    assert [state(one, number) for number in (1, 2, 3)] == [State.READY, State.ATTACHED, State.READY]
    assert [len(endpoint.drifts) for endpoint in one.registry] == [0, 0, 1]


async def test_a_resync_with_nothing_to_look_at_doesnt_ask_for_everything(one: World) -> None:
    await one.make(asked(1, network="fake", acceptable=TAPS))
    one.room.calls.clear()
    await one.follower.resync()
    assert one.room.calls == []
    assert [endpoint.drifts for endpoint in one.registry] == [()]


async def test_many_losses_are_few_looks(one: World) -> None:
    await make(one)
    await one.room.entered()
    one.room.calls.clear()
    one.room.hold()
    first = asyncio.create_task(one.follower.resync())
    await one.room.entered()
    for _ in range(100):
        await one.follower.resync()
    one.room.go_on()
    await first
    assert one.room.calls == [("inspect", 1)] * 2


async def test_what_is_heard_while_all_are_looked_at_is_later_news(one: World) -> None:
    endpoint = await make(one)
    await one.room.entered()
    one.room.hold()
    resync = asyncio.create_task(one.follower.resync())
    await one.room.entered()
    one.follower.on_carrier(endpoint.ifindex, carrier=True)  # and the answer is from before
    one.room.go_on()
    await resync
    assert state(one) is State.ATTACHED
    one.follower.on_carrier(endpoint.ifindex, carrier=False)
    await one.follower.resync()
    assert state(one) is State.READY


async def test_a_resync_hurts_nothing_that_is_made_anew_meanwhile(one: World) -> None:
    await make(one)
    await one.room.entered()
    one.room.delete(endpoint_id(1))
    one.room.hold()
    resync = asyncio.create_task(one.follower.resync())
    await one.room.entered()
    dropping = asyncio.create_task(one.drop(released()))
    await one.room.entered()
    one.room.go_on()
    await asyncio.gather(resync, dropping)
    endpoint = await make(one)
    assert (endpoint.state, endpoint.drifts) == (State.READY, ())


async def test_a_resync_says_nothing_when_the_helper_is_lost(one: World) -> None:
    endpoint = await make(one)
    one.room.lose()
    with pytest.raises(HelperLostError):
        await one.follower.resync()
    assert list(one.registry) == [endpoint]
