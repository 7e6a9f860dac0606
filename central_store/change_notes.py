"""What the catalog changes, on its way into the change feed (`central_store.changes`).

Order: `added`, `add`, `standing` and `damage` within a transaction, then `keep` in it, then `flush` after its
commit. A transaction that fails calls `clear`. `flush` may be repeated: what is lasting is passed over.

Leaves to others: the transactions (`central_store.catalog`), the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from central_store import catalog_tables as tables
from central_store import changes, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from schemas import names

if TYPE_CHECKING:
    import duckdb


class Notes:
    """The notes of one open catalog.

    Args:
        connection: the catalog's.
        layout: the store.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, layout: Layout) -> None:
        self._connection = connection
        self._layout = layout
        self._feed = changes.Feed(layout)
        self._waiting: list[tuple[str, str, str, dict[str, Any]]] = []

    def add(self, kind: str, facility: str, batch: str, **more: Any) -> None:
        """Note one change."""
        self._waiting.append((kind, facility, batch, more))

    def added(self, which: Sequence[str]) -> None:
        """Note that these batches came in."""
        rows = self._connection.execute(tables.ANNOUNCED, {"batches": list(which)}).fetchall()
        for facility, batch, sequence, images, size, stored in rows:
            self.add("added", facility, batch, sequence=sequence, images=images, bytes=size, stored=stored)

    def standing(self, sql: str = tables.CHANGED, parameters: Mapping[str, Any] | None = None) -> None:
        """Note which objects stand in answers now, or do not any more, as the catalog just decided."""
        for facility, batch, behind, objects in self._connection.execute(sql, parameters).fetchall():
            self.add("superseded" if behind else "standing", facility, batch, objects=objects)

    def damage(self, before: Collection[str], after: Collection[str]) -> None:
        """Note which batches are damaged now, or are not any more; of an erased one nothing more is said."""
        for batch in sorted(set(before) ^ set(after)):
            for (facility,) in self._connection.execute(tables.OWNER, {"batch": batch}).fetchall():
                if tombstones.erased(self._layout, Batch(facility, names.batch_id(batch))):
                    continue
                self.add("set-aside" if batch in after else "repaired", facility, batch)

    def catch_up(self, known: Sequence[Batch], damaged: Collection[str]) -> None:
        """After a rebuild: note what the feed does not have yet."""
        added, aside, erased = changes.seen(self._layout)
        new = [batch for batch in known if batch.batch not in added]
        self.added([batch.batch for batch in new])
        for batch in new:
            found = self._connection.execute(tables.CONFLICTS_OF, {"batch": batch.batch}).fetchall()
            if found:
                self.add("conflict", *batch, sop_instance_uids=[uid for (uid,) in found])
        self.standing(tables.STAND_BEHIND, {"batches": [batch.batch for batch in new]})
        self.damage(aside, damaged)
        for batch in known:
            if batch.batch not in erased and tombstones.erased(self._layout, batch):
                self.add("erased", *batch)
        self.keep()

    def keep(self) -> None:
        """In the transaction: what was noted waits in the database."""
        self._connection.execute(tables.FORGET, [self._feed.last])
        ((last,),) = self._connection.execute("SELECT coalesce(max(number), 0) FROM changes").fetchall()
        for number, note in enumerate(self._waiting, max(last, self._feed.last) + 1):
            self._connection.execute(tables.NOTE, [number, changes.line(number, *note)])
        self.clear()

    def clear(self) -> None:
        """The transaction failed: nothing of it changed."""
        self._waiting.clear()

    def flush(self) -> None:
        """Make what waits lasting in the feed; raises `OSError` when the disk refuses, and it waits on."""
        self._feed.add(self._connection.execute(tables.NOTED).fetchall())
