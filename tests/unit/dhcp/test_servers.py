"""What the unprivileged process writes and says, with the supervisor's end of the channel in the test's hands."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vifd.dhcp import wire
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.hosts import Host
from vifd.dhcp.network import DhcpNetwork
from vifd.dhcp.servers import DhcpServers
from vifd.dhcp.wire import HostsChanged, Reload, Status

MAC = "52:54:00:00:00:0a"
BLUE, RED = DhcpNetwork("br-blue", ("10.0.0.1/24",)), DhcpNetwork("br-red", ("10.1.0.1/24",))


class World:
    """Servers of one network, and the supervisor's end."""

    def __init__(self, directory: Path) -> None:
        self.files = Files.below(directory)
        self.files.hosts.mkdir()
        self.front, self.back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.back.setblocking(False)
        self.lost = asyncio.Event()
        self.statuses: list[tuple[str, str]] = []
        self.servers = DhcpServers(self.front, self.files, {"blue": BLUE}, lambda _reason: self.lost.set())
        self.servers.on_status(lambda *status: self.statuses.append(status))

    async def heard(self) -> wire.Request | None:
        """The next request."""
        return wire.decode_request(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.back, 100), 10))

    async def say(self, status: Status) -> None:
        self.back.send(wire.encode_status(status))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def hosts(self, network: str = "blue") -> str:
        return self.files.dhcp_hosts(network).read_text()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    one.front.close()
    one.back.close()


async def test_a_server_starts_with_every_host_that_was_set_before(world: World) -> None:
    world.servers.set_host("blue", "1", Host(MAC, ("10.0.0.5",)))
    world.servers.start()
    assert await world.heard() == HostsChanged("blue")
    assert world.hosts() == f"{MAC},10.0.0.5\n"
    await world.servers.close()


async def test_changes_that_come_together_are_written_once(world: World) -> None:
    world.servers.start()
    assert await world.heard() == HostsChanged("blue")
    for number in range(1, 200):
        world.servers.set_host("blue", str(number), Host(f"52:54:00:00:00:{number:02x}", (f"10.0.0.{number}",)))
        await asyncio.sleep(0)
    assert await world.heard() == HostsChanged("blue")
    assert world.hosts().count("\n") == 199
    await world.servers.close()
    with pytest.raises(BlockingIOError):
        world.back.recv(100)


async def test_a_host_that_is_the_same_again_changes_nothing(world: World) -> None:
    world.servers.set_host("blue", "1", Host(MAC, ("10.0.0.5",)))
    world.servers.start()
    assert await world.heard() == HostsChanged("blue")
    world.servers.set_host("blue", "1", Host(MAC.upper(), ("10.0.0.5",)))
    world.servers.remove_host("blue", "2")
    world.servers.remove_host("green", "2")
    assert not world.servers._served["blue"].changed
    await world.servers.close()


async def test_a_wrong_host_is_refused_and_changes_nothing(world: World) -> None:
    world.servers.set_host("blue", "1", Host(MAC, ("10.0.0.5",)))
    with pytest.raises(ValueError, match="no MAC"):
        world.servers.set_host("blue", "1", Host("nonsense", ("10.0.0.5",)))
    world.servers.start()
    await world.heard()
    assert world.hosts() == f"{MAC},10.0.0.5\n"
    await world.servers.close()


async def test_a_network_that_is_served_after_a_reload_has_its_hosts(world: World) -> None:
    world.servers.set_host("red", "1", Host(MAC, ("10.1.0.5",)))
    world.servers.start()
    assert await world.heard() == HostsChanged("blue")
    world.servers.configure({"red": RED})
    assert [await world.heard(), await world.heard()] == [Reload(), HostsChanged("red")]
    assert world.hosts("red") == f"{MAC},10.1.0.5\n"
    await world.servers.close()


async def test_problems_are_known_while_they_last(world: World) -> None:
    world.servers.start()
    for problem in ("taken", "taken", "", ""):
        await world.say(Status("blue", problem))
        assert world.servers.problems == ({"blue": problem} if problem else {})
    await world.say(Status("green", "of no network"))
    assert world.statuses == [("blue", "taken"), ("blue", "")]
    await world.say(Status("blue", "taken"))
    world.servers.configure({})
    assert world.statuses[-1] == ("blue", "")
    await world.servers.close()


async def test_hosts_that_cant_be_written_are_a_problem_until_they_can(world: World) -> None:
    world.files.hosts.rename(elsewhere := world.files.hosts.with_name("elsewhere"))
    world.servers.start()
    await asyncio.sleep(0)
    assert "can't be written" in world.servers.problems["blue"]
    elsewhere.rename(world.files.hosts)
    assert await world.heard() == HostsChanged("blue")
    assert world.servers.problems == {}
    await world.servers.close()


async def test_the_end_of_the_supervisor_is_told(world: World) -> None:
    world.servers.start()
    world.back.close()
    await asyncio.wait_for(world.lost.wait(), 10)
    await world.servers.close()


async def test_without_a_supervisor_a_restart_is_asked_for(tmp_path: Path) -> None:
    servers = DhcpServers(None, Files.below(tmp_path), {}, lambda _reason: os.abort())
    servers.start()
    servers.set_host("blue", "1", Host(MAC, ("10.0.0.5",)))
    servers.configure({"blue": BLUE})
    assert "takes a restart of vifd" in servers.problems["blue"]
    await servers.close()
