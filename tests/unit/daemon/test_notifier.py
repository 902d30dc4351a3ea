import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import short_directory
from vifd.systemd import Notifier

Listener = tuple[socket.socket, str]


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Systemd's socket, by a path and by an abstract name, as NOTIFY_SOCKET writes it."""
    with short_directory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        name = f"{folder}/notify" if request.param == "path" else f"@{folder}"
        made.bind(name.replace("@", "\0"))
        made.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield made, name


def said(listener: Listener) -> dict[str, str]:
    return dict(line.split("=", 1) for line in listener[0].recv(4096).decode().splitlines())


def test_systemd_is_told_when_vifd_serves(listener: Listener) -> None:
    Notifier().ready("3 endpoints")
    assert said(listener) == {"READY": "1", "STATUS": "3 endpoints"}


def test_systemd_is_told_of_a_reload_and_its_time(listener: Listener) -> None:
    Notifier().reloading()
    told = said(listener)
    assert told["RELOADING"] == "1"
    assert int(told["MONOTONIC_USEC"]) > 0


def test_systemd_is_told_of_the_end(listener: Listener) -> None:
    Notifier().stopping()
    assert said(listener) == {"STOPPING": "1"}


def test_systemd_gets_signs_of_life(listener: Listener) -> None:
    Notifier().alive()
    assert said(listener) == {"WATCHDOG": "1"}


def test_the_address_is_taken_out_of_the_environment(listener: Listener) -> None:
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")


def test_a_systemd_that_isnt_there_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    Notifier().ready("x")
    assert "systemd can't be told" in caplog.text


@pytest.mark.parametrize(
    ("microseconds", "pid", "due_s"),
    [
        ("30000000", None, 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),
        ("", None, None),
        ("soon", None, None),
    ],
    ids=["everybody", "this process", "another", "never", "no number"],
)
def test_a_sign_of_life_is_due_twice_as_often_as_systemd_wants_it(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str | None, due_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Notifier().watchdog_s == due_s
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
