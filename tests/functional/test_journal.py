"""The journal: what it says is finished or undone at the next start, and one that can't be trusted stops that."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import BATCH, asked, make
from tests.support.daemon import Daemon, taps, wait_for
from tests.support.restarts import listed, made, restarted
from vifclient import Client


@contextlib.contextmanager
def journal(own: Daemon) -> Iterator[sqlite3.Connection]:
    """The journal of a vifd that doesn't run."""
    with contextlib.closing(sqlite3.connect(own.state / "journal.db")) as database:
        yield database
        database.commit()


def refused_start(own: Daemon) -> str:
    """Start it, expect that it refuses, and give what it says."""
    done = subprocess.run(own.argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_request_that_was_never_answered_is_undone(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    own.kill()
    with journal(own) as database:
        records = database.execute("SELECT rowid, record FROM endpoints").fetchall()
        assert len(records) == 1
        pending = records[0][1].replace(b'"state":"ready"', b'"state":"pending"')
        assert pending != records[0][1]
        database.execute("UPDATE endpoints SET record = ?", (pending,))
    own.start()
    assert listed(own) == {}
    assert taps(own.netns) == []
    with Client(own.socket) as client:
        assert make(client, endpoint.endpoint_id).generation > endpoint.generation


def test_a_release_that_was_begun_is_finished(own: Daemon) -> None:
    made(own, 1)
    own.kill()
    with journal(own) as database:
        (record,) = database.execute("SELECT record FROM endpoints").fetchone()
        releasing = record.replace(b'"state":"ready"', b'"state":"releasing"')
        database.execute("UPDATE endpoints SET record = ?", (releasing,))
    own.start()
    assert listed(own) == {}
    assert taps(own.netns) == []


def test_after_a_boot_everything_is_forgotten(own: Daemon) -> None:
    """The kernel part went with the host; what is there now under vifd's mark is a stray."""
    (endpoint, _) = made(own, 2)
    own.stop()
    with journal(own) as database:
        database.execute("UPDATE meta SET value = '11111111-1111-4111-8111-111111111111' WHERE name = 'boot_id'")
    own.start()
    assert listed(own) == {}
    assert taps(own.netns) == []
    with Client(own.socket) as client:
        assert make(client, endpoint.endpoint_id).generation > endpoint.generation
    assert len(restarted(own)) == 1


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" + path.read_bytes()[21:])


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 2000] = b"\xa5" * 2000
    path.write_bytes(data)


def damage_record(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE endpoints SET record = X'7b'")
        database.commit()


def write_newer_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
        database.commit()


@pytest.mark.parametrize("damage", [damage_header, damage_page, damage_record, write_newer_version])
def test_a_journal_that_cannot_be_trusted_stops_the_start_and_nothing_is_changed(own: Daemon, damage: Any) -> None:
    endpoints = made(own, 3)
    own.stop()
    path = own.state / "journal.db"
    good = path.read_bytes()
    damage(path)
    bad = path.read_bytes()
    before = kernel.snapshot(own.netns)
    told = refused_start(own)
    assert f"{path}: the journal can't be used" in told
    assert "Nothing was changed" in told
    assert ("newer vifd" in told) == (damage is write_newer_version)
    assert kernel.snapshot(own.netns) == before
    assert path.read_bytes() == bad
    path.write_bytes(good)
    own.start()
    assert listed(own) == {endpoint.endpoint_id: endpoint for endpoint in endpoints}


def test_without_its_journal_vifd_starts_anew_and_deletes_what_nobody_uses(own: Daemon) -> None:
    """More than the helper takes in one call."""
    with Client(own.socket) as client:
        for _ in range(9):
            client.batch_request_endpoints([asked() for _ in range(BATCH)])
        used = make(client)
    fd = kernel.open_tap(own.netns, used.tap.ifname)
    wait_for(lambda: "LOWER_UP" in kernel.ip(own.netns, "link", "show", used.tap.ifname)[0]["flags"])
    own.stop()
    for path in own.state.iterdir():
        path.unlink()
    own.start()
    assert listed(own) == {}
    assert [tap["ifname"] for tap in taps(own.netns)] == [used.tap.ifname]
    os.close(fd)
