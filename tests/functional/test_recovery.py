"""The start after an end of any kind: journal and kernel come together again, and a second start changes nothing."""

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
from tests.support.asking import BATCH, BRIDGE, asked, make, new_id, state_of
from tests.support.daemon import BLUE, Daemon, running, taps, wait_for
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, EndpointState
from vifd.kernel import names
from vifd.model import Kind


@pytest.fixture
def vifd() -> Iterator[Daemon]:
    """A daemon of the test's own."""
    with running() as daemon:
        yield daemon
        print(daemon.log()[-5000:])


def made(vifd: Daemon, count: int, **fields: Any) -> list[Endpoint]:
    """Make endpoints."""
    with Client(vifd.socket) as client:
        return [make(client, **fields) for _ in range(count)]


def listed(vifd: Daemon) -> dict[str, Endpoint]:
    with Client(vifd.socket) as client:
        return {endpoint.endpoint_id: endpoint for endpoint in client.list_endpoints()}


def restarted(vifd: Daemon) -> dict[str, Endpoint]:
    """Stop vifd, start it again, and give its endpoints."""
    assert vifd.stop() == 0
    vifd.start()
    return listed(vifd)


@contextlib.contextmanager
def journal(vifd: Daemon) -> Iterator[sqlite3.Connection]:
    """The journal of a vifd that doesn't run."""
    with contextlib.closing(sqlite3.connect(vifd.state / "journal.db")) as database:
        yield database
        database.commit()


def make_stray(vifd: Daemon, endpoint_id: str, *, altname: bool = True) -> str:
    """Make a tap that carries the mark of an endpoint that no record knows."""
    ifname = names.device_name(Kind.TAP, endpoint_id)
    kernel.make_tap(vifd.netns, ifname, alias=names.mark(endpoint_id))
    if altname:
        kernel.run(vifd.netns, "link", "property", "add", "dev", ifname, "altname", names.altname(endpoint_id))
    return ifname


def refused_start(vifd: Daemon) -> str:
    """Start it, expect that it refuses, and give what it says."""
    done = subprocess.run(vifd.argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_restart_changes_neither_endpoints_nor_the_kernel(vifd: Daemon) -> None:
    endpoints = {one.endpoint_id: one for one in [*made(vifd, 5, labels={"a": "1"}), *made(vifd, 2, acceptable=[BRIDGE])]}
    before = kernel.snapshot(vifd.netns)
    for _ in range(2):
        assert restarted(vifd) == endpoints
        assert kernel.snapshot(vifd.netns) == before


def test_a_request_is_the_same_request_after_a_restart(vifd: Daemon) -> None:
    request = asked(labels={"a": "1", "b": "2"})
    with Client(vifd.socket) as client:
        endpoint = client.request_endpoint(request).endpoint
    restarted(vifd)
    with Client(vifd.socket) as client:
        assert client.request_endpoint(request).endpoint == endpoint


def test_a_tap_that_was_deleted_meanwhile_is_made_again_as_it_was(vifd: Daemon) -> None:
    lost, kept = made(vifd, 2)
    before = {tap["ifname"]: tap for tap in taps(vifd.netns)}
    vifd.stop()
    kernel.run(vifd.netns, "link", "delete", lost.tap.ifname)
    vifd.start()
    found = listed(vifd)
    after = {tap["ifname"]: tap for tap in taps(vifd.netns)}
    assert found[kept.endpoint_id] == kept
    again = found[lost.endpoint_id]
    assert (again.state, again.generation, again.tap.ifname) == (
        EndpointState.ENDPOINT_STATE_READY,
        lost.generation,
        lost.tap.ifname,
    )
    assert again.tap.ifindex == after[lost.tap.ifname]["ifindex"] != lost.tap.ifindex
    same = ("address", "mtu", "master", "ifalias", "altnames")
    assert [after[lost.tap.ifname][key] for key in same] == [before[lost.tap.ifname][key] for key in same]
    assert restarted(vifd) == found


def test_everything_is_made_again_when_the_bridge_and_all_taps_are_gone(vifd: Daemon) -> None:
    endpoints = made(vifd, 3)
    vifd.stop()
    for ifname in [endpoint.tap.ifname for endpoint in endpoints] + ["br-blue"]:
        kernel.run(vifd.netns, "link", "delete", ifname)
    vifd.start()
    assert set(listed(vifd)) == {endpoint.endpoint_id for endpoint in endpoints}
    assert {tap["ifname"]: tap["master"] for tap in taps(vifd.netns)} == {e.tap.ifname: "br-blue" for e in endpoints}


def test_a_tap_that_cannot_be_made_again_is_told_as_drift(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.stop()
    kernel.run(vifd.netns, "link", "delete", endpoint.tap.ifname)
    kernel.make_tap(vifd.netns, endpoint.tap.ifname)  # somebody else's
    vifd.start()
    (drift,) = listed(vifd)[endpoint.endpoint_id].drifts
    assert drift.kind == DriftKind.DRIFT_KIND_DEVICE_MISSING
    with Client(vifd.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [endpoint.tap.ifname]


def test_a_renamed_tap_is_still_known(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.stop()
    kernel.run(vifd.netns, "link", "set", endpoint.tap.ifname, "down", "name", "renamed0")
    vifd.start()
    assert listed(vifd) == {endpoint.endpoint_id: endpoint}
    assert [tap["ifname"] for tap in taps(vifd.netns)] == ["renamed0"]


def test_a_tap_that_lost_its_alternative_name_is_still_known(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.stop()
    altname = names.altname(endpoint.endpoint_id)
    kernel.run(vifd.netns, "link", "property", "del", "dev", endpoint.tap.ifname, "altname", altname)
    vifd.start()
    assert listed(vifd) == {endpoint.endpoint_id: endpoint}
    with Client(vifd.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert taps(vifd.netns) == []


def test_an_open_tap_is_attached_after_a_restart(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    fd = kernel.open_tap(vifd.netns, endpoint.tap.ifname)
    with Client(vifd.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    assert restarted(vifd)[endpoint.endpoint_id].state == EndpointState.ENDPOINT_STATE_ATTACHED
    os.close(fd)
    with Client(vifd.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "READY")


def test_a_tap_that_was_closed_meanwhile_is_ready_after_a_restart(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    fd = kernel.open_tap(vifd.netns, endpoint.tap.ifname)
    with Client(vifd.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    vifd.stop()
    os.close(fd)
    wait_for(lambda: taps(vifd.netns)[0]["linkinfo"]["info_data"].get("numqueues", 0) == 0)
    vifd.start()
    with Client(vifd.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "READY")


@pytest.mark.parametrize("altname", [True, False])
def test_a_marked_stray_is_deleted(vifd: Daemon, altname: bool) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.stop()
    ifname = make_stray(vifd, new_id(), altname=altname)
    vifd.start()
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [endpoint.tap.ifname]
    assert f"is deleted device={ifname}" in vifd.log()


def test_a_marked_stray_that_is_in_use_is_kept_and_told(vifd: Daemon) -> None:
    vifd.stop()
    ifname = make_stray(vifd, new_id())
    fd = kernel.open_tap(vifd.netns, ifname)
    wait_for(lambda: "LOWER_UP" in kernel.ip(vifd.netns, "link", "show", ifname)[0]["flags"])
    vifd.start()
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [ifname]
    assert f"is in use: it stays device={ifname}" in vifd.log()
    os.close(fd)
    wait_for(lambda: "LOWER_UP" not in kernel.ip(vifd.netns, "link", "show", ifname)[0]["flags"])
    restarted(vifd)
    assert taps(vifd.netns) == []


@pytest.mark.parametrize("alias", ["", "vifd:", "vifd:not-a-uuid", "somebody's", "xvifd:6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
def test_a_tap_without_a_mark_is_left_alone(vifd: Daemon, alias: str) -> None:
    vifd.stop()
    ifname = names.device_name(Kind.TAP, new_id())
    kernel.make_tap(vifd.netns, ifname, alias=alias)
    before = kernel.snapshot(vifd.netns)
    vifd.start()
    assert kernel.snapshot(vifd.netns) == before


def test_a_device_of_another_kind_is_left_alone_whatever_its_mark(vifd: Daemon) -> None:
    vifd.stop()
    endpoint_id = new_id()
    kernel.run(vifd.netns, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    kernel.run(vifd.netns, "link", "set", "veth0", "alias", names.mark(endpoint_id))
    kernel.run(vifd.netns, "link", "property", "add", "dev", "veth0", "altname", names.altname(endpoint_id))
    before = kernel.snapshot(vifd.netns)
    vifd.start()
    assert kernel.snapshot(vifd.netns) == before


def test_a_request_that_was_never_answered_is_undone(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.kill()
    with journal(vifd) as database:
        records = database.execute("SELECT rowid, record FROM endpoints").fetchall()
        assert len(records) == 1
        pending = records[0][1].replace(b'"state":"ready"', b'"state":"pending"')
        assert pending != records[0][1]
        database.execute("UPDATE endpoints SET record = ?", (pending,))
    vifd.start()
    assert listed(vifd) == {}
    assert taps(vifd.netns) == []
    with Client(vifd.socket) as client:
        assert make(client, endpoint.endpoint_id).generation > endpoint.generation


def test_a_release_that_was_begun_is_finished(vifd: Daemon) -> None:
    made(vifd, 1)
    vifd.kill()
    with journal(vifd) as database:
        (record,) = database.execute("SELECT record FROM endpoints").fetchone()
        releasing = record.replace(b'"state":"ready"', b'"state":"releasing"')
        database.execute("UPDATE endpoints SET record = ?", (releasing,))
    vifd.start()
    assert listed(vifd) == {}
    assert taps(vifd.netns) == []


def test_after_a_boot_everything_is_forgotten(vifd: Daemon) -> None:
    """The kernel part went with the host; what is there now under vifd's mark is a stray."""
    (endpoint, _) = made(vifd, 2)
    vifd.stop()
    with journal(vifd) as database:
        database.execute("UPDATE meta SET value = '11111111-1111-4111-8111-111111111111' WHERE name = 'boot_id'")
    vifd.start()
    assert listed(vifd) == {}
    assert taps(vifd.netns) == []
    with Client(vifd.socket) as client:
        assert make(client, endpoint.endpoint_id).generation > endpoint.generation
    assert len(restarted(vifd)) == 1


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
def test_a_journal_that_cannot_be_trusted_stops_the_start_and_nothing_is_changed(vifd: Daemon, damage: Any) -> None:
    endpoints = made(vifd, 3)
    vifd.stop()
    path = vifd.state / "journal.db"
    good = path.read_bytes()
    damage(path)
    bad = path.read_bytes()
    before = kernel.snapshot(vifd.netns)
    told = refused_start(vifd)
    assert f"{path}: the journal can't be used" in told
    assert "Nothing was changed" in told
    assert ("newer vifd" in told) == (damage is write_newer_version)
    assert kernel.snapshot(vifd.netns) == before
    assert path.read_bytes() == bad
    path.write_bytes(good)
    vifd.start()
    assert listed(vifd) == {endpoint.endpoint_id: endpoint for endpoint in endpoints}


def test_without_its_journal_vifd_starts_anew_and_deletes_what_nobody_uses(vifd: Daemon) -> None:
    """More than the helper takes in one call."""
    with Client(vifd.socket) as client:
        for _ in range(9):
            client.batch_request_endpoints([asked() for _ in range(BATCH)])
        used = make(client)
    fd = kernel.open_tap(vifd.netns, used.tap.ifname)
    wait_for(lambda: "LOWER_UP" in kernel.ip(vifd.netns, "link", "show", used.tap.ifname)[0]["flags"])
    vifd.stop()
    for path in vifd.state.iterdir():
        path.unlink()
    vifd.start()
    assert listed(vifd) == {}
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [used.tap.ifname]
    os.close(fd)


def test_a_network_that_left_the_configuration_keeps_its_endpoints_over_a_restart(vifd: Daemon) -> None:
    (endpoint,) = made(vifd, 1)
    vifd.write_config(BLUE.replace("blue", "green"))
    assert restarted(vifd) == {endpoint.endpoint_id: endpoint}
    with Client(vifd.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert taps(vifd.netns) == []
