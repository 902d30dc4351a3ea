"""The journal: what vifd is about to do, and what it has made, in one SQLite file.

WAL with synchronous NORMAL: a commit outlives the process, and kernel objects die with the host just as the last unsynced
commits do.
The order is always: journal the intent with its plan, then the kernel, then journal the outcome, then answer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from vifd.errors import JournalDamaged
from vifd.kernel.ops import Plan
from vifd.model import Endpoint

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0), ('boot_id', '');
CREATE TABLE endpoints (endpoint_id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
"""


class Entry(Struct, frozen=True):
    """One endpoint with the plan that made it, or is about to."""

    endpoint: Endpoint
    plan: Plan


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Journal:
    """The file. Any thread may call; a lock puts the calls in a row.

    Args:
        path: the file; made with its tables if it isn't there. ":memory:": none.

    Raises:
        JournalDamaged: the file is no journal, damaged, or of a newer vifd. Nothing has been changed then.
    """

    def __init__(self, path: Path | str) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=32)
            self._open()
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _open(self) -> None:
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged(problem)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise self._damaged(f"it was written by a newer vifd (version {version})")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
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
        with self._lock:
            rows = self._db.execute("SELECT record FROM endpoints").fetchall()
        try:
            return [_decode(record) for (record,) in rows]
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error

    @property
    def generation(self) -> int:
        """The largest generation that was ever given."""
        return int(self._meta("generation"))

    @property
    def boot_id(self) -> str:
        """The boot in which the records were written; empty in a new journal."""
        return str(self._meta("boot_id"))

    def set_boot_id(self, boot_id: str) -> None:
        """Note the boot in which the records are written."""
        with self._lock:
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'boot_id'", (boot_id,))

    def write(self, entries: Iterable[Entry], *, forget: Sequence[str] = (), generation: int = 0) -> None:
        """Commit one transaction.

        Args:
            entries: are added, or take the place of those with the same id.
            forget: the ids that are deleted.
            generation: the largest that was given so far; 0: unchanged.
        """
        rows = [(entry.endpoint.endpoint_id, _encode(entry)) for entry in entries]
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO endpoints VALUES (?, ?)", rows)
                self._db.executemany("DELETE FROM endpoints WHERE endpoint_id = ?", [(i,) for i in forget])
                if generation:
                    self._db.execute(
                        "UPDATE meta SET value = ? WHERE name = 'generation' AND value < ?", (generation, generation)
                    )
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _meta(self, name: str) -> str | int:
        with self._lock:
            value: str | int = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
        return value
