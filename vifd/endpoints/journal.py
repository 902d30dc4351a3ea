"""The journal: what vifd is about to do, and what it has made, in one SQLite file.

WAL with synchronous NORMAL: a commit outlives the process, and kernel objects die with the host just as the last unsynced
commits do.
The order is always: journal the intent with its plan, then the kernel, then journal the outcome, then answer.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from logging import getLogger
from pathlib import Path

import msgspec
from msgspec import Struct

from vifd.errors import JournalDamaged, TryAgain
from vifd.kernel.ops import Plan
from vifd.model import Endpoint

_log = getLogger(__name__)
_SCHEMA_VERSION = 1
_GENERATIONS_AT_ONCE = 1000
_WRITES_A_CHECKPOINT = 1000
_LOG_BYTES = 4 << 20  # to which a log shrinks once it is moved
_LOG_PAGES = 20_000  # at this length a commit moves the log itself, should no checkpoint have come in time
_PUT, _DELETE = "INSERT OR REPLACE INTO endpoints VALUES (?, ?)", "DELETE FROM endpoints WHERE generation = ?"
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0), ('boot_id', '');
CREATE TABLE endpoints (generation INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""


class Entry(Struct, frozen=True):
    """One endpoint with the plan that made it, or is about to.

    Args:
        changing: whether it was being changed to something else: the kernel may have a part of that, and has to be brought back.
    """

    endpoint: Endpoint
    plan: Plan
    changing: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


@contextlib.contextmanager
def _unwritable() -> Iterator[None]:
    """Translate SQLite's errors."""
    try:
        yield
    except sqlite3.Error as error:
        _log.exception("the journal can't be written")
        raise TryAgain(f"vifd's journal can't be written: {error}; tell the administrator") from error


class Journal:
    """The file. The event loop's thread alone calls; a commit is a write to the page cache, some 0.02 ms.

    What takes longer, moving the log into the file and syncing it, `checkpoint` does, which belongs in a thread of its own.

    Args:
        path: the file; made with its tables if it isn't there. ":memory:": none.

    Raises:
        JournalDamaged: the file is no journal, damaged, or of a newer vifd. Nothing has been changed then.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._writes = 0
        # The rows are keyed by generation, so that a commit writes one page: by id it would write three.
        self._generations: dict[str, int] = {}
        try:
            self._db = sqlite3.connect(path, isolation_level=None, cached_statements=32)
            self._open()
            self._generation = self._reserved = int(self._meta("generation"))
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _open(self) -> None:
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged(problem)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise self._damaged(f"it was written by a newer vifd (version {version})")
        if version == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise self._damaged("it is another program's database")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        self._db.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")

    def _damaged(self, why: str) -> JournalDamaged:
        return JournalDamaged(
            f"{self._path}: the journal can't be used: {why}. Nothing was changed. Restore it from a backup; or move it away, "
            "and vifd starts without memory: taps that are in use stay as they are, others that it made are deleted"
        )

    def load(self) -> list[Entry]:
        """Give every endpoint.

        Raises:
            JournalDamaged: a record can't be read.
        """
        rows = self._db.execute("SELECT record FROM endpoints").fetchall()
        try:
            entries = [_decode(record) for (record,) in rows]
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error
        self._generations = {entry.endpoint.endpoint_id: entry.endpoint.generation for entry in entries}
        return entries

    @property
    def boot_id(self) -> str:
        """The boot in which the records were written; empty in a new journal."""
        return str(self._meta("boot_id"))

    def set_boot_id(self, boot_id: str) -> None:
        """Note the boot in which the records are written."""
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'boot_id'", (boot_id,))

    def next_generation(self) -> int:
        """Give a number that is larger than every one before, also of earlier runs: they are reserved a thousand at a time.

        Raises:
            TryAgain: the file can't be written.
        """
        if self._generation == self._reserved:
            reserved = self._generation + _GENERATIONS_AT_ONCE
            with _unwritable():
                self._db.execute("UPDATE meta SET value = ? WHERE name = 'generation'", (reserved,))
            self._reserved = reserved
        self._generation += 1
        return self._generation

    def write(self, entries: Sequence[Entry], *, forget: Sequence[str] = ()) -> None:
        """Commit one transaction.

        Args:
            entries: are added, or take the place of those with the same id.
            forget: the ids that are deleted.

        Raises:
            TryAgain: the file can't be written; nothing of it is.
        """
        puts = {entry.endpoint.endpoint_id: entry.endpoint.generation for entry in entries}
        gone = [self._generations[i] for i in (*puts, *forget) if self._generations.get(i, puts.get(i)) != puts.get(i)]
        rows = [(entry.endpoint.generation, _encode(entry)) for entry in entries]
        with _unwritable():
            self._commit([(generation,) for generation in gone], rows)
        self._writes += len(gone) + len(rows)
        for endpoint_id in forget:
            self._generations.pop(endpoint_id, None)
        self._generations |= puts

    def _commit(self, gone: Sequence[tuple[int]], rows: Sequence[tuple[int, bytes]]) -> None:
        if len(gone) + len(rows) > 1:
            self._write_together(gone, rows)
        elif gone:
            self._db.execute(_DELETE, gone[0])  # a statement alone is a transaction
        elif rows:
            self._db.execute(_PUT, rows[0])

    def _write_together(self, gone: Sequence[tuple[int]], rows: Sequence[tuple[int, bytes]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(_DELETE, gone)
            self._db.executemany(_PUT, rows)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # what is grave, like a full disk, has ended it already
                self._db.execute("ROLLBACK")
            raise

    def wants_checkpoint(self) -> bool:
        """Tell, once every few hundred writes, that it is time for `checkpoint`."""
        due = self._writes >= _WRITES_A_CHECKPOINT
        if due:
            self._writes = 0
        return due

    def checkpoint(self) -> None:
        """Move the log into the file. Any thread may call it; it waits for the disk, and nobody waits for it."""
        if self._path != ":memory:":
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _meta(self, name: str) -> str | int:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise self._damaged(f"it has no {name}")
        value: str | int = row[0]
        return value
