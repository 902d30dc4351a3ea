import os

import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, BRIDGE, ROOT, World, asked, failure_of
from vifd.config import PolicyRule, Role
from vifd.endpoints.policy import Policy
from vifd.errors import NotAllowed, UnknownEndpoint, Unsupported, WrongState
from vifd.model import Caller, Filter, Instance, Kind, TapPreference


def let(one: World, *rules: PolicyRule) -> None:
    one.networks.configure(one.drivers, Policy(rules))


def ids(one: World, caller: Caller = ALICE, after: int = 0, count: int = 10, **wanted: object) -> tuple[list[int], bool]:
    page, more = one.views.page(caller, Filter(**wanted), after=endpoint_id(after) if after else "", count=count)
    return [int(endpoint.endpoint_id[-4:], 16) for endpoint in page], more


async def test_an_endpoint_is_shown_to_its_owner(one: World) -> None:
    (endpoint,) = await one.make()
    assert one.views.get(ALICE, endpoint.endpoint_id) == endpoint


async def test_somebody_elses_endpoint_is_as_unknown_as_none(one: World) -> None:
    await one.make()
    with pytest.raises(UnknownEndpoint) as theirs:
        one.views.get(BOB, endpoint_id(1))
    with pytest.raises(UnknownEndpoint) as none:
        one.views.get(BOB, endpoint_id(2))
    assert str(theirs.value).replace("1 that", "2 that") == str(none.value)


async def test_pages_follow_each_other_by_id(one: World) -> None:
    await one.make(*(asked(number) for number in (3, 1, 5, 2, 4)))
    assert ids(one, count=2) == ([1, 2], True)
    assert ids(one, after=2, count=2) == ([3, 4], True)
    assert ids(one, after=4, count=2) == ([5], False)


async def test_a_page_goes_on_where_its_last_endpoint_was_released(one: World) -> None:
    await one.make(*(asked(number) for number in (1, 3)))
    assert ids(one, after=2) == ([3], False)


async def test_a_page_holds_only_what_the_caller_may_see(one: World) -> None:
    await one.make(asked(1))
    await one.make(asked(2, uid=BOB.uid), caller=BOB)
    assert (ids(one, ALICE)[0], ids(one, BOB)[0], ids(one, ROOT)[0]) == ([1], [2], [1, 2])


async def test_a_filter_takes_network_instance_and_labels_together(one: World) -> None:
    vm = Instance("aaaaaaaa-2222-4333-8444-555555555555")
    await one.make(
        asked(1, instance=vm, labels={"a": "1", "b": "2"}),
        asked(2, network="red", instance=vm),
        asked(3, labels={"a": "1"}),
        asked(4),
    )
    assert ids(one, network="blue")[0] == [1, 3, 4]
    assert ids(one, instance_uuid=vm.uuid)[0] == [1, 2]
    assert ids(one, labels={"a": "1"})[0] == [1, 3]
    assert ids(one, labels={"a": "1", "b": "2"})[0] == [1]
    assert ids(one, network="red", labels={"a": "1"})[0] == []


async def test_networks_are_shown_by_name_with_their_endpoints(one: World) -> None:
    await one.make(asked(1), asked(2))
    assert [(info.name, info.endpoint_count) for info in one.views.networks(ALICE)] == [("blue", 2), ("fake", 0), ("red", 0)]


async def test_a_network_that_the_caller_may_not_know_of_isnt_shown(one: World) -> None:
    let(one, PolicyRule(uid=ALICE.uid, networks=("red",), role=Role.READ))
    assert [info.name for info in one.views.networks(ALICE)] == ["red"]
    assert one.views.networks(BOB) == []


async def test_the_problem_of_a_network_is_shown_with_every_kind(one: World) -> None:
    one.networks.problems["blue"] = "uplink eth9 isn't there"
    blue, fake, _ = one.views.networks(ALICE)
    assert {offer.unavailable for offer in blue.offers} == {"uplink eth9 isn't there"}
    assert {offer.kind for offer in fake.offers if not offer.unavailable} == set(Kind)


async def test_the_owner_gets_all_queues_of_a_tap(one: World) -> None:
    await one.make(asked(acceptable=[TapPreference(queues=3, vnet_hdr=False)]))
    fds, tap = await one.queues.open(ALICE, endpoint_id(1), 0)
    for fd in fds:
        os.close(fd)
    assert (len(fds), tap.vnet_hdr) == (3, False)


async def test_the_owner_may_ask_for_fewer_queues(one: World) -> None:
    await one.make(asked(acceptable=[TapPreference(queues=3)]))
    (fd,), _ = await one.queues.open(ALICE, endpoint_id(1), 1)
    os.close(fd)


async def test_more_queues_than_a_tap_has_are_refused(one: World) -> None:
    await one.make()
    assert isinstance(await failure_of(one.queues.open(ALICE, endpoint_id(1), 2)), WrongState)


async def test_queues_of_an_unknown_endpoint_are_refused(one: World) -> None:
    assert isinstance(await failure_of(one.queues.open(ALICE, endpoint_id(1), 0)), UnknownEndpoint)


async def test_queues_of_somebody_elses_endpoint_are_refused(one: World) -> None:
    await one.make()
    assert isinstance(await failure_of(one.queues.open(BOB, endpoint_id(1), 0)), UnknownEndpoint)


async def test_who_may_only_read_gets_no_queues(one: World) -> None:
    await one.make()
    let(one, PolicyRule(uid=BOB.uid, role=Role.READ))
    assert isinstance(await failure_of(one.queues.open(BOB, endpoint_id(1), 0)), NotAllowed)


@pytest.mark.parametrize("network", ["blue", "fake"])
async def test_what_is_no_tap_has_no_queues(one: World, network: str) -> None:
    await one.make(asked(network=network, acceptable=BRIDGE))
    assert isinstance(await failure_of(one.queues.open(ALICE, endpoint_id(1), 0)), Unsupported)


async def test_a_fake_tap_has_queues_that_lead_nowhere(one: World) -> None:
    await one.make(asked(network="fake", acceptable=[TapPreference(queues=2)]))
    fds, _ = await one.queues.open(ALICE, endpoint_id(1), 0)
    assert [os.write(fd, b"frame") for fd in fds] == [5, 5]
    await one.drop()
    for fd in fds:
        os.close(fd)
    assert ("open_queues", 2) not in one.room.calls


async def test_an_endpoint_that_is_being_released_opens_no_more(one: World) -> None:
    await one.make()
    one.room.keep(endpoint_id(1))
    await failure_of(one.drop())
    assert isinstance(await failure_of(one.queues.open(ALICE, endpoint_id(1), 0)), WrongState)


async def test_a_tap_that_is_gone_opens_no_more(one: World) -> None:
    await one.make()
    one.room.delete(endpoint_id(1))
    assert isinstance(await failure_of(one.queues.open(ALICE, endpoint_id(1), 0)), UnknownEndpoint)
