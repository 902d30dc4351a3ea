import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.messages import endpoint_id
from tests.support.records import bridge_entry, entry
from vifd.endpoints.journal import Entry, Journal
from vifd.errors import JournalDamaged, TryAgain
from vifd.model import (
    Consideration,
    Drift,
    DriftKind,
    Instance,
    Kind,
    Limits,
    MacvtapDevice,
    MacvtapMode,
    Outcome,
    OvsPort,
    Owner,
    PciDevice,
    PciHostDriver,
    Port,
    RateLimit,
    State,
    VdpaDevice,
    VhostUserRole,
    VhostUserSocket,
    Vlan,
)

OTHERS = [
    MacvtapDevice("vdm", 7, "/dev/tap7", "eth0", MacvtapMode.VEPA),
    PciDevice("0000:03:10.2", "eth0", 2, PciHostDriver.VFIO, 9, "/dev/vfio/9"),
    OvsPort("br-int", "vdo", "id", "system"),
    VhostUserSocket("/run/x.sock", VhostUserRole.SERVER, 2),
    VdpaDevice("/dev/vhost-vdpa-0", "vdpa0", 4),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@contextlib.contextmanager
def journal(path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal(path)) as one:
        one.load()
        yield one


def recorded(path: Path) -> list[Entry]:
    with journal(path) as one:
        return one.load()


@contextlib.contextmanager
def full_disk(one: Journal) -> Iterator[None]:
    """Let SQLite's file grow no further: the same SQLITE_FULL as a full disk's."""
    pages = one._db.execute("PRAGMA page_count").fetchone()[0]
    before = one._db.execute("PRAGMA max_page_count").fetchone()[0]
    one._db.execute(f"PRAGMA max_page_count={pages}")
    try:
        yield
    finally:
        one._db.execute(f"PRAGMA max_page_count={before}")


def large(number: int) -> Entry:
    return entry(number, labels={f"label-{i}": "x" * 255 for i in range(32)})


def test_a_new_journal_is_empty(path: Path) -> None:
    with journal(path) as one:
        assert (one.load(), one.boot_id) == ([], "")


def test_a_record_comes_back_as_it_was(path: Path) -> None:
    full = entry(
        1,
        port=Port(
            mac="52:54:00:00:00:01",
            mtu_bytes=1400,
            addresses=("10.0.0.2", "fd00::2/64"),
            vlan=Vlan(0, (1, 2), 3),
            guard_enabled=False,
            limits=Limits(RateLimit(1, 2, 3), RateLimit(2**63, 0, 0)),
            isolated=True,
            link_up=False,
        ),
        owner=Owner(2**32 - 2, 36),
        instance=Instance("aaaaaaaa-2222-4333-8444-555555555555", "Größe\u2603"),
        labels={"a/b": "ä"},
        considered=(Consideration(0, Kind.PCI, Outcome.KIND_NOT_OFFERED, "no"), Consideration(1, Kind.TAP, Outcome.CHOSEN)),
        drifts=(Drift(DriftKind.MTU, "1", "2", "x"),),
    )
    with journal(path) as one:
        one.write([full])
    assert recorded(path) == [full]


#: As the vifd before this one wrote it, that knew nothing of VFs.
_OLD_RECORD = """
{"endpoint": {
"endpoint_id": "00000000-0000-4000-8000-000000000001", "generation": 1, "spec_hash": "hash", "network": "blue",
"network_driver": "bridge", "state": "ready", "owner": {"uid": 1000, "gid": null}, "create_time_ns": 1700000000000000000,
"port": {"mac": "52:54:00:12:34:56", "mtu_bytes": 0, "addresses": [], "guard_enabled": null, "isolated": null,
"vlan": {"vid": 7, "trunk_vids": [], "native_vid": 0}, "link_up": null, "tx_queue_length": 0, "public_addresses": [],
"limits": {"from_vm": {"rate_bps": 5, "burst_bytes": 0, "rate_pps": 0}, "to_vm": {"rate_bps": 0, "burst_bytes": 0,
"rate_pps": 0}}}, "location": {"type": "pci", "address": "0000:03:10.2", "pf_ifname": "eth0", "vf_index": 0,
"host_driver": "vfio", "iommu_group": 9, "vfio_path": "/dev/vfio/9"}, "instance": {"uuid": "", "name": "vm"},
"labels": {}, "considered": [], "drifts": [], "ip_config": null, "lifetime": null},
"plan": [{"type": "ensure_bridge", "network": "blue"}], "changing": false}
"""


def test_a_record_of_an_older_vifd_is_read_with_the_defaults_of_what_it_did_not_know(path: Path) -> None:
    with journal(path) as one:
        one._db.execute("INSERT INTO endpoints VALUES (1, ?)", (_OLD_RECORD,))
        (old,) = one.load()
        one.write([old])
    assert recorded(path) == [old]
    assert old.endpoint.port.vlan == Vlan(7)
    assert old.endpoint.port.limits == Limits(RateLimit(5))
    assert old.endpoint.port.trusted is None
    assert old.endpoint.instance == Instance(name="vm")
    assert old.endpoint.location == PciDevice("0000:03:10.2", "eth0", 0, PciHostDriver.VFIO, 9, "/dev/vfio/9")
    assert old.endpoint.function == ""


@pytest.mark.parametrize("location", OTHERS)
def test_every_kind_of_location_comes_back_as_it_was(path: Path, location: object) -> None:
    with journal(path) as one:
        one.write([entry(1, location=location)])
    assert [found.endpoint.location for found in recorded(path)] == [location]


def test_an_endpoint_without_a_device_comes_back(path: Path) -> None:
    with journal(path) as one:
        one.write([bridge_entry(1), entry(2, state=State.PENDING)])
    assert recorded(path) == [bridge_entry(1), entry(2, state=State.PENDING)]


def test_a_record_takes_the_place_of_the_one_before(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1, state=State.PENDING)])
        one.write([entry(1)])
    assert recorded(path) == [entry(1)]


def test_a_new_life_takes_the_place_of_the_old_one(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1, generation=5)])
        one.write([entry(1, generation=9)])
    assert recorded(path) == [entry(1, generation=9)]


def test_a_new_life_takes_the_place_of_one_of_an_earlier_run(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1, generation=5)])
    with journal(path) as one:
        one.write([entry(1, generation=9)])
    assert recorded(path) == [entry(1, generation=9)]


def test_what_is_forgotten_is_gone(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1), entry(2), entry(3)])
        one.write([], forget=[endpoint_id(1), endpoint_id(3)])
    assert recorded(path) == [entry(2)]


def test_what_an_earlier_run_wrote_is_forgotten(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1), entry(2)])
    with journal(path) as one:
        one.write([], forget=[endpoint_id(1)])
    assert recorded(path) == [entry(2)]


def test_forgetting_what_isnt_there_is_fine(path: Path) -> None:
    with journal(path) as one:
        one.write([], forget=[endpoint_id(1)])
        one.write([entry(2)], forget=[endpoint_id(1)])
    assert recorded(path) == [entry(2)]


def test_one_write_adds_and_forgets(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1)])
        one.write([entry(2)], forget=[endpoint_id(1)])
    assert recorded(path) == [entry(2)]


def test_a_write_is_there_for_another_process_at_once(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1)])
        assert recorded(path) == [entry(1)]


def test_what_cant_be_written_says_so(path: Path) -> None:
    with journal(path) as one, full_disk(one), pytest.raises(TryAgain, match="database or disk is full; tell the administrator"):
        one.write([large(1), large(2)])


def test_a_write_that_fails_writes_nothing_of_it(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1), entry(2)])
        with full_disk(one), pytest.raises(TryAgain):
            one.write([large(3), large(4), large(5)], forget=[endpoint_id(1)])
        assert recorded(path) == [entry(1), entry(2)]


def test_a_journal_is_written_again_when_there_is_room_again(path: Path) -> None:
    with journal(path) as one:
        for write in ([large(1)], [large(1), large(2)]):
            with full_disk(one), pytest.raises(TryAgain):
                one.write(write)
        one.write([large(1), large(2)])
        one.write([], forget=[endpoint_id(1)])
    assert recorded(path) == [large(2)]


def test_generations_are_never_given_twice(path: Path) -> None:
    with journal(path) as one:
        given = [one.next_generation() for _ in range(2500)]
    assert given == sorted(set(given))
    assert given[0] > 0


def test_generations_grow_over_restarts(path: Path) -> None:
    given = []
    for _ in range(5):
        with journal(path) as one:
            given += [one.next_generation() for _ in range(3)]
    assert given == sorted(set(given))


def test_generations_that_cant_be_reserved_arent_given(path: Path) -> None:
    with journal(path) as one:
        one._db.execute("PRAGMA query_only=ON")
        for _ in range(2):
            with pytest.raises(TryAgain):
                one.next_generation()
        one._db.execute("PRAGMA query_only=OFF")
        given = one.next_generation()
    with journal(path) as one:
        assert one.next_generation() > given


def test_the_boot_is_noted(path: Path) -> None:
    with journal(path) as one:
        one.set_boot_id("boot-1")
    with journal(path) as one:
        assert one.boot_id == "boot-1"


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    before = path.read_bytes()
    with pytest.raises(JournalDamaged, match="move it away"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE passwords (name)")
    before = path.read_bytes()
    with pytest.raises(JournalDamaged, match="another program's"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_database_with_damaged_pages_is_refused(path: Path) -> None:
    with journal(path) as one:
        one.write([large(number) for number in range(20)])
    data = bytearray(path.read_bytes())
    data[8192:20480] = bytes(12288)
    path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        Journal(path)
    assert path.read_bytes() == data


def test_a_journal_of_a_newer_vifd_is_refused(path: Path) -> None:
    with journal(path) as one:
        one._db.execute("PRAGMA user_version=2")
    with pytest.raises(JournalDamaged, match="newer vifd"):
        Journal(path)


@pytest.mark.parametrize("record", [b"", b"{}", b"nonsense", b'{"endpoint": {}, "plan": []}', b"\xff"])
def test_a_record_that_cant_be_read_is_refused(path: Path, record: bytes) -> None:
    with journal(path) as one:
        one._db.execute("INSERT INTO endpoints VALUES (7, ?)", (record,))
        with pytest.raises(JournalDamaged):
            one.load()


def test_a_directory_that_isnt_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalDamaged, match="unable to open"):
        Journal(tmp_path / "none" / "journal.db")


def test_a_checkpoint_moves_the_log_into_the_file(path: Path) -> None:
    with journal(path) as one:
        one.write([entry(1)])
        before = path.read_bytes()
        one.checkpoint()
        assert path.read_bytes() != before
    assert recorded(path) == [entry(1)]


def test_a_checkpoint_is_due_once_in_a_thousand_writes(path: Path) -> None:
    with journal(path) as one:
        due = 0
        for _ in range(3000):
            one.write([bridge_entry(1)])
            due += one.wants_checkpoint()
    assert due == 3


def test_a_journal_in_memory_is_a_journal() -> None:
    with contextlib.closing(Journal(":memory:")) as one:
        one.write([entry(1)])
        one.checkpoint()
        assert one.load() == [entry(1)]
