import asyncio
import socket
from typing import Self

from vifd.kernel.rulesetmonitor import RulesetMonitor


class Wire:
    """A monitor at one end of a socket, the kernel at the other."""

    def __init__(self) -> None:
        self.kernel, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        self.calls = 0
        self.called = asyncio.Event()
        self.monitor = RulesetMonitor(listener, self._note)

    def _note(self) -> None:
        self.calls += 1
        self.called.set()

    def __enter__(self) -> Self:
        self.monitor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.monitor.close()
        self.kernel.close()


async def test_a_burst_that_names_the_table_is_told_once() -> None:
    with Wire() as wire:
        for _ in range(3):
            wire.kernel.send(b"\x0c\0\x01\0vifd\0\0\0\0")
        await wire.called.wait()
        assert wire.calls == 1


async def test_what_names_another_table_is_not_told() -> None:
    with Wire() as wire:
        wire.kernel.send(b"\x0c\0\x01\0filter\0\0")
        wire.kernel.send(b"\x0e\0\x01\0vifd_nat\0")
        await asyncio.sleep(0)
        wire.kernel.send(b"\x0c\0\x01\0vifd\0\0\0\0")
        await wire.called.wait()
        assert wire.calls == 1
