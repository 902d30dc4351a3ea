import pytest

from tests.support.messages import endpoint_id
from tests.support.worlds import ALICE, BOB, ROOT, Watch, World, asked, failure_of, released
from vifd.endpoints.registry import Registry
from vifd.errors import Overloaded, TryAgain
from vifd.model import Endpoint, Filter, Owner, Port, State


def endpoint(number: int, uid: int = 1000) -> Endpoint:
    return Endpoint(endpoint_id(number), number, "hash", "blue", "bridge", State.READY, Port(), Owner(uid), 0)


def filled(count: int) -> Registry:
    registry = Registry()
    for number in range(count):
        registry.add(endpoint(number), ())
    return registry


async def test_a_watch_begins_with_all_that_is_current(one: World) -> None:
    await one.make(asked(1), asked(2))
    watch = Watch(one)
    assert await watch.synced() == [("CURRENT", "1", "ready"), ("CURRENT", "2", "ready")]
    await watch.close()


async def test_a_watch_tells_the_whole_life_of_an_endpoint(one: World) -> None:
    watch = Watch(one)
    await watch.synced()
    (made,) = await one.make()
    one.follower.on_carrier(made.ifindex, carrier=True)
    await one.drop()
    assert [await watch.next() for _ in range(5)] == [
        ("ADDED", "1", "pending"),
        ("CHANGED", "1", "ready"),
        ("CHANGED", "1", "attached"),
        ("CHANGED", "1", "releasing"),
        ("REMOVED", "1", "releasing"),
    ]
    await watch.close()


async def test_a_watch_tells_of_an_endpoint_that_came_to_nothing(one: World) -> None:
    watch = Watch(one)
    await watch.synced()
    one.room.fail_operation(1)
    await failure_of(one.make())
    assert [await watch.next() for _ in range(2)] == [("ADDED", "1", "pending"), ("REMOVED", "1", "pending")]
    await watch.close()


async def test_a_watch_misses_nothing_that_happens_while_it_reads_what_is_current(one: World) -> None:
    await one.make(asked(1), asked(2))
    watch = Watch(one)
    assert await watch.next() == ("CURRENT", "1", "ready")
    await one.drop(released(1))
    assert await watch.synced() == [("CURRENT", "2", "ready")]
    assert [await watch.next() for _ in range(2)] == [("CHANGED", "1", "releasing"), ("REMOVED", "1", "releasing")]
    await watch.close()


async def test_a_watch_shows_a_caller_only_its_own(one: World) -> None:
    await one.make(asked(1))
    watch = Watch(one, BOB)
    assert await watch.synced() == []
    await one.make(asked(2))
    await one.make(asked(3, uid=BOB.uid), caller=BOB)
    assert await watch.next() == ("ADDED", "3", "pending")
    await watch.close()


async def test_a_watch_shows_root_everything(one: World) -> None:
    await one.make(asked(1))
    await one.make(asked(2, uid=BOB.uid), caller=BOB)
    watch = Watch(one, ROOT)
    assert len(await watch.synced()) == 2
    await watch.close()


async def test_a_watch_shows_only_what_its_filter_matches(one: World) -> None:
    watch = Watch(one, ALICE, Filter(network="red"))
    await watch.synced()
    await one.make(asked(1), asked(2, network="red"))
    assert await watch.next() == ("ADDED", "2", "pending")
    await watch.close()


async def test_a_watcher_that_is_too_slow_gets_what_it_has_and_then_the_error() -> None:
    registry = filled(1)
    watch = registry.watch(lambda _endpoint: True)
    await anext(watch)
    for _ in range(5000):
        registry.update(endpoint(0))
    for _ in range(1 + 4096):
        await anext(watch)
    with pytest.raises(Overloaded, match="too slow"):
        await anext(watch)


async def test_a_watcher_that_is_too_slow_holds_nobody_up() -> None:
    registry = filled(1)
    slow, fast = registry.watch(lambda _endpoint: True), registry.watch(lambda _endpoint: True)
    await anext(slow)
    for _ in range(2):
        await anext(fast)
    for _ in range(5000):
        registry.update(endpoint(0))
        change, _ = await anext(fast)
        assert change.name == "CHANGED"
    await slow.aclose()
    await fast.aclose()


async def test_there_are_at_most_256_watchers() -> None:
    registry = filled(1)
    watches = [registry.watch(lambda _endpoint: True) for _ in range(257)]
    for watch in watches[:256]:
        await anext(watch)
    with pytest.raises(Overloaded, match="256 watchers"):
        await anext(watches[256])
    await watches[0].aclose()
    again = registry.watch(lambda _endpoint: True)
    assert (await anext(again))[0].name == "CURRENT"
    for watch in [*watches, again]:
        await watch.aclose()


async def test_a_user_has_at_most_32_watchers_and_others_find_a_place() -> None:
    registry = filled(1)
    watches = [registry.watch(lambda _endpoint: True, 1000) for _ in range(33)]
    for watch in watches[:32]:
        await anext(watch)
    with pytest.raises(Overloaded, match="uid 1000 has 32 watchers"):
        await anext(watches[32])
    for uid in (1001, 0):
        other = registry.watch(lambda _endpoint: True, uid)
        assert (await anext(other))[0].name == "CURRENT"
        watches.append(other)
    for watch in watches:
        await watch.aclose()


async def test_a_watch_ends_with_an_error_when_vifd_stops() -> None:
    registry = filled(0)
    watch = registry.watch(lambda _endpoint: True)
    await anext(watch)
    registry.close()
    with pytest.raises(TryAgain):
        await anext(watch)


async def test_what_happened_before_the_stop_is_still_told() -> None:
    registry = filled(1)
    watch = registry.watch(lambda _endpoint: True)
    for _ in range(2):
        await anext(watch)
    registry.remove(endpoint_id(0))
    registry.close()
    assert (await anext(watch))[0].name == "REMOVED"
    with pytest.raises(TryAgain):
        await anext(watch)


async def test_nobody_watches_a_vifd_that_stops() -> None:
    registry = filled(0)
    registry.close()
    with pytest.raises(TryAgain):
        await anext(registry.watch(lambda _endpoint: True))


def test_endpoints_are_counted_by_owner() -> None:
    registry = filled(2)
    registry.add(endpoint(7, uid=7), ())
    registry.remove(endpoint_id(0))
    assert (registry.count_of(1000), registry.count_of(7), registry.count_of(8), len(registry)) == (1, 1, 0, 2)
