"""The rows of one batch into the catalog's tables.

Guarantees: rows come from the strict reader of manifests, never from DuckDB's own, which may fail, or say
something else, over a footer made for that. What it costs follows the batch, not the archive.

Leaves to others: the transaction around it, and files that were sent again (`central_store.catalog`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from central_store import batches, keys, tombstones
from central_store import catalog_tables as tables
from central_store.batches import Batch
from central_store.catalog_file import CatalogError
from central_store.catalog_rows import arrange
from central_store.layout import Layout
from central_store.lookups import Lookups
from schemas import manifest, ustar
from schemas.conditions import ENTITIES
from schemas.container import TABLE
from schemas.errors import FormatError

_B = ustar.BLOCK


class Loaded(NamedTuple):
    """A batch that was added."""

    parts: pa.Table
    """Its parts, as `central_store.catalog_rows.arrange` makes them."""
    keys: pa.Table
    """Its keys."""
    last: int
    """The number of its last object."""


def load(connection: duckdb.DuckDBPyConnection, lookups: Lookups, layout: Layout, batch: Batch) -> Loaded:
    """Add a committed batch: its objects, its parts, their keys, and its line into `batches`.

    Raises:
        CatalogError: its manifest cannot be read.
        duckdb.Error: the database failed.
    """
    folder = layout.manifest(*batch)
    front = [(folder / name).stat().st_size for name in batches.FILES[:3]]
    head = sum(_B + size + len(ustar.padding(size)) for size in front)
    rows = _with_offsets(_rows(folder / TABLE, batch), head)
    (first,) = column(connection, tables.NEXT)
    objects, parts = arrange(rows, first)
    parts = _as_known(connection, lookups, parts, batch)
    _insert(connection, tables.ADD_OBJECTS, objects)
    _insert(connection, tables.ADD_PARTS, parts, {"batch": batch.batch})
    found = keys.of_batch(objects, parts)
    lookups.add(found)
    add_line(connection, layout, batch)
    connection.execute(tables.ADD_SPAN, [batch.batch, first, len(rows)])
    return Loaded(parts, found, first + len(rows) - 1)


def _insert(connection: duckdb.DuckDBPyConnection, sql: str, rows: pa.Table, given: Any = None) -> None:
    connection.register("incoming", rows)
    try:
        connection.execute(sql, given)
    finally:
        with suppress(duckdb.Error):  # in a transaction that failed
            connection.unregister("incoming")


def _as_known(
    connection: duckdb.DuckDBPyConnection, lookups: Lookups, parts: pa.Table, batch: Batch
) -> pa.Table:
    """The parts with the numbers of studies and series that were there before."""
    asked = {kind: {*parts[kind].to_pylist()} for kind in ENTITIES}
    found = sorted({number for kind, uids in asked.items() for number in lookups.find(kind, [*uids])})
    if not found:
        return parts
    given = {"found": found, "facility": batch.facility}
    known: dict[tuple[str | None, ...], int] = {}
    for study_uid, series_uid, study, series in connection.execute(tables.KNOWN, given).fetchall():
        known[(study_uid,)], known[study_uid, series_uid] = study, series
    uids = list(zip(*(parts[kind].to_pylist() for kind in ENTITIES), strict=True))
    for at, number in enumerate(ENTITIES.values()):
        mine = parts[number].to_pylist()
        numbers = [known.get(uid[: at + 1], one) for uid, one in zip(uids, mine, strict=True)]
        place = parts.schema.get_field_index(number)
        parts = parts.set_column(place, number, pa.array(numbers, pa.int64()))
    return parts


def take(connection: duckdb.DuckDBPyConnection, lookups: Lookups, layout: Layout, batch: Batch) -> None:
    """Add a committed batch in a rebuild: `load` it, or of an erased one only its line."""
    if tombstones.erased(layout, batch):
        add_line(connection, layout, batch)
        connection.execute(tables.ADD_ERASED, [batch.batch])
    else:
        load(connection, lookups, layout, batch)


def add_line(connection: duckdb.DuckDBPyConnection, layout: Layout, batch: Batch) -> None:
    """Add a committed batch's line into `batches`, which is all that is left of an erased one."""
    statement, _ = batches.statement(layout, batch)
    connection.execute(
        tables.ADD_BATCH,
        [
            batch.batch, statement.facility, statement.sequence, statement.previous, statement.objects,
            statement.bytes, statement.created, batches.stored(layout, batch),
        ],
    )  # fmt: skip


def column(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Any = None) -> list[Any]:
    """The values of a query with one column."""
    return [value for (value,) in connection.execute(sql, parameters).fetchall()]


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
