"""The searchable index of all rows: derived from the manifests, can be dropped and rebuilt at any time.

Tables: `central_store.catalog_tables`; from values to rows: `lookups`; for lists of studies: `bundling`.

Guarantees: a batch is one transaction; following it again is a no-op. What it costs follows the batch, not
the archive: its objects and parts are added, and other rows are touched only where a file was sent again. The
same file sent twice is one row in answers: that of the undamaged batch with the lowest sequence; `duplicate`
marks the others. Of an erased batch there is a line in `batches`, and no row. So all answers follow from the
files alone, in whatever order batches came.

Leaves to others: its file and errors (`catalog_file`), the rows of one batch (`catalog_load`), what is asked
(`search`). One process may open it (DuckDB's own rule); `central_store.lock` keeps it so.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from central_store import batches, keyruns, lookups, packs, tombstones
from central_store import catalog_tables as tables
from central_store.batches import Batch
from central_store.bundling import KEYS, Bundles
from central_store.catalog_erase import erase
from central_store.catalog_file import CatalogError, connect, drop, too_slow, translated
from central_store.catalog_load import column, load, take
from central_store.change_notes import Notes
from central_store.keys import WITHIN
from central_store.layout import Layout
from central_store.lookups import Lookups
from central_store.mapped import Ballast
from central_store.packs import Place
from central_store.publish import Publishing
from central_store.settings import Settings
from central_store.sheets import Sheet
from central_store.watch import Watch
from schemas import conditions, names
from schemas.conditions import Point, Points
from schemas.errors import Damaged
from schemas.names import BatchId, FacilityName, ObjectId
from schemas.row_marks import Known
from schemas.transit import durable

log = logging.getLogger("central_store")

VERSION = hashlib.sha256("\n".join((*tables.TABLES, *tables.DERIVED, keyruns.SHAPE)).encode()).hexdigest()
"""Of the shape of tables and runs, and of what is derived within them: another one means a rebuild."""

_NONE: Points = {}


class Catalog:
    """The catalog of one store; a context manager.

    Args:
        layout: the store.
        settings: memory and threads.
        rebuild: make a missing one, or one of another version, from the manifests; else `CatalogError`.
        seal: see `central_store.lookups.SEAL`.
    """

    def __init__(
        self, layout: Layout, settings: Settings, *, rebuild: bool = True, seal: int = lookups.SEAL
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._rebuild = rebuild
        self._seal = seal
        self._publishing = Publishing(layout)
        self._watch = Watch(lambda: self._connection.interrupt())  # noqa: PLW0108  # another one after a rebuild
        self.failed = False
        """Whether a batch could not be followed: open it again and follow the journal."""

    def __enter__(self) -> Catalog:
        """Open it."""
        if not self._rebuild and not self._layout.catalog.exists():
            raise CatalogError("there is no catalog")
        self._connection = connect(self._layout, self._settings)
        self._notes = Notes(self._connection, self._layout)
        try:
            with translated():
                found = self._connection.execute("SELECT value FROM version").fetchall()
                if found != [(VERSION,)]:
                    raise CatalogError("the catalog is of another version")
                self._open_beside()
        except Damaged as error:  # of the database, or of a look-up beside it
            if not self._rebuild:
                self._connection.close()
                raise CatalogError(str(error)) from error
            self.rebuild()
        else:
            self._damaged = self._read_damaged()
            with translated():
                self._conflicts = bool(self._column(tables.ANY_CONFLICT))
                self._notes.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._publishing.end()
        self._watch.close()
        self._lookups.close()
        self._connection.close()

    def _open_beside(self) -> None:
        folder = self._layout.catalog.parent
        self._ballast = Ballast()
        self._lookups = Lookups(self._connection, folder, seal=self._seal)
        self._bundles = Bundles(self._connection, folder, seal=self._seal // KEYS)

    # -- writing ---------------------------------------------------------------------------------

    def follow(self, batch: Batch) -> None:
        """Take a committed batch in; a repeat is a no-op."""
        try:
            self._follow(batch)
        except CatalogError:
            self.failed = True
            raise

    def _follow(self, batch: Batch) -> None:
        self._look_for_damage()
        with translated():
            self._notes.flush()  # what a failing disk refused before
            if self._connection.execute(tables.SEEN, [batch.batch]).fetchall():
                return
            if tombstones.erased(self._layout, batch):
                return  # `erase` adds its line
            with self._transaction():
                loaded = load(self._connection, self._lookups, self._layout, batch)
                self._bundles.add(loaded.parts, loaded.last)
                sources, instances = (self._again(kind, loaded.keys) for kind in WITHIN)
                self._notes.added([batch.batch])
                if instances:
                    parameters = {"numbers": instances, "facility": batch.facility}
                    if found := self._column(tables.CONFLICT, parameters):
                        self._conflicts = True
                        self._notes.add("conflict", *batch, sop_instance_uids=sorted(found))
                if sources:
                    self._bundles.renew(self._mark(tables.MARKED, {"numbers": sources}))
                    self._notes.standing()
                self._notes.keep()
            self._notes.flush()
            if self._connection.execute(tables.FORKED, {"batch": batch.batch}).fetchall():
                log.warning("forked facility=%s batch=%s: see `fstore status`", batch.facility, batch.batch)
            self._lookups.tidy()
            self._bundles.tidy()
        self._ballast.drop(self._bundles.release)

    def erase(self, batch: Batch) -> None:
        """Let no row of a batch that has a tombstone stand anywhere; a repeat, or an unknown one, is a no-op.

        Its line in `batches` stays, so that the facility's sequence has no gap.
        """
        try:
            self._erase(batch)
        except CatalogError:
            self.failed = True
            raise

    def _erase(self, batch: Batch) -> None:
        if not batches.committed(self._layout, batch):
            return
        with translated():
            self._notes.flush()
            if self._connection.execute(tables.ERASED, [batch.batch]).fetchall():
                return
            self._layout.traces.touch()
            durable.fsync_dir(self._layout.traces.parent)
            with self._transaction():
                digests, studies = erase(self._connection, self._lookups, self._layout, batch)
                self._notes.add("erased", *batch)
                found = self._lookups.find("source_digest", digests, [batch.facility])
                self._bundles.renew([*studies, *self._mark(tables.MARKED, {"numbers": found})])
                self._notes.standing()
                self._notes.keep()
            self._notes.flush()
            self._lookups.tidy()
            self._bundles.tidy(settle=True)

    def _again(self, kind: str, keys: pa.Table) -> list[int]:
        """Numbers of its objects that have a key of the batch just loaded; none if each has its own."""
        mine = keys.filter(pc.equal(keys["kind"], kind))["key"].to_pylist()
        found = self._lookups.of_keys(kind, mine)
        return sorted(found) if len(found) > len({*mine}) else []

    def _column(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        return column(self._connection, sql, parameters)

    def _mark(self, marked: str, parameters: Mapping[str, Any] | None = None) -> list[int]:
        """Decide anew which row of a file stands in answers, for the objects that a statement finds.

        Returns:
            The numbers of studies that are not what they were.
        """
        self._connection.execute(marked, parameters)
        self._connection.execute(tables.FLIPPED)
        if not self._column("SELECT 1 FROM flipped LIMIT 1"):
            return []
        for statement in tables.FLIP:
            self._connection.execute(statement)
        return self._column(tables.FLIPPED_STUDIES)

    def _look_for_damage(self) -> None:
        """Let rows of damaged batches stand behind others of the same file, and repaired ones no more."""
        found = packs.damaged(self._layout)
        if found == self._damaged:
            return
        with translated(), self._transaction():
            self._write_damaged(found)
            changed = {"batches": sorted(found ^ self._damaged)}
            numbers: list[int] = []
            for facility, digests in self._connection.execute(tables.DIGESTS_OF_BATCHES, changed).fetchall():
                numbers += self._lookups.find("source_digest", digests, [facility])
            self._bundles.renew(self._mark(tables.MARKED, {"numbers": numbers}))
            self._notes.damage(self._damaged, found)
            self._notes.standing()
            self._notes.keep()
        self._damaged = found
        with translated():
            self._notes.flush()

    def _write_damaged(self, found: frozenset[BatchId]) -> None:
        self._connection.execute("DELETE FROM damaged")
        self._connection.execute("INSERT INTO damaged SELECT unnest(?::VARCHAR[])", [sorted(found)])

    def _read_damaged(self) -> frozenset[BatchId]:
        with translated():
            return frozenset(names.batch_id(batch) for batch in self._column("SELECT batch_id FROM damaged"))

    def settle(self) -> None:
        """Bring look-ups and bundles into order now, which otherwise goes on beside the service."""
        with translated():
            self._lookups.tidy(settle=True)
            self._bundles.tidy(settle=True)

    def publish(self, now: datetime, *, wait: bool = False) -> bool:
        """Begin to publish it for readers, beside other work: `Publishing.begin`."""
        return self._publishing.begin(self._connection, now, wait=wait)

    def rebuild(self) -> int:
        """Drop everything and follow every committed batch; returns their number."""
        self._publishing.end()
        self._connection.close()
        drop(self._layout)
        self._connection = connect(self._layout, self._settings)
        self._notes = Notes(self._connection, self._layout)
        with translated():
            for ddl in tables.TABLES:
                self._connection.execute(ddl)
            self._open_beside()
            known = []
            for batch in batches.listing(self._layout):
                with self._transaction():
                    take(self._connection, self._lookups, self._layout, batch)
                self._lookups.tidy()
                known.append(batch)
            self._damaged = packs.damaged(self._layout)
            with self._transaction():
                self._write_damaged(self._damaged)
                self._mark(tables.MARKED_ALL)
                self._connection.execute(tables.CONFLICT_ALL)
                self._notes.catch_up(known, self._damaged)
            self._bundles.remake()
            self._conflicts = bool(self._column(tables.ANY_CONFLICT))
            self._notes.flush()
            self._connection.execute("CREATE TABLE version AS SELECT ? AS value", [VERSION])
            self._connection.execute("CHECKPOINT")
        return len(known)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._notes.clear()
            self._lookups.forgotten()
            self._bundles.forgotten()
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        self._lookups.kept()
        self._bundles.kept()

    # -- reading ---------------------------------------------------------------------------------

    @contextmanager
    def _limited(self) -> Iterator[None]:
        self._look_for_damage()
        with translated(), self._watch.limit(self._settings.search_seconds):
            yield
        self._ballast.drop(self._bundles.release)

    def table(self, sql: str, parameters: Mapping[str, Any], points: Points = _NONE) -> pa.Table:
        """The rows of a query as an Arrow table; raises `Refused` when it takes too long."""
        with self._limited():
            sql, given = self._found(sql, parameters, points)
            return self._connection.sql(sql, params=given).to_arrow_table()

    def rows(self, sql: str, parameters: Mapping[str, Any], points: Points = _NONE) -> list[tuple[Any, ...]]:
        """The rows of a query; raises `Refused` when it takes too long."""
        with self._limited():
            return self._connection.execute(*self._found(sql, parameters, points)).fetchall()

    def row(self, sql: str, parameters: Mapping[str, Any], points: Points = _NONE) -> tuple[Any, ...]:
        """The one row of a query; raises `Refused` when it takes too long."""
        return self.rows(sql, parameters, points)[0]

    def _found(self, sql: str, parameters: Mapping[str, Any], points: Points) -> tuple[str, dict[str, Any]]:
        """A statement with the numbers that look-ups find, and the parameters it then names."""
        given = dict(parameters)
        for name, at in points.items():
            if f"${name}" in sql:
                given[name] = found = self.numbers(at)
                sql = sql.replace(conditions.among(at.column, name), conditions.among(at.column, name, found))
        named = {*re.findall(r"\$(\w+)", sql)}
        return sql, {name: value for name, value in given.items() if name in named}

    def numbers(self, at: Point) -> list[int]:
        """The numbers of rows that may have one of these values."""
        return self._lookups.find(at.kind, at.values, at.owners)

    def bundles(self) -> Iterator[Sheet]:
        """The sheets of all bundles; raises `Refused` when looking at them takes too long."""
        with self._limited():
            for sheet in self._bundles.sheets():
                if self._watch.ended:
                    raise too_slow()
                yield sheet

    def disputed(self, uids: Sequence[str]) -> set[tuple[str, str]]:
        """Facilities and SOP instances among these of which they sent different files."""
        return {*self.rows(tables.DISPUTED, {"uids": list(uids)})} if self._conflicts else set()

    def held(self, facility: FacilityName, digests: Sequence[str]) -> dict[str, BatchId]:
        """Which of these source digests a facility has stored in an undamaged batch, and in which."""
        with self._limited():
            found = self._lookups.find("source_digest", list(digests), [facility])
            given = {"found": found, "wanted": list(digests), "facility": facility}
            # Mostly all are new; DuckDB would look at every object for none.
            rows = self._connection.execute(tables.HELD, given).fetchall() if found else []
        return {digest: names.batch_id(batch) for digest, batch in rows}

    def head(self, facility: FacilityName) -> tuple[int, str]:
        """A facility's highest sequence number and that batch's id; 0 and empty without any."""
        sequence, batch = self.row(tables.HEAD, {"facility": facility})
        return int(sequence), str(batch)

    def inventory(self, owners: Sequence[FacilityName]) -> dict[FacilityName, list[Known]]:
        """The batches of each of these facilities, with their sequence numbers."""
        with self._limited():
            rows = self._connection.execute(tables.INVENTORY, {"owners": list(owners)}).fetchall()
        found: dict[FacilityName, list[Known]] = {owner: [] for owner in owners}
        for owner, sequence, batch in rows:
            found[owner].append(Known(sequence, BatchId(batch)))
        return found

    def batches_of(self, wanted: Sequence[BatchId], owners: Sequence[FacilityName]) -> list[Batch]:
        """Those of these batches that `owners` stored."""
        with self._limited():
            parameters = {"batches": list(wanted), "owners": list(owners)}
            rows = self._connection.execute(tables.OWNED, parameters).fetchall()
        return [Batch(names.facility_name(owner), names.batch_id(batch)) for owner, batch in rows]

    def places(self, objects: Iterable[ObjectId], owners: Sequence[FacilityName]) -> list[Place]:
        """Where these objects lie, as far as `owners` stored them and a pack is there; in that order."""
        wanted, found = list(dict.fromkeys(objects)), dict[str, tuple[Any, ...]]()
        at = {"at": Point("number", "object_sha256", wanted)}
        rows = self.rows(f"{tables.PLACES}{conditions.among('number', 'at')}", {}, at)
        parts = sorted({part for part, *_ in rows})
        whose = dict(self.rows(f"{tables.WHOSE}{conditions.among('part', 'parts', parts)}", {"parts": parts}))
        for part, name, *place in rows:
            batch, owner = whose[part]
            if owner in owners:
                one = (batch in self._damaged, batch, *place, owner)
                found[name] = min(one, found.get(name, one))  # an undamaged one, if there is
        packed = {batch for _, batch, *_ in found.values() if packs.find(self._layout, batch) is not None}
        places = ((name, *found[name]) for name in wanted if name in found)
        return [Place(name, batch, *place) for name, _, batch, *place in places if batch in packed]

    def totals(self) -> dict[FacilityName, tuple[int, int]]:
        """Batches and rows of each facility."""
        with translated():
            rows = self._connection.execute(tables.PER_FACILITY).fetchall()
        return {names.facility_name(name): (count, instances) for name, count, instances in rows}

    def rows_of_batches(self) -> dict[BatchId, int]:
        """How many rows each batch has; a batch without any counts 0."""
        with translated():
            rows = self._connection.execute(tables.ROWS_OF_BATCHES).fetchall()
        return {names.batch_id(name): count for name, count in rows}
