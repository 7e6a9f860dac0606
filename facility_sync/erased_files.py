"""Which files are erased, and which left their batch for another: the part of the ledger erasing needs.

Guarantees: those of `facility_sync.ledger`, whose database this is.

Leaves to others: the files it is made of again when the ledger is lost (`facility_sync.tombstones`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

from facility_sync.ledger import JOIN, KEPT, Ledger, key_of

_STORED = f"SELECT f.batch FROM {JOIN} WHERE digest = ? AND {KEPT} AND b.state = 'stored'"


class ErasedFiles:
    """A view of an open ledger.

    Args:
        ledger: whose.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def stored_outside(self, digests: Iterable[str], batches: Collection[str]) -> set[str]:
        """Of these keyed digests those that are in a stored batch which is none of these, and not erased."""
        found = set()
        for digest in digests:
            rows = self._ledger.database.execute(_STORED, (digest,))
            if any(batch not in batches for (batch,) in rows):
                found.add(digest)
        return found

    def places(self, digest: str) -> Iterator[tuple[str, str, str, int, int]]:
        """Source, folder, name, size and time of every file with this keyed digest."""
        rows = self._ledger.database.execute(
            "SELECT source, folder, name, size, mtime_ns FROM files WHERE digest = ?", (digest,)
        )
        for source, folder, name, size, mtime_ns in rows.fetchall():
            yield os.fsdecode(source), os.fsdecode(folder), os.fsdecode(name), size, mtime_ns

    def forget(self, source: str) -> None:
        """Forget the files of a source that is none: they were brought back to be sent again."""
        self._ledger.database.execute("DELETE FROM files WHERE source = ?", (key_of(source),))

    def moved(self, digests: Iterable[str], batches: Collection[str]) -> None:
        """Files with these digests were sent again: they are not in these batches any more."""
        with self._ledger.transaction():
            for digest in digests:
                rows = self._ledger.database.execute(_STORED, (digest,)).fetchall()
                new = next((batch for (batch,) in rows if batch not in batches), None)
                if new is not None:
                    self._ledger.database.executemany(
                        "UPDATE files SET batch = ?, state = 'packed', lost = '' "
                        "WHERE digest = ? AND batch = ?",
                        [(new, digest, old) for old in batches],
                    )

    def given_up(self, digests: Iterable[str], batches: Collection[str], moment: str) -> None:
        """Files with these digests go with these batches: they are lost, and are sent if they come back."""
        with self._ledger.transaction():
            self._ledger.database.executemany(
                "UPDATE files SET lost = ? WHERE digest = ? AND batch = ?",
                [(moment, digest, batch) for digest in digests for batch in batches],
            )

    def mark_erased(self, names: Iterable[str]) -> None:
        """These are all keyed digests of erased files, which are never sent again, and all erased batches."""
        with self._ledger.transaction():
            self._ledger.database.execute("DELETE FROM erased")
            self._ledger.database.executemany(
                "INSERT OR IGNORE INTO erased VALUES (?)", [(name,) for name in names]
            )

    def erased(self, digests: Iterable[str]) -> set[str]:
        """Of these keyed digests those that are erased."""
        return {
            digest
            for digest in digests
            if self._ledger.database.execute("SELECT 1 FROM erased WHERE name = ?", (digest,)).fetchone()
        }
