import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.messages import ID
from vifd.errors import HostNotReady, KernelRefused, NetworkFull, StartError, UnknownEndpoint, WrongState
from vifd.kernel import ops
from vifd.kernel.room import HelperLostError, NoRoom, PrivilegedRoom

PLAN = (ops.EnsureBridge("blue"),)


class FakeCalls:
    """The helper's entry points, with an answer each."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, tuple[object, ...]]] = []

    async def call(self, name: str, *arguments: object) -> Any:
        self.asked.append((name, arguments))
        answer = self.answers[name]
        return answer(*arguments) if callable(answer) else answer


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with front, back:
        yield front, back


Channel = tuple[socket.socket, socket.socket]


def room(channel: Channel, **answers: Any) -> PrivilegedRoom:
    return PrivilegedRoom(FakeCalls(**answers), channel[0])


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ops.KERNEL, KernelRefused),
        (ops.FULL, NetworkFull),
        (ops.NOT_READY, HostNotReady),
        (ops.REJECTED, KernelRefused),
        ("of a later vifd", KernelRefused),
    ],
)
async def test_each_cause_of_a_refusal_is_an_error_that_says_what_to_do(channel: Channel, cause: str, kind: type) -> None:
    refusal = ops.Refusal(0, "CreateTap", "vdtx", errno.EBUSY, "busy", cause)
    made = [ops.Made(7, 1500, "br-blue")]
    one = room(channel, apply=ops.encode([made, refusal]), revert=ops.encode([None, refusal]))
    done, failed = await one.apply([(PLAN,), (PLAN,)])
    gone, kept = await one.revert([PLAN, PLAN])
    assert (done, gone) == (made, None)
    assert type(failed) is type(kept) is kind


async def test_a_refusal_of_the_kernel_keeps_operation_device_and_number(channel: Channel) -> None:
    refusal = ops.Refusal(0, "CreateTap", "vdtx", errno.EBUSY, "busy")
    (error,) = await room(channel, apply=ops.encode([refusal])).apply([(PLAN,)])
    assert isinstance(error, KernelRefused)
    assert error.metadata == {"operation": "CreateTap", "device": "vdtx", "errno": str(errno.EBUSY)}


async def test_devices_are_told(channel: Channel) -> None:
    device = ops.Device("vdtx", 7, "tun", ID, 3, 1500, "fe:00:00:00:00:01", up=True, carrier=False)
    assert await room(channel, inspect=ops.encode([device])).inspect([ID]) == [device]


async def test_a_crowd_that_checks_and_changes_keeps_nobody_from_an_endpoint(channel: Channel) -> None:
    asked: list[str] = []
    held = asyncio.Event()

    class SlowCalls(FakeCalls):
        async def call(self, name: str, *arguments: object) -> Any:
            asked.append(name)
            if name in {"check", "announce"}:
                await held.wait()
            return self.answers[name]

    answers = {"check": ops.encode([[]]), "announce": [""], "apply": ops.encode([[]]), "revert": ops.encode([]), "inspect": b""}
    one = PrivilegedRoom(SlowCalls(**answers), channel[0])
    crowd = [asyncio.create_task(work) for _ in range(50) for work in (one.check([PLAN]), one.announce([PLAN]), one.change([]))]
    await asyncio.sleep(0)
    await one.apply([(PLAN,)])
    await one.revert([PLAN])
    await one.ping()
    assert sorted(asked) == ["apply", "check", "inspect", "revert"]
    held.set()
    await asyncio.gather(*crowd)


async def test_queues_come_with_the_token_that_was_asked_with(channel: Channel) -> None:
    def send(_endpoint_id: str, count: int, vnet_hdr: bool, token: bytes) -> int:
        assert vnet_hdr
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        socket.send_fds(channel[1], [token], fds)
        for fd in fds:
            os.close(fd)
        return 0

    fds = await room(channel, open_queues=send).open_queues(ID, 3, vnet_hdr=True)
    assert len(fds) == 3
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENODEV, UnknownEndpoint, "is gone"),
        (errno.EBUSY, WrongState, "is open already"),
        (errno.EPERM, KernelRefused, os.strerror(errno.EPERM)),
    ],
)
async def test_queues_that_cant_be_opened_are_an_error(channel: Channel, number: int, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        await room(channel, open_queues=number).open_queues(ID, 1, vnet_hdr=True)


async def test_a_configuration_that_is_wrong_stays_as_it_was(channel: Channel) -> None:
    with pytest.raises(StartError, match="wrong"):
        await room(channel, reload=("", {"": "wrong"})).reload()


async def test_the_problems_of_networks_are_told(channel: Channel) -> None:
    assert await room(channel, reload=("text", {"blue": "no bridge"})).reload() == ("text", {"blue": "no bridge"})


async def test_a_sign_of_life_asks_for_no_list_of_devices(channel: Channel) -> None:
    one = room(channel, inspect=ops.encode([]))
    await one.ping()
    ((_, (ids,)),) = one._call.__self__.asked
    assert len(ids) == 1


async def test_without_a_kernel_empty_plans_are_made() -> None:
    assert await NoRoom().apply([((), ()), ((),)]) == [[ops.Made(), ops.Made()], [ops.Made()]]


async def test_without_a_kernel_no_plan_with_operations_is_made() -> None:
    with pytest.raises(ValueError, match="without a helper can't make sure that the bridge"):
        await NoRoom().apply([(PLAN,)])


async def test_without_a_kernel_there_is_nothing_to_delete_to_see_or_to_open() -> None:
    assert await NoRoom().revert([(), ()]) == [None, None]
    assert await NoRoom().inspect([ID]) == []
    with pytest.raises(UnknownEndpoint):
        await NoRoom().open_queues(ID, 1, vnet_hdr=True)


def test_a_lost_helper_is_no_error_for_callers() -> None:
    assert not issubclass(HelperLostError, KernelRefused)
