import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from tests.unit.client.conftest import QUICK_RETRY
from tests.unit.client.fake_vifd import FakeVifd, make_status, retry_info
from tests.unit.client.test_client import tap_request
from vifclient import errors
from vifclient.aio import Client
from vifclient.messages import PortSpec, ReleaseEndpointRequest, WatchEventKind

CODE = grpc.StatusCode
Story = Callable[[Client], Awaitable[None]]


@contextlib.asynccontextmanager
async def connect(vifd: FakeVifd) -> AsyncIterator[Client]:
    async with Client(vifd.socket_path, timeout_s=10, retry=QUICK_RETRY) as client:
        yield client


def run(vifd: FakeVifd, story: Story) -> None:
    async def tell() -> None:
        async with connect(vifd) as client:
            await story(client)

    asyncio.run(tell())


def test_a_life(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        answer = await client.request_endpoint(tap_request("a"))
        assert await client.get_endpoint("a") == answer.endpoint
        assert (await client.activate_endpoint("a")).endpoint_id == "a"
        assert (await client.check_endpoint("a")).endpoint == answer.endpoint
        assert (await client.update_endpoint("a", PortSpec(mtu_bytes=9000), ["mtu_bytes"])).port.mtu_bytes == 9000
        assert (await client.get_host_info()).version == "0.0.fake"
        await client.release_endpoint("a")
        with pytest.raises(errors.NotFound):
            await client.get_endpoint("a")

    run(vifd, story)


def test_batches_and_pages(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        assert len(await client.batch_request_endpoints(tap_request(one) for one in "abcde")) == 5
        assert [endpoint.endpoint_id async for endpoint in client.list_endpoints()] == list("abcde")
        await client.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id="a")])
        assert await client.collect_garbage(["b"]) == ["c", "d", "e"]
        assert [endpoint.endpoint_id async for endpoint in client.list_endpoints()] == ["b"]

    run(vifd, story)


def test_unavailable_is_repeated(vifd: FakeVifd) -> None:
    vifd.failures += [make_status(CODE.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(0.001))] * 3

    async def story(client: Client) -> None:
        await client.get_host_info()

    run(vifd, story)
    assert vifd.calls == ["GetHostInfo"] * 4


def test_errors_keep_their_details(vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(CODE.INTERNAL, "no", "KERNEL"))

    async def story(client: Client) -> None:
        with pytest.raises(errors.ServerError) as caught:
            await client.get_host_info()
        assert (caught.value.reason, caught.value.metadata) == ("KERNEL", {"fake": "yes"})

    run(vifd, story)
    assert vifd.calls == ["GetHostInfo"]


def test_nobody_there(folder: Path) -> None:
    async def tell() -> None:
        async with Client(str(folder / "none.sock"), retry=QUICK_RETRY) as client:
            with pytest.raises(errors.Unreachable, match="there is no such socket"):
                await client.get_host_info(timeout_s=0.2)

    asyncio.run(tell())


def test_a_watch(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        await client.request_endpoint(tap_request("a"))
        async with client.watch_endpoints() as events:
            assert (await anext(events)).endpoint.endpoint_id == "a"
            assert (await anext(events)).kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED
        assert [event async for event in events] == []

    run(vifd, story)
    assert vifd.end_watch.wait(10)


def test_a_watch_is_closed_by_another_task(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        events = client.watch_endpoints()
        await anext(events)
        reader = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)  # the reader waits
        events.close()
        assert await reader is None

    run(vifd, story)


def test_cancelling_a_watcher_is_not_swallowed(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        events = client.watch_endpoints()
        await anext(events)
        reader = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        reader.cancel()
        events.close()
        with pytest.raises(asyncio.CancelledError):
            await reader

    run(vifd, story)


def test_a_watch_that_breaks_is_not_repeated(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        events = client.watch_endpoints()
        await anext(events)
        vifd.failures.append(make_status(CODE.UNAVAILABLE, "stopping", "TRY_AGAIN"))
        vifd.end_watch.set()
        with pytest.raises(errors.Unavailable, match="stopping"):
            await anext(events)

    run(vifd, story)
    assert vifd.calls == ["WatchEndpoints"]


def test_cancelling_a_call_cancels_it(vifd: FakeVifd) -> None:
    vifd.hang.clear()

    async def story(client: Client) -> None:
        call = asyncio.create_task(client.get_host_info())
        await asyncio.to_thread(vifd.entered.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(vifd, story)


def test_fds_are_handed_over(vifd: FakeVifd) -> None:
    async def story(client: Client) -> None:
        with await client.acquire_fds("a") as queues:
            assert len(queues.fds) == 2
            assert queues.vnet_hdr

    run(vifd, story)
    assert vifd.calls == ["GetHostInfo"]  # which says where the fd socket is
    assert [request.endpoint_id for request in vifd.fds.asked] == ["a"]


def test_an_fd_socket_that_does_not_answer(vifd: FakeVifd) -> None:
    vifd.fds.answer = lambda request: vifd.fds.release.wait() and None

    async def story(client: Client) -> None:
        with pytest.raises(errors.DeadlineExceeded, match="fd socket"):
            await client.acquire_fds("a", timeout_s=0.05)

    run(vifd, story)


def test_the_way_to_the_fd_socket_is_within_the_time(vifd: FakeVifd, folder: Path) -> None:
    vifd.failures.append(make_status(grpc.StatusCode.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(0.6)))
    vifd.fd_socket_path = str(folder / "none.sock")

    async def story(client: Client) -> None:
        began_s = time.monotonic()
        with pytest.raises(errors.Unreachable, match=r"none\.sock"):
            await client.acquire_fds("a", timeout_s=1)
        assert time.monotonic() - began_s < 1.4

    run(vifd, story)


def test_cancelling_the_hand_over_leaves_nothing_open(vifd: FakeVifd) -> None:
    asked = threading.Event()
    vifd.fds.answer = lambda request: asked.set() or (vifd.fds.release.wait() and None)

    async def story(client: Client) -> None:
        call = asyncio.create_task(client.acquire_fds("a"))
        await asyncio.to_thread(asked.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(vifd, story)  # warnings are errors: an unclosed socket would be one
