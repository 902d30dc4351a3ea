"""Time and processes as a test wants them, for lifetimes."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable, Iterator

from vifd.endpoints.lifetimes import Clock
from vifd.errors import HostNotReady, NoProcess
from vifd.kernel.processes import Processes
from vifd.model import ProcessLifetime


class FakeTime:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: list[_FakeTimer] = []
        self._numbers = itertools.count()

    @property
    def clock(self) -> Clock:
        """What lifetimes go by."""
        return Clock(self.now, self._call_later)

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(timer.callback is not None for timer in self._timers)

    def now(self) -> float:
        """Give the time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due in it come in order, each at its time."""
        end = self._now + seconds
        for timer in self._due(end):
            self._now = max(self._now, timer.when)
            timer.fire()
        self._now = end

    def stall(self, seconds: float) -> None:
        """Let time pass in which nothing could come; then it comes at once."""
        self._now += seconds
        for timer in self._due(self._now):
            timer.fire()

    def _due(self, end: float) -> Iterator[_FakeTimer]:
        while self._timers and self._timers[0].when <= end:
            yield heapq.heappop(self._timers)

    def _call_later(self, delay: float, callback: Callable[[], None]) -> _FakeTimer:
        timer = _FakeTimer(self._now + delay, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer


class _FakeTimer:
    def __init__(self, when: float, number: int, callback: Callable[[], None]) -> None:
        self.when, self._number = when, number
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: _FakeTimer) -> bool:
        return (self.when, self._number) < (other.when, other._number)

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        if self.callback is not None:
            self.callback()


class FakeProcesses(Processes):
    """Processes that a test starts and ends. Each is a pipe: its end for reading becomes readable when the process ends."""

    def __init__(self) -> None:
        super().__init__()
        self._inodes = itertools.count(500)
        self._living: dict[int, tuple[ProcessLifetime, int, int, int]] = {}
        #: Whether nothing can be told of them, as where the kernel is old and /proc hides them.
        self.hidden = False

    def start(self, pid: int, uid: int = 1000) -> ProcessLifetime:
        """Let a process have a pid, which may have been another's."""
        process = ProcessLifetime(pid, next(self._inodes))
        self._living[pid] = (process, uid, *os.pipe())
        return process

    def end(self, pid: int) -> None:
        """End a process."""
        _, _, reading, writing = self._living.pop(pid)
        os.close(writing)
        os.close(reading)

    def close(self) -> None:
        """End all."""
        for pid in list(self._living):
            self.end(pid)

    def identify(self, pid: int) -> ProcessLifetime:
        """Give what `start` gave."""
        self._look()
        if pid not in self._living:
            raise NoProcess(f"there is no process {pid}")
        return self._living[pid][0]

    def open(self, process: ProcessLifetime) -> int | None:
        """Give the end of a pipe."""
        self._look()
        living = self._living.get(process.pid)
        return os.dup(living[2]) if living is not None and living[0] == process else None

    def uid_of(self, process: ProcessLifetime) -> int:
        """Give the uid it was started with."""
        if self.identify(process.pid) != process:
            raise NoProcess(f"process {process.pid} has ended")
        return self._living[process.pid][1]

    def _look(self) -> None:
        if self.hidden:
            raise HostNotReady("processes can't be told from others")
