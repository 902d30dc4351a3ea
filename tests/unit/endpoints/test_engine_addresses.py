import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.support.messages import endpoint_id
from tests.support.records import entry
from tests.support.worlds import ALICE, BOB, BOOT, World, asked, failure_of, released, world
from vifd.drivers.base import Planned
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.policy import Policy
from vifd.errors import AddressInUse, InvalidRequest, KernelRefused, NetworkFull, TryAgain
from vifd.model import Endpoint, EndpointRequest, EndpointSpec, IpConfig, Port, Preference, State

FIVE = "10.0.0.10-10.0.0.14"


def hand_out(one: World, pool: str = FIVE, driver: type[BridgeDriver] = BridgeDriver) -> None:
    """Give network blue a pool."""
    one.drivers["blue"] = driver("blue", BridgeOptions("br-blue", addresses=("10.0.0.1/24",), pool=(pool,)))
    one.networks.configure(dict(one.drivers), Policy(()))


def want(number: int, *addresses: str, **fields: object) -> EndpointRequest:
    return asked(number, port=Port(addresses=addresses), **fields)


def taken(one: World) -> list[str]:
    """What the journal says that endpoints have."""
    return sorted(address for endpoint in one.recorded().values() for address in endpoint.port.addresses)


@pytest.fixture
def pooled(one: World) -> World:
    hand_out(one)
    return one


async def test_an_endpoint_gets_an_address_and_the_journal_has_it(pooled: World) -> None:
    (made,) = await pooled.make()
    assert made.port.addresses == ("10.0.0.10",)
    assert made.ip_config == IpConfig(("10.0.0.10/24",), ("10.0.0.1",))
    assert pooled.recorded()[made.endpoint_id] == made


async def test_the_same_request_again_has_the_same_address(pooled: World) -> None:
    assert await pooled.make() == await pooled.make()
    assert taken(pooled) == ["10.0.0.10"]


async def test_a_plan_is_made_for_the_addresses_that_are_handed_out(one: World) -> None:
    class Looking(BridgeDriver):
        def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
            seen.append((spec.port.mac, spec.port.mtu_bytes, spec.port.addresses))
            return super().plan(endpoint_id, spec, preference)

    seen: list[tuple[str, int, tuple[str, ...]]] = []
    hand_out(one, driver=Looking)
    (made,) = await one.make(asked(1, port=Port(mtu_bytes=1400)))
    assert seen == [(made.port.mac, 1400, ("10.0.0.10",))]


async def test_a_batch_gets_different_addresses(pooled: World) -> None:
    made = await pooled.make(*map(asked, range(1, 6)))
    assert [endpoint.port.addresses[0][-2:] for endpoint in made] == ["10", "11", "12", "13", "14"]


async def test_a_batch_that_the_pool_is_too_small_for_takes_none_of_it(pooled: World) -> None:
    assert isinstance(await failure_of(pooled.make(*map(asked, range(1, 7)))), NetworkFull)
    assert pooled.is_empty()
    assert pooled.room.calls == []
    assert len(await pooled.make(*map(asked, range(1, 6)))) == 5


async def test_a_batch_in_which_two_want_the_same_takes_none(pooled: World) -> None:
    assert isinstance(await failure_of(pooled.make(asked(1), want(2, "10.0.0.99"), want(3, "10.0.0.99"))), AddressInUse)
    assert pooled.is_empty()
    await pooled.make(want(4, "10.0.0.99"), want(5, "10.0.0.10"))


@pytest.mark.parametrize("number", [1, 5, 9])
async def test_what_the_kernel_refuses_gives_the_addresses_of_its_batch_back(pooled: World, number: int) -> None:
    pooled.room.fail_operation(number)
    assert isinstance(await failure_of(pooled.make(*map(asked, range(1, 4)))), KernelRefused)
    assert pooled.is_empty()
    assert len(await pooled.make(*map(asked, range(1, 6)))) == 5


async def test_what_the_journal_cant_take_gives_its_address_back(pooled: World) -> None:
    await pooled.make(*map(asked, range(1, 5)))
    pooled.let_journal_write(allowed=False)
    assert isinstance(await failure_of(pooled.make(asked(5))), TryAgain)
    pooled.let_journal_write(allowed=True)
    await pooled.make(asked(5))
    assert len(set(taken(pooled))) == 5


async def test_requests_at_once_share_no_address_and_no_more_than_there_are(pooled: World) -> None:
    pooled.room.hold()
    tasks = [asyncio.create_task(pooled.make(asked(number))) for number in range(1, 9)]
    await pooled.room.entered()
    pooled.room.go_on()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [list] * 5 + [NetworkFull] * 3
    assert taken(pooled) == [f"10.0.0.{number}" for number in range(10, 15)]


async def test_what_is_being_made_counts(pooled: World) -> None:
    pooled.room.hold()
    making = asyncio.create_task(pooled.make(want(1, "10.0.0.99")))
    await pooled.room.entered()
    assert isinstance(await failure_of(pooled.make(want(2, "10.0.0.99"))), AddressInUse)
    pooled.room.go_on()
    await making


async def test_what_is_being_released_counts_until_it_is_gone(pooled: World) -> None:
    await pooled.make(*map(asked, range(1, 6)))
    await pooled.room.entered()
    pooled.room.hold()
    dropping = asyncio.create_task(pooled.drop(released(3)))
    await pooled.room.entered()
    assert isinstance(await failure_of(pooled.make(asked(6))), NetworkFull)
    pooled.room.go_on()
    await dropping
    (made,) = await pooled.make(asked(6))
    assert made.port.addresses == ("10.0.0.12",)


async def test_what_the_kernel_keeps_keeps_its_address(pooled: World) -> None:
    await pooled.make(want(1, "10.0.0.99"))
    pooled.room.keep(endpoint_id(1))
    await failure_of(pooled.drop())
    assert isinstance(await failure_of(pooled.make(want(2, "10.0.0.99"))), AddressInUse)
    pooled.room.let_go(endpoint_id(1))
    await pooled.drop()
    await pooled.make(want(2, "10.0.0.99"))


async def test_a_mac_of_another_is_refused_and_nothing_is_made(one: World) -> None:
    await one.make(asked(1, port=Port(mac="52:54:00:12:34:56")))
    same = asked(2, port=Port(mac="52:54:00:12:34:56"), uid=BOB.uid)
    assert isinstance(await failure_of(one.make(same, caller=BOB)), AddressInUse)
    assert len(one.registry) == 1


async def test_an_address_in_no_subnet_is_refused_and_nothing_is_made(pooled: World) -> None:
    failure = await failure_of(pooled.make(asked(1), want(2, "10.0.1.7")))
    assert isinstance(failure, InvalidRequest)
    assert failure.endpoint_id == endpoint_id(2)
    assert pooled.is_empty()


async def test_a_preview_shows_the_address_that_comes_and_reserves_nothing(pooled: World) -> None:
    previews = await pooled.make(*(asked(number, validate_only=True) for number in range(1, 6)))
    again = await pooled.make(*(asked(number, validate_only=True) for number in range(1, 6)))
    made = await pooled.make(*map(asked, range(1, 6)))
    addresses = [[(endpoint.port.addresses, endpoint.ip_config) for endpoint in answers] for answers in (previews, again, made)]
    assert addresses[0] == addresses[1] == addresses[2]
    assert len(set(addresses[0])) == 5


async def test_a_preview_of_what_exists_shows_the_address_that_it_has(pooled: World) -> None:
    await pooled.make(*map(asked, range(1, 6)))
    (preview,) = await pooled.make(asked(3, validate_only=True))
    assert preview.port.addresses == ("10.0.0.12",)
    assert isinstance(await failure_of(pooled.make(asked(6, validate_only=True))), NetworkFull)


async def test_a_start_knows_who_has_what(pooled: World, tmp_path: Path) -> None:
    pooled.journal.set_boot_id(BOOT)
    await pooled.make(*map(asked, range(1, 4)))
    pooled.crash()
    with world(tmp_path / "journal.db", pooled.room) as second:
        hand_out(second)
        await second.recover()
        assert len(await second.make(asked(4), asked(5))) == 2
        assert isinstance(await failure_of(second.make(asked(6))), NetworkFull)
        assert taken(second) == [f"10.0.0.{number}" for number in range(10, 15)]


async def test_a_start_frees_what_was_never_answered_and_keeps_what_cant_go(one: World) -> None:
    one.journal.set_boot_id(BOOT)
    ports = {number: Port(addresses=(f"10.0.0.{number}",)) for number in (10, 11, 12)}
    one.journal.write(
        [
            entry(1, port=ports[10]),
            entry(2, state=State.PENDING, port=ports[11]),
            entry(3, state=State.RELEASING, port=ports[12]),
        ]
    )
    for number in (1, 3):
        one.room.put(endpoint_id(number))
    one.room.keep(endpoint_id(3))
    hand_out(one)
    await one.recover()
    assert isinstance(await failure_of(one.make(want(4, "10.0.0.10"))), AddressInUse)
    assert isinstance(await failure_of(one.make(want(4, "10.0.0.12"))), AddressInUse)
    await one.make(want(4, "10.0.0.11"))


async def change(one: World, number: int, *addresses: str) -> Endpoint:
    """Give an endpoint other addresses while it lives."""
    changes = Changes(one.journal, one.room, one.registry, one.networks, one.engine)
    return await changes.update(ALICE, Change(endpoint_id(number), Port(addresses=addresses), ["addresses"]))


async def test_a_change_takes_the_new_addresses_and_frees_the_old(pooled: World) -> None:
    await pooled.make(asked(1))
    changed = await change(pooled, 1, "10.0.0.99")
    assert changed.ip_config == IpConfig(("10.0.0.99/24",), ("10.0.0.1",))
    assert pooled.recorded()[endpoint_id(1)] == changed
    assert isinstance(await failure_of(pooled.make(want(2, "10.0.0.99"))), AddressInUse)
    await pooled.make(want(2, "10.0.0.10"))


async def test_a_change_to_what_another_has_changes_nothing(pooled: World) -> None:
    (before, _) = await pooled.make(asked(1), want(2, "10.0.0.99"))
    assert isinstance(await failure_of(change(pooled, 1, "10.0.0.99")), AddressInUse)
    assert isinstance(await failure_of(change(pooled, 1, "10.0.1.7")), InvalidRequest)
    assert pooled.recorded()[endpoint_id(1)] == pooled.registry.find(endpoint_id(1)) == before


async def test_a_change_to_no_address_keeps_that_of_the_pool(pooled: World) -> None:
    (before,) = await pooled.make(asked(1))
    assert await change(pooled, 1) == before
    await change(pooled, 1, "10.0.0.99")
    assert (await change(pooled, 1)).port.addresses == ("10.0.0.11",)


async def test_a_change_under_way_holds_the_old_and_the_new(pooled: World) -> None:
    await pooled.make(asked(1))
    await pooled.room.entered()
    pooled.room.hold()
    changing = asyncio.create_task(change(pooled, 1, "10.0.0.99"))
    await pooled.room.entered()
    for address in ("10.0.0.10", "10.0.0.99"):
        assert isinstance(await failure_of(pooled.make(want(2, address))), AddressInUse)
    pooled.room.go_on()
    await changing
    await pooled.make(want(2, "10.0.0.10"))


async def test_a_change_that_the_kernel_refuses_frees_the_new(pooled: World) -> None:
    await pooled.make(asked(1))
    pooled.room.fail_operation(2)
    assert isinstance(await failure_of(change(pooled, 1, "10.0.0.99")), KernelRefused)
    assert isinstance(await failure_of(pooled.make(want(2, "10.0.0.10"))), AddressInUse)
    await pooled.make(want(2, "10.0.0.99"))


async def test_many_at_once_leave_no_address_to_two_and_none_lost(pooled: World) -> None:
    async def use(number: int) -> None:
        for _ in range(5):
            with contextlib.suppress(NetworkFull):
                await pooled.make(asked(number))
            addresses = taken(pooled)
            assert len(addresses) == len(set(addresses)) <= 5
            await pooled.drop(released(number))

    await asyncio.gather(*(use(number) for number in range(1, 21)))
    assert pooled.is_empty()
    assert len(await pooled.make(*map(asked, range(1, 6)))) == 5
