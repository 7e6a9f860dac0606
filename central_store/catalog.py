"""The searchable index of all rows: derived from the manifests, can be dropped and rebuilt at any time.

    instances   every column of `schemas.columns`, and: batch_id, object_offset (in the pack), duplicate,
                and three 64-bit keys, so that a look-up scans eight bytes a row instead of a text
    batches     one row each: facility, sequence, previous, counts
    conflicts   SOP instances of which a facility sent different files
    damaged     batches whose pack is damaged: what lies in `damaged/`, looked at before each answer

Guarantees: a batch is one transaction; following it again is a no-op. Its rows come from the strict reader of
manifests, never from DuckDB's own, which may fail, or say something else, over a footer made for that. The
same file sent twice is one row in answers: that of the undamaged batch with the lowest sequence; `duplicate`
marks the others. So all tables follow from the files alone, in whatever order batches came. No index
structure is kept in memory for instances, so memory does not follow the archive. DuckDB's errors come out as
`CatalogError`. The database may read no file but its own.

Leaves to others: what to ask (`central_store.query`), what was asked (`central_store.search`). One process
may open it (DuckDB's own rule); `central_store.lock` keeps it so.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from central_store import batches, packs
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.packs import Place
from central_store.replies import Refused
from central_store.settings import Settings
from schemas import columns, manifest, names, ustar
from schemas.container import TABLE
from schemas.errors import Damaged, FormatError
from schemas.names import BatchId, FacilityName, ObjectId

log = logging.getLogger("central_store")


class CatalogError(Damaged):
    """The catalog failed; it is derived and can be made again."""

    hint = "Stop the service and run `fstore rebuild`: the catalog is made again from the manifests."


_INSTANCES = columns.duckdb_ddl(
    "instances",
    "batch_id VARCHAR NOT NULL",
    "object_offset BIGINT NOT NULL",
    "duplicate BOOLEAN NOT NULL",
    "object_key UBIGINT NOT NULL",
    "source_key UBIGINT NOT NULL",
    "sop_key UBIGINT NOT NULL",
)
_BATCHES = """CREATE TABLE batches (
    batch_id VARCHAR PRIMARY KEY, facility VARCHAR NOT NULL, sequence BIGINT NOT NULL,
    previous VARCHAR NOT NULL, objects BIGINT NOT NULL, bytes BIGINT NOT NULL,
    created TIMESTAMP WITH TIME ZONE NOT NULL
)"""
_CONFLICTS = "CREATE TABLE conflicts (facility VARCHAR, sop_instance_uid VARCHAR)"
_DAMAGED = "CREATE TABLE damaged (batch_id VARCHAR)"
_TABLES = (_INSTANCES, _BATCHES, _CONFLICTS, _DAMAGED)
VERSION = hashlib.sha256("\n".join((*_TABLES, duckdb.__version__)).encode()).hexdigest()
"""Of the tables' shape and of DuckDB, whose hash function the keys use: another one means a rebuild."""

_B = ustar.BLOCK
_NAMES = ", ".join(f'm."{column.name}"' for column in columns.COLUMNS)
_FRESH = f"""CREATE OR REPLACE TEMP TABLE fresh AS
SELECT {_NAMES}, $batch AS batch_id, object_offset, false AS duplicate, hash(m.object_sha256) AS object_key,
    hash(m.source_digest) AS source_key, hash(m.sop_instance_uid) AS sop_key
FROM incoming m
"""  # noqa: S608  # from the column table; values are parameters

_OLDER = """CREATE OR REPLACE TEMP TABLE older AS
SELECT sop_instance_uid, source_digest FROM instances
WHERE rowid IN (
    SELECT rowid FROM instances WHERE source_key IN (SELECT source_key FROM fresh)
    UNION SELECT rowid FROM instances WHERE sop_key IN (SELECT sop_key FROM fresh))
AND facility = ?"""
_IN_FRESH = """UPDATE fresh SET duplicate = true WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, row_number() OVER (
            PARTITION BY source_digest ORDER BY object_sha256, object_offset) AS n
        FROM fresh
    ) WHERE n > 1)"""
_KEYS_AGAIN = """CREATE OR REPLACE TEMP TABLE keys AS SELECT DISTINCT source_key FROM fresh
WHERE source_digest IN (SELECT source_digest FROM older)"""
_KEYS_OF_BATCHES = """CREATE OR REPLACE TEMP TABLE keys AS SELECT DISTINCT source_key FROM instances
WHERE batch_id IN (SELECT unnest($batches::VARCHAR[]))"""
_KEYS_TWICE = """CREATE OR REPLACE TEMP TABLE keys AS
SELECT source_key FROM instances GROUP BY ALL HAVING count(*) > 1"""
_MARK = """UPDATE instances SET duplicate = NOT duplicate WHERE rowid IN (
    SELECT number FROM (
        SELECT i.rowid AS number, i.duplicate AS was, row_number() OVER (
            PARTITION BY i.facility, i.source_digest
            ORDER BY i.batch_id IN (SELECT batch_id FROM damaged), b.sequence, i.batch_id,
                i.object_sha256, i.object_offset) > 1 AS now
        FROM instances i JOIN batches b ON b.batch_id = i.batch_id
        WHERE i.source_key IN (SELECT source_key FROM keys)
    ) WHERE was <> now)"""
_CONFLICT = """INSERT INTO conflicts SELECT $facility, sop_instance_uid
FROM (FROM older UNION ALL SELECT sop_instance_uid, source_digest FROM fresh)
GROUP BY sop_instance_uid HAVING count(DISTINCT source_digest) > 1
EXCEPT FROM conflicts"""

_CONFLICT_ALL = """INSERT INTO conflicts SELECT facility, sop_instance_uid FROM instances
WHERE sop_key IN (SELECT sop_key FROM instances GROUP BY ALL HAVING count(*) > 1)
GROUP BY ALL HAVING count(DISTINCT source_digest) > 1"""

_HELD = """SELECT source_digest, min(batch_id) FROM instances
WHERE rowid IN (
    SELECT rowid FROM instances WHERE source_key IN (SELECT hash(unnest($wanted::VARCHAR[]))))
AND facility = $facility AND source_digest IN (SELECT unnest($wanted::VARCHAR[]))
AND batch_id NOT IN (SELECT batch_id FROM damaged) GROUP BY ALL"""
_PLACES = """SELECT object_sha256, arg_min(
    (i.batch_id, object_offset, object_bytes, encoding), if(d.batch_id IS NULL, '0', '1') || i.batch_id)
FROM instances i LEFT JOIN damaged d ON d.batch_id = i.batch_id
WHERE i.rowid IN (
    SELECT rowid FROM instances WHERE object_key IN (SELECT hash(unnest($wanted::VARCHAR[]))))
AND facility IN (SELECT unnest($owners::VARCHAR[]))
AND object_sha256 IN (SELECT unnest($wanted::VARCHAR[])) GROUP BY ALL"""
_HEAD = """SELECT coalesce(max(sequence), 0), coalesce(arg_max(batch_id, sequence), '')
FROM batches WHERE facility = $facility"""
_FORKED = """SELECT 1 FROM batches a, batches b
WHERE a.batch_id = $batch AND b.facility = a.facility AND b.batch_id <> a.batch_id
AND (b.sequence = a.sequence
    OR b.sequence = a.sequence - 1 AND b.batch_id <> a.previous
    OR b.sequence = a.sequence + 1 AND b.previous <> a.batch_id)"""
_TOTALS = """SELECT facility, count(*), (SELECT count(*) FROM instances i WHERE i.facility = b.facility)
FROM batches b GROUP BY facility"""
_ROWS_OF_BATCHES = """SELECT b.batch_id, count(i.batch_id)
FROM batches b LEFT JOIN instances i ON i.batch_id = b.batch_id GROUP BY b.batch_id"""


class Catalog:
    """The catalog of one store; a context manager.

    Args:
        layout: the store.
        settings: memory and threads.
        rebuild: make a missing one, or one of another version, from the manifests; else `CatalogError`.
    """

    def __init__(self, layout: Layout, settings: Settings, *, rebuild: bool = True) -> None:
        self._layout = layout
        self._settings = settings
        self._rebuild = rebuild
        self.failed = False
        """Whether a batch could not be followed: open it again and follow the journal."""

    def __enter__(self) -> Catalog:
        """Open it."""
        if not self._rebuild and not self._layout.catalog.exists():
            raise CatalogError("there is no catalog")
        self._connection = self._open()
        try:
            with _translated():
                found = self._connection.execute("SELECT value FROM version").fetchall()
        except CatalogError:
            found = []
        if found != [(VERSION,)]:
            if not self._rebuild:
                self._connection.close()
                raise CatalogError("the catalog is of another version")
            self.rebuild()
        else:
            self._damaged = self._read_damaged()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._connection.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        config: dict[str, Any] = {
            "memory_limit": f"{self._settings.catalog_memory_mb}MB",
            "threads": self._settings.catalog_threads,
            "temp_directory": str(self._layout.staging / "catalog"),
            "preserve_insertion_order": False,
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }
        with _translated():
            connection = duckdb.connect(str(self._layout.catalog), config=config)
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        return connection

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
        with _translated():
            sql = "SELECT 1 FROM batches WHERE batch_id = ?"
            if self._connection.execute(sql, [batch.batch]).fetchall():
                return
            with self._transaction():
                self._load(batch)
                self._connection.execute(_OLDER, [batch.facility])
                self._connection.execute(_IN_FRESH)
                self._connection.execute(_CONFLICT, {"facility": batch.facility})
                self._connection.execute("INSERT INTO instances SELECT * FROM fresh")
                self._mark(_KEYS_AGAIN)
            if self._connection.execute(_FORKED, {"batch": batch.batch}).fetchall():
                log.warning("forked facility=%s batch=%s: see `fstore status`", batch.facility, batch.batch)

    def _mark(self, keys: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Decide anew which row of a file stands in answers, for the source keys that a statement finds."""
        self._connection.execute(keys, parameters)
        if self._connection.execute("SELECT 1 FROM keys LIMIT 1").fetchall():
            self._connection.execute(_MARK)

    def _look_for_damage(self) -> None:
        """Let rows of damaged batches stand behind others of the same file, and repaired ones no more."""
        found = packs.damaged(self._layout)
        if found == self._damaged:
            return
        with _translated(), self._transaction():
            self._write_damaged(found)
            self._mark(_KEYS_OF_BATCHES, {"batches": sorted(found ^ self._damaged)})
        self._damaged = found

    def _write_damaged(self, found: frozenset[BatchId]) -> None:
        self._connection.execute("DELETE FROM damaged")
        self._connection.execute("INSERT INTO damaged SELECT unnest(?::VARCHAR[])", [sorted(found)])

    def _read_damaged(self) -> frozenset[BatchId]:
        with _translated():
            rows = self._connection.execute("SELECT batch_id FROM damaged").fetchall()
        return frozenset(names.batch_id(batch) for (batch,) in rows)

    def _load(self, batch: Batch) -> None:
        """The rows of a batch into `fresh`, and its line into `batches`."""
        folder = self._layout.manifest(*batch)
        statement, _ = batches.statement(self._layout, batch)
        front = [(folder / name).stat().st_size for name in batches.FILES[:3]]
        head = sum(ustar.BLOCK + size + len(ustar.padding(size)) for size in front)
        self._connection.register("incoming", _with_offsets(_rows(folder / TABLE, batch), head))
        try:
            self._connection.execute(_FRESH, {"batch": batch.batch})
        finally:
            with suppress(duckdb.Error):  # in a transaction that failed
                self._connection.unregister("incoming")
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                batch.batch, statement.facility, statement.sequence, statement.previous,
                statement.objects, statement.bytes, statement.created,
            ],
        )  # fmt: skip

    def rebuild(self) -> int:
        """Drop everything and follow every committed batch; returns their number."""
        self._connection.close()
        drop(self._layout)
        self._connection = self._open()
        count = 0
        with _translated():
            for ddl in _TABLES:
                self._connection.execute(ddl)
            for batch in batches.listing(self._layout):
                with self._transaction():
                    self._load(batch)
                    self._connection.execute("INSERT INTO instances SELECT * FROM fresh")
                count += 1
            self._damaged = packs.damaged(self._layout)
            self._write_damaged(self._damaged)
            self._mark(_KEYS_TWICE)
            self._connection.execute(_CONFLICT_ALL)
            self._connection.execute("CREATE TABLE version AS SELECT ? AS value", [VERSION])
            self._connection.execute("CHECKPOINT")
        return count

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    # -- reading ---------------------------------------------------------------------------------

    @contextmanager
    def _limited(self) -> Iterator[None]:
        self._look_for_damage()
        timer = threading.Timer(self._settings.search_seconds, self._connection.interrupt)
        timer.start()
        try:
            with _translated():
                yield
        finally:
            timer.cancel()
            timer.join()  # it must not end somebody else's query

    def table(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """The rows of a query as an Arrow table; raises `Refused` when it takes too long."""
        with self._limited():
            return self._connection.sql(sql, params=dict(parameters)).to_arrow_table()

    def row(self, sql: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The one row of a query; raises `Refused` when it takes too long."""
        with self._limited():
            found: tuple[Any, ...] = self._connection.execute(sql, dict(parameters)).fetchall()[0]
        return found

    def held(self, facility: FacilityName, digests: Sequence[str]) -> dict[str, BatchId]:
        """Which of these source digests a facility has stored in an undamaged batch, and in which."""
        with self._limited():
            rows = self._connection.execute(_HELD, {"wanted": list(digests), "facility": facility}).fetchall()
        return {digest: names.batch_id(batch) for digest, batch in rows}

    def head(self, facility: FacilityName) -> tuple[int, str]:
        """A facility's highest sequence number and that batch's id; 0 and empty without any."""
        sequence, batch = self.row(_HEAD, {"facility": facility})
        return int(sequence), str(batch)

    def places(self, objects: Iterable[ObjectId], owners: Sequence[FacilityName]) -> list[Place]:
        """Where these objects lie, as far as `owners` stored them and a pack is there; in that order."""
        wanted = list(dict.fromkeys(objects))
        with self._limited():
            rows = self._connection.execute(_PLACES, {"wanted": wanted, "owners": list(owners)}).fetchall()
        found = {name: Place(names.object_id(name), names.batch_id(at[0]), *at[1:]) for name, at in rows}
        gone = {b for b in {at.batch for at in found.values()} if packs.find(self._layout, b) is None}
        return [found[name] for name in wanted if name in found and found[name].batch not in gone]

    def totals(self) -> dict[FacilityName, tuple[int, int]]:
        """Batches and rows of each facility."""
        with _translated():
            rows = self._connection.execute(_TOTALS).fetchall()
        return {names.facility_name(name): (count, instances) for name, count, instances in rows}

    def rows_of_batches(self) -> dict[BatchId, int]:
        """How many rows each batch has in `instances`; a batch without any counts 0."""
        with _translated():
            rows = self._connection.execute(_ROWS_OF_BATCHES).fetchall()
        return {names.batch_id(name): count for name, count in rows}


def _rows(path: Path, batch: Batch) -> pa.Table:
    try:
        return manifest.from_parquet(path.read_bytes(), facility=batch.facility)
    except (FormatError, FileNotFoundError) as error:
        raise CatalogError(f"the manifest of batch {batch.batch} cannot be read") from error


def _with_offsets(rows: pa.Table, head: int) -> pa.Table:
    """Where each object begins in its pack: a member is a header block, its bytes, and zeros to the next."""
    blocks = pc.divide(pc.add(rows["object_bytes"], _B - 1), _B)
    room = pc.multiply(pc.add(blocks, 1), _B)
    return rows.append_column("object_offset", pc.add(pc.subtract(pc.cumulative_sum(room), room), head + _B))


def drop(layout: Layout) -> None:
    """Remove the catalog's files, whatever state they are in."""
    for path in layout.catalog.parent.iterdir():
        path.unlink()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException:
        raise Refused("too-slow", "the search took longer than this store allows: narrow it") from None
    except duckdb.Error as error:
        # DuckDB's text may quote a value of a row: the first words of its class are enough for an operator.
        raise CatalogError(f"the catalog failed ({type(error).__name__})") from error
