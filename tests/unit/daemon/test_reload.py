"""A configuration that is read again while vifd runs, over a helper that answers when a test lets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vifd.config import Config
from vifd.daemon import Daemon, Setup
from vifd.drivers import catalog
from vifd.errors import Violation
from vifd.kernel.room import PrivilegedRoom
from vifd.systemd import Notifier


class SlowRoom(PrivilegedRoom):
    """A helper that takes the longer to answer, the earlier it was asked."""

    def __init__(self, *texts: str, remarks: dict[str, str] | None = None) -> None:
        self._texts, self._remarks = list(texts), remarks or {}

    async def reload(self) -> tuple[str, dict[str, str], dict[str, str]]:
        text = self._texts.pop(0)
        for _ in range(10 * len(self._texts)):
            await asyncio.sleep(0)
        return text, {}, self._remarks


class Told(Notifier):
    """Notes what systemd is told of a reload."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def reloading(self) -> None:
        self.told.append("reloading")

    def ready(self, status: str) -> None:
        self.told.append("ready")


def network(name: str) -> str:
    return f'[networks.{name}]\ndriver = "fake"\n'


def daemon_of(room: SlowRoom, told: Told) -> Daemon:
    sockets: Any = None  # nobody is served
    daemon = Daemon(Setup(catalog.load(), lambda: "", Config(), in_memory=True, embedded=True), sockets, None, told)
    daemon._room = room
    return daemon


async def test_of_two_reloads_at_once_the_later_configuration_stays() -> None:
    told = Told()
    daemon = daemon_of(SlowRoom(network("old"), network("new")), told)
    await asyncio.gather(daemon.reload(), daemon.reload())
    assert list(daemon.networks.drivers) == ["new"]
    assert told.told == ["reloading", "ready"] * 2


async def test_the_end_of_a_reload_is_told_also_where_a_driver_has_a_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    told = Told()
    daemon = daemon_of(SlowRoom(network("blue")), told)
    monkeypatch.setattr(catalog, "create", fail)
    daemon._keep(daemon.reload())
    await asyncio.wait(daemon._tasks)
    assert told.told == ["reloading", "ready"]
    await asyncio.sleep(0)
    assert "a part of vifd ended with a bug" in caplog.text


async def test_what_blocks_no_network_is_logged_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contradiction = Violation("networks.blue.vfs", "network red may use the same VFs")
    monkeypatch.setattr(catalog, "find_contradictions", lambda *_: [contradiction])
    daemon = daemon_of(SlowRoom(network("blue"), remarks={"blue": "PF eth0 has 2 VFs"}), Told())
    await daemon.reload()
    told = [(one.message, one.levelname, getattr(one, "error", "")) for one in caplog.records]
    assert ("a network isn't as it is configured", "WARNING", "PF eth0 has 2 VFs") in told
    assert ("two networks contradict each other", "WARNING", contradiction.message) in told
    assert daemon.networks.problem_of("blue") == ""
