"""What the terminal has seen, packed, sent, and has receipts for.

Guarantees: every transition is one transaction that is on disk when the call returns; a batch moves
`ready -> sent -> stored | refused` and only a verified receipt (the caller's promise) makes it
`stored`. A file's state follows from its batch, so no crash can leave the two in disagreement; only the
notice of the last store that held a batch takes a file out of it (`lost`), until it is taken again or the
batch is back. A file whose keyed digest is erased is `erased`, whatever else is known of it.

It is an index: deleting it costs one round in which every file is read again and found held.

Leaves to others: looking at files (`scan`), verifying receipts (`exchange`), what is erased (`erased_files`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from schemas.errors import VersionError
from schemas.messages import Statement
from schemas.names import BatchId

VERSION = 4

_SCHEMA = """
CREATE TABLE batches (
    batch TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, previous TEXT NOT NULL,
    objects INTEGER NOT NULL, bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ready', 'sent', 'stored', 'refused')),
    reason TEXT NOT NULL DEFAULT '', created TEXT NOT NULL, stored TEXT NOT NULL DEFAULT '',
    sealed_for TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE holders (batch TEXT NOT NULL, store TEXT NOT NULL, PRIMARY KEY (batch, store)) WITHOUT ROWID;
CREATE TABLE files (
    source TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('packed', 'held', 'refused')),
    reason TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT '', instance TEXT NOT NULL DEFAULT '',
    pruned TEXT NOT NULL DEFAULT '', lost TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, folder, name)
) WITHOUT ROWID;
CREATE INDEX files_by_digest ON files (digest) WHERE digest <> '';
CREATE INDEX files_by_instance ON files (instance) WHERE instance <> '';
CREATE INDEX files_by_batch ON files (batch) WHERE batch <> '';
CREATE INDEX files_refused ON files (state) WHERE state = 'refused';
CREATE INDEX files_lost ON files (lost) WHERE lost <> '';
CREATE TABLE heads (sequence INTEGER PRIMARY KEY, batch TEXT NOT NULL);
CREATE TABLE erased (name TEXT PRIMARY KEY) WITHOUT ROWID
"""
_UPGRADES = {
    1: """ALTER TABLE files ADD COLUMN pruned TEXT NOT NULL DEFAULT '';
ALTER TABLE files ADD COLUMN lost TEXT NOT NULL DEFAULT '';
CREATE INDEX files_lost ON files (lost) WHERE lost <> ''""",
    2: """ALTER TABLE batches ADD COLUMN sealed_for TEXT NOT NULL DEFAULT '';
CREATE TABLE holders (batch TEXT NOT NULL, store TEXT NOT NULL, PRIMARY KEY (batch, store)) WITHOUT ROWID""",
    3: "CREATE TABLE erased (name TEXT PRIMARY KEY) WITHOUT ROWID",
}
"""From each earlier version to the next."""

LedgerFailure = sqlite3.Error
"""What comes out of a ledger whose disk fails; whoever leads the round translates it."""

FileState = Literal["stored", "sent", "ready", "refused", "lost", "erased"]


class Known(NamedTuple):
    """A file as the ledger knows it: what it was when it was read, and what became of it."""

    size: int
    mtime_ns: int
    state: FileState
    reason: str


class Record(NamedTuple):
    """All that is known of a file that was taken or refused.

    `stored` is when the store confirmed its batch, `pruned` when the local file was deleted, or empty.
    """

    folder: str
    name: str
    size: int
    mtime_ns: int
    state: FileState
    reason: str
    batch: str
    digest: str
    stored: str
    pruned: str


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


_ERASED = "f.digest IN (SELECT name FROM erased)"
_STATE = f"""CASE WHEN {_ERASED} THEN 'erased' WHEN f.lost <> '' THEN 'lost'
    WHEN f.state = 'packed' THEN b.state WHEN f.state = 'held' THEN 'stored' ELSE f.state END"""
KEPT = "f.lost = '' AND f.batch NOT IN (SELECT name FROM erased)"
_TAKEN = f"{KEPT} AND (f.state = 'held' OR b.state <> 'refused')"
_REASON = """CASE WHEN f.state = 'packed' THEN b.reason ELSE f.reason END"""
JOIN = "files f LEFT JOIN batches b USING (batch)"


def key_of(path: str) -> str | bytes:
    """A path as SQLite can hold it: text, or the raw bytes of a name that is no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


class Ledger:
    """The ledger's database; one process writes it at a time (`Home.only_round`), others may read."""

    def __init__(self, path: Path) -> None:
        self._db = self.database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if self._version() != VERSION:
            with self.transaction():
                self._upgrade()

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _upgrade(self) -> None:
        version = self._version()
        if not 0 <= version <= VERSION:
            raise VersionError("the ledger is of a version this program does not know")
        scripts = [_SCHEMA] if version == 0 else [_UPGRADES[step] for step in range(version, VERSION)]
        for statement in ";".join(scripts).split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what happens meanwhile, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    def folder(self, source: str, folder: str) -> dict[str, Known]:
        """The files known in one folder, by name."""
        rows = self._db.execute(
            f"SELECT name, f.size, mtime_ns, {_STATE}, {_REASON} FROM {JOIN} WHERE source = ? AND folder = ?",
            (key_of(source), key_of(folder)),
        )
        return {os.fsdecode(name): Known(*rest) for name, *rest in rows}

    def records(self, source: str, folder: str | None = None) -> Iterator[Record]:
        """Everything known of the files of one source, or of one folder of it, by folder and name."""
        rows = self._db.execute(
            f"SELECT folder, name, f.size, mtime_ns, {_STATE}, {_REASON}, f.batch, digest, "
            f"coalesce(b.stored, ''), pruned FROM {JOIN} "
            "WHERE source = ?1 AND (?2 IS NULL OR folder = ?2) ORDER BY folder, name",
            (key_of(source), None if folder is None else key_of(folder)),
        )
        for at, name, *rest in rows:
            yield Record(os.fsdecode(at), os.fsdecode(name), *rest)

    def pruned(self, source: str) -> int:
        """Number of files of one source that were deleted here after they were stored."""
        row = self._db.execute(
            "SELECT count(*) FROM files WHERE source = ? AND pruned <> ''", (key_of(source),)
        ).fetchone()
        return int(row[0])

    def counts(self, source: str) -> dict[str, int]:
        """Number of files by state in one source."""
        return dict(
            self._db.execute(
                f"SELECT {_STATE}, count(*) FROM {JOIN} WHERE source = ? GROUP BY 1", (key_of(source),)
            )
        )

    def not_stored(self) -> Iterator[tuple[str, str, str, FileState, str]]:
        """Source, folder, name, state and reason of every known file that is not stored."""
        rows = self._db.execute(
            f"SELECT source, folder, name, {_STATE}, {_REASON} FROM {JOIN} "
            "WHERE (f.state = 'refused' OR f.lost <> '' OR b.state IN ('ready', 'sent', 'refused')) "
            f"AND NOT {_ERASED} "
            "ORDER BY 1, 2, 3"
        )
        for source, folder, name, state, reason in rows:
            yield os.fsdecode(source), os.fsdecode(folder), os.fsdecode(name), state, reason

    def by_digest(self, digests: Iterable[str], but: Collection[str] = ()) -> dict[str, str]:
        """Batch of each keyed digest that is in one, but for these, that was not refused, lost or erased."""
        found = {}
        for digest in digests:
            rows = self._db.execute(f"SELECT f.batch FROM {JOIN} WHERE digest = ? AND {_TAKEN}", (digest,))
            if batch := next((one for (one,) in rows if one not in but), ""):
                found[digest] = batch
        return found

    def other_bytes(self, instance: str, digest: str) -> bool:
        """Whether this SOP instance was taken before with different bytes."""
        row = self._db.execute(
            "SELECT 1 FROM files WHERE instance = ? AND digest <> ? AND state <> 'refused' LIMIT 1",
            (instance, digest),
        ).fetchone()
        return row is not None

    def record(
        self, entries: Iterable[Entry], statement: Statement | None = None, sealed_for: Sequence[str] = ()
    ) -> None:
        """Write what was decided about files, and the batch that holds them, in one transaction.

        Args:
            entries: the files.
            statement: of the batch.
            sealed_for: age recipients of the batch as it lies in the outbox.
        """
        with self.transaction():
            if statement is not None:
                s = statement
                self._db.execute(
                    "INSERT INTO batches "
                    "(batch, sequence, previous, objects, bytes, state, created, sealed_for) "
                    "VALUES (?, ?, ?, ?, ?, 'ready', ?, ?)",
                    (s.batch, s.sequence, s.previous, s.objects, s.bytes, s.created, " ".join(sealed_for)),
                )
            self._db.executemany(
                "INSERT OR REPLACE INTO files "
                "(source, folder, name, size, mtime_ns, state, reason, batch, digest, instance) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (key_of(e.source), key_of(e.folder), key_of(e.name), e.size, e.mtime_ns,
                     "held" if e.held else "packed" if e.batch else "refused",
                     e.reason, e.batch, e.digest, e.instance)
                    for e in entries
                ],
            )  # fmt: skip

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

    def sealed_for(self, batch: str) -> list[str]:
        """Age recipients of a batch in the outbox; none if an earlier version sealed it."""
        row = self._db.execute("SELECT sealed_for FROM batches WHERE batch = ?", (batch,)).fetchone()
        return str(row[0]).split() if row else []

    def mark_sealed(self, batch: str, sealed_for: Sequence[str]) -> None:
        """The batch in the outbox is sealed for others now."""
        self._db.execute("UPDATE batches SET sealed_for = ? WHERE batch = ?", (" ".join(sealed_for), batch))

    def hold(self, batch: str, store: str) -> None:
        """A verified receipt of this store names this batch, whatever else is known of it."""
        self._db.execute("INSERT OR IGNORE INTO holders VALUES (?, ?)", (batch, store))

    def drop(self, batch: str, store: str) -> None:
        """This store holds this batch no longer."""
        self._db.execute("DELETE FROM holders WHERE batch = ? AND store = ?", (batch, store))

    def holders(self, batch: str) -> list[str]:
        """The stores that gave a verified receipt for a batch, by name."""
        rows = self._db.execute("SELECT store FROM holders WHERE batch = ? ORDER BY store", (batch,))
        return [store for (store,) in rows]

    def knows_holders(self) -> bool:
        """Whether any store is known to hold anything: otherwise the receipts have not been read."""
        return self._db.execute("SELECT 1 FROM holders LIMIT 1").fetchone() is not None

    def copies(self, source: str, stores: Sequence[str]) -> dict[int, int]:
        """Number of stored files of a source by the number of these stores that hold their batch."""
        marks = ",".join("?" * len(stores))
        return dict(
            self._db.execute(
                f"SELECT (SELECT count(*) FROM holders h WHERE h.batch = f.batch AND h.store IN ({marks})), "
                f"count(*) FROM {JOIN} WHERE source = ? AND {_STATE} = 'stored' GROUP BY 1 ORDER BY 1",
                (*stores, key_of(source)),
            )
        )

    def not_held_by(self, store: str) -> Iterator[tuple[str, str]]:
        """Batches, not refused, that this store gave no receipt for, each with the digest of a file in it."""
        yield from self._db.execute(
            "SELECT b.batch, min(f.digest) FROM batches b JOIN files f USING (batch) "
            f"WHERE b.state <> 'refused' AND f.digest <> '' AND f.lost = '' AND NOT {_ERASED} AND NOT EXISTS "
            "(SELECT 1 FROM holders h WHERE h.batch = b.batch AND h.store = ?) GROUP BY 1 ORDER BY 1",
            (store,),
        )

    def mark_stored(self, batch: str, moment: str) -> None:
        """A verified receipt names this batch: it is stored, or it is back."""
        with self.transaction():
            self._db.execute(
                "UPDATE batches SET state = 'stored', stored = ? WHERE batch = ?", (moment, batch)
            )
            self._db.execute("UPDATE files SET lost = '' WHERE batch = ?", (batch,))

    def mark_lost(self, batch: str, moment: str) -> int:
        """A verified notice says the store lost this batch: its files wait again; returns how many."""
        return self._db.execute("UPDATE files SET lost = ? WHERE batch = ?", (moment, batch)).rowcount

    def mark_pruned(self, source: str, folder: str, names: Iterable[str], moment: str) -> None:
        """These files of a folder are deleted here (or are not, with an empty moment)."""
        with self.transaction():
            self._db.executemany(
                "UPDATE files SET pruned = ? WHERE source = ? AND folder = ? AND name = ?",
                [(moment, key_of(source), key_of(folder), key_of(name)) for name in names],
            )

    def mark_refused(self, batch: str, reason: str) -> None:
        """A verified refusal names this batch; a batch with a receipt stays stored."""
        self._db.execute(
            "UPDATE batches SET state = 'refused', reason = ? WHERE batch = ? AND state <> 'stored'",
            (reason, batch),
        )

    def send_again(self, batch: str, reason: str) -> bool:
        """A batch under way did not arrive as it was sent: back to `ready`, once; whether it is."""
        cursor = self._db.execute(
            "UPDATE batches SET state = 'ready', reason = ? "
            "WHERE batch = ? AND state IN ('ready', 'sent') AND reason = ''",
            (reason, batch),
        )
        return cursor.rowcount == 1

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
