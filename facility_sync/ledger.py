"""What the terminal has seen, packed, sent, and has receipts for.

Guarantees: every transition is one transaction that is on disk when the call returns; a batch moves
`ready -> sent -> stored | refused` and only a verified receipt (the caller's promise) makes it
`stored`. A file's state follows from its batch, so no crash can leave the two in disagreement.

It is an index: deleting it costs one round in which every file is read again and found held.

Leaves to others: looking at files (`facility_sync.scan`), verifying receipts (`facility_sync.exchange`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from schemas.errors import VersionError
from schemas.messages import Statement
from schemas.names import BatchId

VERSION = 1

_SCHEMA = """
CREATE TABLE batches (
    batch TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, previous TEXT NOT NULL,
    objects INTEGER NOT NULL, bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ready', 'sent', 'stored', 'refused')),
    reason TEXT NOT NULL DEFAULT '', created TEXT NOT NULL, stored TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE files (
    source TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('packed', 'held', 'refused')),
    reason TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT '', instance TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, folder, name)
) WITHOUT ROWID;
CREATE INDEX files_by_digest ON files (digest) WHERE digest <> '';
CREATE INDEX files_by_instance ON files (instance) WHERE instance <> '';
CREATE INDEX files_by_batch ON files (batch) WHERE batch <> '';
CREATE INDEX files_refused ON files (state) WHERE state = 'refused';
CREATE TABLE heads (sequence INTEGER PRIMARY KEY, batch TEXT NOT NULL);
"""

FileState = Literal["stored", "sent", "ready", "refused"]


class Known(NamedTuple):
    """A file as the ledger knows it: what it was when it was read, and what became of it."""

    size: int
    mtime_ns: int
    state: FileState
    reason: str


class Entry(NamedTuple):
    """A file's new place in the ledger. `batch` is empty for a refused file."""

    source: str
    folder: str
    name: str
    size: int
    mtime_ns: int
    batch: str = ""
    digest: str = ""
    instance: str = ""
    reason: str = ""
    held: bool = False


class Batch(NamedTuple):
    """A batch as the ledger knows it."""

    batch: BatchId
    sequence: int
    objects: int
    bytes: int
    state: str
    reason: str
    stored: str


_STATE = """CASE WHEN f.state = 'packed' THEN b.state WHEN f.state = 'held' THEN 'stored' ELSE f.state END"""
_REASON = """CASE WHEN f.state = 'packed' THEN b.reason ELSE f.reason END"""
_JOIN = "files f LEFT JOIN batches b USING (batch)"


def _key(path: str) -> str | bytes:
    """A path as SQLite can hold it: text, or the raw bytes of a name that is no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


class Ledger:
    """The ledger's database; one process writes it at a time (`Home.only_round`), others may read."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
        elif version != VERSION:
            raise VersionError("the ledger is of a version this program does not know")

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    def folder(self, source: str, folder: str) -> dict[str, Known]:
        """The files known in one folder, by name."""
        rows = self._db.execute(
            f"SELECT name, f.size, mtime_ns, {_STATE}, {_REASON} FROM {_JOIN} "
            "WHERE source = ? AND folder = ?",
            (_key(source), _key(folder)),
        )
        return {os.fsdecode(name): Known(*rest) for name, *rest in rows}

    def sources(self) -> list[str]:
        """Sources that have entries."""
        return [
            os.fsdecode(source)
            for (source,) in self._db.execute("SELECT DISTINCT source FROM files ORDER BY source")
        ]

    def counts(self, source: str) -> dict[str, int]:
        """Number of files by state in one source."""
        return dict(
            self._db.execute(
                f"SELECT {_STATE}, count(*) FROM {_JOIN} WHERE source = ? GROUP BY 1", (_key(source),)
            )
        )

    def not_stored(self) -> Iterator[tuple[str, str, str, FileState, str]]:
        """Source, folder, name, state and reason of every known file that is not stored."""
        rows = self._db.execute(
            f"SELECT source, folder, name, {_STATE}, {_REASON} FROM {_JOIN} "
            "WHERE f.state = 'refused' OR b.state IN ('ready', 'sent', 'refused') ORDER BY 1, 2, 3"
        )
        for source, folder, name, state, reason in rows:
            yield os.fsdecode(source), os.fsdecode(folder), os.fsdecode(name), state, reason

    def by_digest(self, digests: Iterable[str]) -> dict[str, str]:
        """Batch of each keyed digest that is in a batch which was not refused."""
        found = {}
        for digest in digests:
            row = self._db.execute(
                f"SELECT f.batch FROM {_JOIN} WHERE digest = ? "
                "AND (f.state = 'held' OR b.state <> 'refused') LIMIT 1",
                (digest,),
            ).fetchone()
            if row:
                found[digest] = row[0]
        return found

    def other_bytes(self, instance: str, digest: str) -> bool:
        """Whether this SOP instance was taken before with different bytes."""
        row = self._db.execute(
            "SELECT 1 FROM files WHERE instance = ? AND digest <> ? AND state <> 'refused' LIMIT 1",
            (instance, digest),
        ).fetchone()
        return row is not None

    def record(self, entries: Iterable[Entry], statement: Statement | None = None) -> None:
        """Write what was decided about files, and the batch that holds them, in one transaction."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                if statement is not None:
                    s = statement
                    cursor.execute(
                        "INSERT INTO batches (batch, sequence, previous, objects, bytes, state, created) "
                        "VALUES (?, ?, ?, ?, ?, 'ready', ?)",
                        (s.batch, s.sequence, s.previous, s.objects, s.bytes, s.created),
                    )
                cursor.executemany(
                    "INSERT OR REPLACE INTO files "
                    "(source, folder, name, size, mtime_ns, state, reason, batch, digest, instance) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (_key(e.source), _key(e.folder), _key(e.name), e.size, e.mtime_ns,
                         "held" if e.held else "packed" if e.batch else "refused",
                         e.reason, e.batch, e.digest, e.instance)
                        for e in entries
                    ],
                )  # fmt: skip
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def batches(self, *states: str) -> list[Batch]:
        """Batches in any of these states, by sequence."""
        marks = ",".join("?" * len(states))
        rows = self._db.execute(
            "SELECT batch, sequence, objects, bytes, state, reason, stored FROM batches "
            f"WHERE state IN ({marks}) ORDER BY sequence",
            states,
        )
        return [Batch(*row) for row in rows]

    def batch(self, batch: str) -> Batch | None:
        """One batch, or None if this ledger does not know it."""
        row = self._db.execute(
            "SELECT batch, sequence, objects, bytes, state, reason, stored FROM batches WHERE batch = ?",
            (batch,),
        ).fetchone()
        return Batch(*row) if row else None

    def mark_sent(self, batch: str) -> None:
        """The whole batch is on the store's shelf; says nothing about it being stored."""
        self._db.execute("UPDATE batches SET state = 'sent' WHERE batch = ? AND state = 'ready'", (batch,))

    def mark_stored(self, batch: str, moment: str) -> None:
        """A verified receipt names this batch."""
        self._db.execute("UPDATE batches SET state = 'stored', stored = ? WHERE batch = ?", (moment, batch))

    def mark_refused(self, batch: str, reason: str) -> None:
        """A verified refusal names this batch; a batch with a receipt stays stored."""
        self._db.execute(
            "UPDATE batches SET state = 'refused', reason = ? WHERE batch = ? AND state <> 'stored'",
            (reason, batch),
        )

    def forget_refused(self) -> int:
        """Forget refused files, so that the next look takes them as new; returns how many."""
        cursor = self._db.execute(
            "DELETE FROM files WHERE state = 'refused' "
            "OR batch IN (SELECT batch FROM batches WHERE state = 'refused')"
        )
        return cursor.rowcount

    def head(self) -> tuple[int, str]:
        """Sequence and id of the latest batch of this facility: (0, '') before the first."""
        row = self._db.execute(
            "SELECT sequence, batch FROM (SELECT sequence, batch FROM batches UNION ALL SELECT * FROM heads) "
            "ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        return (row[0], row[1]) if row else (0, "")

    def was_lost(self) -> bool:
        """Whether this ledger began behind batches it does not know."""
        return self._db.execute("SELECT 1 FROM heads LIMIT 1").fetchone() is not None

    def adopt_head(self, sequence: int, batch: str) -> None:
        """Go on where the store says this facility's sequence stands (after the ledger was lost)."""
        self._db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?)", (sequence, batch))
