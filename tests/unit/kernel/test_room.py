import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import ID
from tests.support.nics import two_nics, vf
from vifd.errors import HostNotReady, KernelRefused, NetworkFull, StartError, UnknownEndpoint, WrongState
from vifd.kernel import ops
from vifd.kernel.room import HelperLostError, NoRoom, PrivilegedRoom
from vifd.kernel.sriov.inventory import Inventory
from vifd.model import Drift, DriftKind, Port

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


def claim(pf: int, index: int = 0) -> ops.Plan:
    return (ops.ClaimFunction(ID, "fast", vf(pf, index), Port()),)


VDPA: ops.Plan = (
    ops.CreateVdpa(ID, "vdv0", "fast", "pci/0000:05:00.2#0", Port(), 1),
    ops.BindVdpa(ID, "vdv0", "fast", 1000),
)


class HeldCalls(FakeCalls):
    """A helper that answers to nothing about VFs of the first PF until it is let go, nor about any when `holds_all`."""

    def __init__(self, *, holds_all: bool = False) -> None:
        super().__init__(open_queues=errno.ENODEV)
        self.let_go, self._holds = asyncio.Event(), asyncio.Semaphore(0)
        self._held = [vf(pf, index) for pf in ((0, 1) if holds_all else (0,)) for index in range(3)]

    async def holding(self, count: int) -> None:
        """Wait until it holds more calls."""
        for _ in range(count):
            await self._holds.acquire()

    async def call(self, name: str, *arguments: object) -> Any:
        request = arguments[0]
        about = next((one for one in self._held if isinstance(request, bytes) and one.encode() in request), "")
        self.asked.append((name, (about,)))
        if about:
            self._holds.release()
            await self.let_go.wait()
        match name:
            case "apply":
                return ops.encode([[ops.Made()] for _ in ops.decode_apply(request).groups])
            case "revert":
                return ops.encode([None for _ in ops.decode_revert(request).plans])
            case "check":
                plans = ops.decode_check(request).plans
                return ops.encode([[Drift(DriftKind.MTU, "", "", str(plan[0]))] for plan in plans])
            case _:
                return self.answers[name]


def room_of_nics(channel: Channel, calls: HeldCalls, path: Path, card_calls: int = 6) -> PrivilegedRoom:
    return PrivilegedRoom(calls, channel[0], card_calls, Inventory(two_nics(path).root))


async def test_a_vf_that_takes_its_time_keeps_no_tap_waiting_and_no_vf_of_another_pf(channel: Channel, tmp_path: Path) -> None:
    calls = HeldCalls()
    one = room_of_nics(channel, calls, tmp_path / "sys")
    slow = [one.apply([(claim(0),)]), one.revert([claim(0, 1)]), one.change([(claim(0, 2),)]), one.check([claim(0), claim(0, 1)])]
    held = [asyncio.ensure_future(work) for work in slow]
    async with asyncio.timeout(30):
        await calls.holding(3)
        for plan in (PLAN, claim(1), VDPA, VDPA[1:]):
            assert await one.change([(plan,)]) == await one.apply([(plan,)]) == [[ops.Made()]]
            assert await one.revert([plan]) == [None]
            assert len(await one.check([plan])) == 1
        with pytest.raises(UnknownEndpoint):
            await one.open_queues(ID, 1, vnet_hdr=True)
    assert not any(task.done() for task in held)
    calls.let_go.set()
    await asyncio.gather(*held)


async def test_a_check_of_both_waits_for_the_slower_and_keeps_the_order(channel: Channel, tmp_path: Path) -> None:
    plans = [claim(1), PLAN, claim(0, 1), (ops.EnsureBridge("red"),), claim(0)]
    calls = HeldCalls()
    calls.let_go.set()
    found = await room_of_nics(channel, calls, tmp_path / "sys").check(plans)
    assert [[drift.message for drift in drifts] for drifts in found] == [[str(plan[0])] for plan in plans]


async def test_vfs_never_take_the_threads_of_taps(channel: Channel, tmp_path: Path) -> None:
    calls = HeldCalls(holds_all=True)
    one = room_of_nics(channel, calls, tmp_path / "sys", card_calls=2)
    held = [asyncio.ensure_future(one.apply([(claim(index % 2, index // 2),)])) for index in range(6)]
    async with asyncio.timeout(30):
        await calls.holding(2)
        await one.apply([(PLAN,)])
        await one.revert([PLAN])
    assert sum(bool(about) for _, (about,) in calls.asked) == 2
    calls.let_go.set()
    await asyncio.gather(*held)
    assert sum(bool(about) for _, (about,) in calls.asked) == 6


async def test_what_is_gone_keeps_nobody_else_waiting(channel: Channel, tmp_path: Path) -> None:
    calls = HeldCalls()
    one = room_of_nics(channel, calls, tmp_path / "sys")
    held = asyncio.ensure_future(one.change([(claim(0),)]))
    gone = (ops.ChangeFunction(ID, "fast", "0000:09:10.0", None, Port()),)
    async with asyncio.timeout(30):
        await calls.holding(1)
        assert await one.change([(gone,)]) == [[ops.Made()]]
    calls.let_go.set()
    await held


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
        await room(channel, reload=("", {"": "wrong"}, {})).reload()


async def test_the_problems_of_networks_are_told(channel: Channel) -> None:
    answer = ("text", {"blue": "no bridge"}, {"fast": "PF eth0 has 2 VFs"})
    assert await room(channel, reload=answer).reload() == answer


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
