"""A server is kept running, over a fake clock and fake processes."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from vifd.dhcp.keeper import Keeper
from vifd.dhcp.network import DhcpNetwork
from vifd.dhcp.process import LaunchError

STARTED = b"dnsmasq[7]: started, version 2.90 cachesize 150\n"


class FakeServer:
    """A dnsmasq that does as it is told."""

    pid, pidfd, output = 7, -1, -1

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.signals: list[signal.Signals] = []
        self.status = 2
        self.ended = False

    def read(self) -> bytes | None:
        return self.log.pop(0) if self.log else None

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def end(self) -> None:
        self.ended = True

    def reap(self) -> int:
        return self.status


class World:
    """A keeper with what it needs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.servers: list[FakeServer] = []
        self.told: list[str] = []
        self.error = ""
        self.keeper = Keeper("blue", DhcpNetwork("br-blue", ("10.0.0.1/24",)), self._launch, self.told.append, lambda: self.now)

    def _launch(self) -> Any:
        if self.error:
            raise LaunchError(self.error)
        self.servers.append(FakeServer())
        return self.servers[-1]

    def get_ready(self) -> FakeServer:
        self.servers[-1].log.append(STARTED)
        self.keeper.on_output()
        return self.servers[-1]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.keeper.tick()

    def die(self) -> float:
        """Let the server die; gives after how many seconds it is started again."""
        count = len(self.servers)
        self.keeper.on_end()
        assert self.keeper.due is not None
        pause = self.keeper.due - self.now
        self.pass_time(pause * 0.99)
        assert len(self.servers) == count
        self.pass_time(pause * 0.02)
        assert len(self.servers) == count + 1
        return pause


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_started_before_there_are_hosts(world: World) -> None:
    world.pass_time(1000)
    assert world.servers == []
    world.keeper.hosts_changed()
    assert len(world.servers) == 1


def test_a_server_that_runs_is_told_of_hosts(world: World) -> None:
    world.keeper.hosts_changed()
    server = world.get_ready()
    assert (world.told, world.keeper.due) == ([""], None)
    world.keeper.hosts_changed()
    assert server.signals == [signal.SIGHUP]


def test_a_server_that_isnt_ready_is_told_when_it_is(world: World) -> None:
    world.keeper.hosts_changed()
    world.keeper.hosts_changed()
    assert world.servers[0].signals == []  # a signal would end it
    assert world.get_ready().signals == [signal.SIGHUP]


def test_readiness_is_found_in_pieces(world: World) -> None:
    world.keeper.hosts_changed()
    for piece in (STARTED[:13], STARTED[13:30], STARTED[30:]):
        world.servers[0].log.append(piece)
        world.keeper.on_output()
    assert world.told == [""]


def test_the_pauses_of_a_crash_loop_grow_to_a_limit(world: World) -> None:
    world.keeper.hosts_changed()
    pauses = [world.die() for _ in range(9)]
    assert pauses == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 16, 30, 30])
    assert world.told == ["dnsmasq ended with status 2"] * 9


def test_a_server_that_ran_for_a_while_is_started_again_soon(world: World) -> None:
    world.keeper.hosts_changed()
    for _ in range(5):
        world.die()
    world.get_ready()
    world.pass_time(59)
    assert world.die() == pytest.approx(8)
    world.get_ready()
    world.pass_time(61)
    assert world.die() == pytest.approx(0.25)


def test_hosts_that_change_in_a_pause_dont_shorten_it(world: World) -> None:
    world.keeper.hosts_changed()
    world.keeper.on_end()
    world.keeper.hosts_changed()
    assert len(world.servers) == 1


def test_what_cant_be_started_is_told_and_tried_again(world: World) -> None:
    world.error = "another DHCP server"
    world.keeper.hosts_changed()
    world.pass_time(0.26)
    assert world.told == ["another DHCP server"] * 2
    world.error = ""
    world.pass_time(0.51)
    world.get_ready()
    assert world.told[-1] == ""


def test_a_server_that_doesnt_get_ready_is_ended(world: World) -> None:
    world.keeper.hosts_changed()
    world.pass_time(10.1)
    assert world.servers[0].ended
    assert world.told == ["dnsmasq wasn't ready within 10 s"]


def test_a_stop_is_for_good(world: World) -> None:
    world.keeper.hosts_changed()
    world.get_ready()
    world.keeper.stop()
    world.pass_time(1000)
    assert world.servers[0].ended
    assert len(world.servers) == 1
