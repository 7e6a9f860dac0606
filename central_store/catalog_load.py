"""The rows of one batch into the catalog's tables.

Guarantees: rows come from the strict reader of manifests, never from DuckDB's own, which may fail, or say
something else, over a footer made for that. What it costs follows the batch, not the archive.

Leaves to others: the transaction around it, and files that were sent again (`central_store.catalog`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from central_store import batches, tombstones
from central_store import catalog_tables as tables
from central_store.batches import Batch
from central_store.bundling import Span
from central_store.catalog_file import CatalogError
from central_store.layout import Layout
from central_store.lookups import Lookups
from schemas import manifest, ustar
from schemas.container import TABLE
from schemas.errors import FormatError

_B = ustar.BLOCK


def load(connection: duckdb.DuckDBPyConnection, lookups: Lookups, layout: Layout, batch: Batch) -> Span:
    """Add a committed batch: its objects, its parts, their keys, and its line into `batches`.

    The temporary tables `fresh` and `fresh_parts` hold its rows until the next one.

    Returns:
        The numbers of its first and its last object.

    Raises:
        CatalogError: its manifest cannot be read.
        duckdb.Error: the database failed.
    """
    execute = connection.execute
    folder = layout.manifest(*batch)
    front = [(folder / name).stat().st_size for name in batches.FILES[:3]]
    head = sum(_B + size + len(ustar.padding(size)) for size in front)
    rows = _with_offsets(_rows(folder / TABLE, batch), head)
    (first,) = column(connection, tables.NEXT)
    connection.register("incoming", rows)
    try:
        execute(tables.FRESH, {"first": first})
    finally:
        with suppress(duckdb.Error):  # in a transaction that failed
            connection.unregister("incoming")
    execute(tables.FRESH_PARTS)
    for kind, (values, update) in tables.ENTITIES.items():
        if found := lookups.find(kind, column(connection, values)):
            execute(update, {"found": found})
    execute(tables.ADD_OBJECTS)
    execute(tables.ADD_PARTS, {"batch": batch.batch})
    lookups.add(connection.sql(tables.KEYS).to_arrow_table())
    add_line(connection, layout, batch)
    execute(tables.ADD_SPAN, [batch.batch, first, len(rows)])
    return first, first + len(rows) - 1


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
