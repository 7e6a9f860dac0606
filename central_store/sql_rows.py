"""The rows of one facility as a DuckDB file of its own: what SQL from outside is run on.

    views/<facility>.duckdb   rows    every column of `schemas.columns`, batch_id, duplicate
                              studies series instances batches receipts    the views of `schemas.views`
    views/<facility>.state    which batches it was made of; written last
    views/<facility>.lock     shared while somebody reads, exclusive while it is brought up to date

Guarantees: a file holds rows of its facility and no others, so whoever may read all of them may read the
file: nothing in it has to be hidden. The views give what the catalog answers: the same duplicates left out,
the same conflicts, the same roll-ups. It is derived from the manifests alone, by their strict reader, and
follows them: a batch costs its own rows, the studies they touch, and one look at two key columns of its
facility's rows. Whatever is wrong with a file, it is made again from nothing.

Leaves to others: who may read it (`central_store.access`), running statements (`central_store.sql_child`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import duckdb

from central_store import batches, packs
from central_store.batches import Batch
from central_store.layout import Layout
from schemas import columns, manifest, names, views
from schemas.columns import Level
from schemas.container import TABLE
from schemas.errors import Damaged, FormatError
from schemas.messages import Receipt
from schemas.names import BatchId, FacilityName
from schemas.transit import durable

_KEYS: dict[Level, str] = {"study": "study_uid", "series": "study_uid, series_uid"}
_NAMES = ", ".join(f'"{column.name}"' for column in columns.COLUMNS)

# Everything put together here comes from the column tables; values are parameters.


def _ddl(view: str, table: str) -> str:
    lines = ", ".join(f'"{column.name}" {column.type}' for column in views.VIEWS[view])
    return f"CREATE TABLE {table} ({lines})"


def _roll_up(level: Level, view: str) -> str:
    """The rows of the touched studies at a level, as `central_store.query` makes them."""
    made = {}
    for column, way in columns.at_level(level):
        name = f'"{column.name}"'
        made[column.name] = {
            "key": f"any_value({name})",
            "first": f"arg_min({name}, object_sha256)",
            "min": f"min({name})",
            "max": f"max({name})",
            "sum": f"sum({name})::BIGINT",
            "list": f"coalesce(list_sort(list(DISTINCT {name}) FILTER ({name} IS NOT NULL)), [])",
        }[way]
    for column in views.token_columns():
        made[column.name] = f'list_sort(list_distinct(flatten(list("{column.name}"))))'
    made |= {"n_series": "count(DISTINCT series_uid)", "n_instances": "count(*)"}
    shown = ", ".join(f'{made[column.name]} AS "{column.name}"' for column in views.VIEWS[view])
    return (
        f"INSERT INTO {view} SELECT {shown} FROM rows "
        f"WHERE NOT duplicate AND {_TOUCHED} GROUP BY {_KEYS[level]}"
    )


_TOUCHED = "coalesce(study_uid, '') IN (SELECT study_uid FROM touched)"
_INSTANCES = f"""CREATE VIEW instances AS
SELECT {_NAMES}, batch_id, sop_instance_uid IN (FROM conflicts) AS conflict FROM rows WHERE NOT duplicate"""
_TABLES = (
    columns.duckdb_ddl("rows", "batch_id VARCHAR NOT NULL", "duplicate BOOLEAN NOT NULL"),
    *(_ddl(view, view) for view in ("studies", "series", "batches", "receipts")),
    "CREATE TABLE conflicts (sop_instance_uid VARCHAR)",
    _INSTANCES,
)
_DUPLICATES = """UPDATE rows SET duplicate = NOT duplicate WHERE rowid IN (
    SELECT number FROM (
        SELECT r.rowid AS number, r.duplicate AS was, row_number() OVER (
            PARTITION BY r.source_digest
            ORDER BY list_contains($damaged::VARCHAR[], r.batch_id), b.sequence, r.batch_id, r.object_sha256
        ) > 1 AS now
        FROM rows r JOIN batches b ON b.batch_id = r.batch_id
        WHERE r.source_digest IN (SELECT source_digest FROM again)
    ) WHERE was <> now)"""
_AGAIN = """CREATE OR REPLACE TEMP TABLE again AS
SELECT source_digest FROM rows GROUP BY ALL HAVING count(*) > 1"""
_CONFLICTS = """INSERT INTO conflicts SELECT sop_instance_uid FROM rows
GROUP BY ALL HAVING count(DISTINCT source_digest) > 1"""
# A study that is touched, and every study of a file that was sent twice: either of its rows may stand.
_TOUCH = """CREATE OR REPLACE TEMP TABLE touched AS
SELECT DISTINCT coalesce(study_uid, '') AS study_uid FROM rows
WHERE batch_id IN (SELECT unnest($batches::VARCHAR[]))
OR source_digest IN (SELECT source_digest FROM again)"""
_ROLL_UPS = tuple(
    sql
    for level, view in (("study", "studies"), ("series", "series"))
    for sql in (f"DELETE FROM {view} WHERE {_TOUCHED}", _roll_up(cast(Level, level), view))
)
VERSION = hashlib.sha256("\n".join((*_TABLES, *_ROLL_UPS, duckdb.__version__)).encode()).hexdigest()
"""Of the shape of the files: another one makes them anew."""


@contextmanager
def reading(layout: Layout, owners: Sequence[FacilityName], memory_mb: int) -> Iterator[list[Path]]:
    """The files of these facilities, up to date, and nobody writes in them while the block runs.

    Args:
        layout: the store.
        owners: sorted, so that two who wait never wait for each other.
        memory_mb: DuckDB may use to bring one up to date.

    Raises:
        Damaged: a manifest cannot be read.
        OSError: the disk failed.
    """
    durable.make_dirs(layout.views)
    locks: list[int] = []
    try:
        for owner in owners:
            locks.append(_locked(layout, owner, memory_mb))
        yield [layout.view(owner) for owner in owners]
    finally:
        for lock in locks:
            os.close(lock)


def _locked(layout: Layout, owner: FacilityName, memory_mb: int) -> int:
    path = layout.views / f"{owner}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _current(layout, owner, *_inventory(layout, owner)):
            fcntl.flock(lock, fcntl.LOCK_EX)
            _follow(layout, owner, memory_mb)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _inventory(layout: Layout, owner: FacilityName) -> tuple[frozenset[BatchId], frozenset[BatchId]]:
    """A facility's committed batches, and which of them are damaged."""
    found = set()
    with suppress(FileNotFoundError):
        for entry in (layout.manifests / owner).iterdir():
            with suppress(FormatError):
                found.add(names.batch_id(entry.name))
    return frozenset(found), packs.damaged(layout) & found


def _state(found: frozenset[BatchId], damaged: frozenset[BatchId]) -> bytes:
    lines = [VERSION, *sorted(found), "damaged", *sorted(damaged)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest().encode()


def _current(
    layout: Layout, owner: FacilityName, found: frozenset[BatchId], damaged: frozenset[BatchId]
) -> bool:
    try:
        return layout.view_state(owner).read_bytes() == _state(found, damaged)
    except FileNotFoundError:
        return False


def _follow(layout: Layout, owner: FacilityName, memory_mb: int) -> None:
    found, damaged = _inventory(layout, owner)
    if _current(layout, owner, found, damaged):
        return  # somebody else did it while we waited
    try:
        if not _update(layout, owner, found, damaged, memory_mb):
            raise duckdb.Error("of another shape")
    except duckdb.Error:
        for path in layout.views.glob(f"{owner}.duckdb*"):
            path.unlink()
        try:
            _update(layout, owner, found, damaged, memory_mb)
        except duckdb.Error as error:
            raise Damaged(f"the rows for SQL cannot be made ({type(error).__name__})") from error
    durable.publish(layout.view_state(owner), _state(found, damaged), replace=True, lasting=False)


def _update(
    layout: Layout,
    owner: FacilityName,
    found: frozenset[BatchId],
    damaged: frozenset[BatchId],
    memory_mb: int,
) -> bool:
    """Bring a file up to date, or make it; returns False for one that cannot be."""
    path = layout.view(owner)
    config: dict[str, Any] = {
        "memory_limit": f"{memory_mb}MB",
        "threads": 1,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "temp_directory": str(layout.staging / "views"),
    }
    fresh = not path.exists()
    with duckdb.connect(str(path), config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        if fresh:
            for ddl in _TABLES:
                connection.execute(ddl)
            connection.execute("CREATE TABLE version AS SELECT ? AS value", [VERSION])
        if connection.execute("SELECT value FROM version").fetchall() != [(VERSION,)]:
            return False
        have = {batch for (batch,) in connection.execute("SELECT batch_id FROM batches").fetchall()}
        if not have <= found:
            return False  # something was taken away: none of it may be left
        connection.execute("BEGIN")
        for batch in sorted(found - have):
            _add(connection, layout, Batch(owner, batch))
        for sql in (_AGAIN, "DELETE FROM conflicts", _CONFLICTS):
            connection.execute(sql)
        connection.execute(_TOUCH, {"batches": sorted(found - have)})
        connection.execute(_DUPLICATES, {"damaged": sorted(damaged)})
        for sql in _ROLL_UPS:
            connection.execute(sql)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    return True


def _add(connection: duckdb.DuckDBPyConnection, layout: Layout, batch: Batch) -> None:
    try:
        data = (layout.manifest(*batch) / TABLE).read_bytes()
        rows = manifest.from_parquet(data, facility=batch.facility)
    except (FormatError, FileNotFoundError) as error:
        raise Damaged(f"the manifest of batch {batch.batch} cannot be read") from error
    connection.register("incoming", rows)
    connection.execute(f"INSERT INTO rows SELECT {_NAMES}, ?, false FROM incoming", [batch.batch])
    connection.unregister("incoming")
    said, _ = batches.statement(layout, batch)
    connection.execute(
        "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)",
        [batch.batch, batch.facility, said.sequence, said.previous, said.objects, said.bytes, said.created],
    )
    receipt = cast(Receipt, batches.receipt(layout, batch).message)
    connection.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?)",
        [batch.batch, batch.facility, receipt.sequence, receipt.store, receipt.objects, receipt.bytes,
         receipt.stored],
    )  # fmt: skip
