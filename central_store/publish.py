"""The catalog as others may read it: one database file, swapped in whole, with views that stay.

    catalog/published.duckdb        mode 0444; the views of `VIEWS`, the tables they stand on, and `snapshot`
    catalog/objects-*.parquet       the rows of objects, by the order they came; immutable

Order of a publication: object rows that are new go into a further Parquet file; `TIER` files of about one
size become one; the small tables are copied, and views over an explicit list of files are made, in a new
database file; it takes the place of the old one by a rename.

Guarantees: everything in one file is of one moment of the catalog. Who opened a file keeps it: it is not
touched again, and a Parquet file that no view names any more stays for `GRACE`. Only rows of erased batches
go: a file without them takes the place and name of each that has some. Paths in views are absolute, so it
opens from any folder. The catalog goes on meanwhile: reading happens beside it, in one transaction.

A publication that fails is a line in the log, and what was published before stays.

Leaves to others: when (`central_store.service`). A rebuild of the catalog removes all of it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from central_store.catalog_file import translated
from central_store.catalog_tables import FOLDED, OWN, SHARED
from central_store.layout import Layout
from schemas import columns, query
from schemas.errors import Damaged
from schemas.transit import durable

log = logging.getLogger("central_store")

GRACE = 86_400.0
"""Seconds that a file stays after the last view named it: no reader keeps a snapshot open for longer."""
TIER = 8
_ROWS = 1 << 16
_COPIED: dict[str, str] = {
    "parts": f"SELECT * EXCLUDE (packed, {', '.join(FOLDED)}) FROM parts",  # noqa: S608  # names of ours
    "batches": """SELECT *, batch_id IN (SELECT batch_id FROM damaged) AS damaged,
    batch_id IN (SELECT batch_id FROM erased) AS erased FROM batches""",
    "conflicts": "FROM conflicts",
    "duplicates": "SELECT number FROM objects WHERE duplicate",
}
_OWN = ", ".join(f'"{column.name}"' for column in OWN)
_OBJECTS = f"SELECT number, part, object_offset, {_OWN} FROM objects WHERE number BETWEEN $low AND $high"  # noqa: S608
_COUNT = "SELECT count(*) FROM objects WHERE number BETWEEN $low AND $high"
_NAME = re.compile(r"objects-(\d+)-(\d+)\.parquet", re.ASCII)
_INSTANCES = ", ".join(f'{"p" if c in SHARED else "o"}."{c.name}"' for c in columns.COLUMNS)

VIEWS: dict[str, str] = {
    "studies": query.rollup("study"),
    "series": query.rollup("series"),
    "instances": f"""SELECT {_INSTANCES}, p.batch_id, o.object_offset,
    o.number IN (SELECT number FROM base.duplicates) AS duplicate,
    (p.facility, o.sop_instance_uid) IN (SELECT (facility, sop_instance_uid) FROM base.conflicts) AS conflict
FROM read_parquet({{files}}) o JOIN base.parts p ON p.part = o.part""",  # noqa: S608
    "batches": "SELECT * FROM base.batches",
    "receipts": """SELECT facility, sequence, batch_id, objects, bytes, stored
FROM base.batches WHERE stored IS NOT NULL""",
    "conflicts": "SELECT * FROM base.conflicts",
}
"""The views, by name; `{files}` is the list of Parquet files."""


def publish(cursor: duckdb.DuckDBPyConnection, layout: Layout, now: datetime) -> None:
    """Publish the catalog as it is.

    Args:
        cursor: one of the catalog's connection, used by nobody else.
        layout: the store.
        now: the time that stands in the snapshot, in UTC.

    Raises:
        OSError, duckdb.Error: what was published before stays.
    """
    cursor.execute("BEGIN")
    try:
        files = _files(cursor, layout)
        stale = [path for path in _present(layout) if path not in files and not _whole(cursor, path)]
        part = layout.published.with_suffix(".part")
        part.unlink(missing_ok=True)
        _database(cursor, part, files, now)
    finally:
        cursor.execute("ROLLBACK")
    part.chmod(0o444)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    durable.rename(part, layout.published)
    _retire(layout, files, stale, now.timestamp())


def _database(cursor: duckdb.DuckDBPyConnection, path: Path, files: Sequence[Path], now: datetime) -> None:
    with duckdb.connect(str(path), config={"memory_limit": "128MB", "threads": 1}) as made:
        made.execute("SET TimeZone = 'UTC'")
        made.execute("CREATE SCHEMA base")
        for name, sql in _COPIED.items():
            made.register("incoming", cursor.sql(sql).to_arrow_reader(_ROWS))
            made.execute(f"CREATE TABLE base.{name} AS FROM incoming")
            made.unregister("incoming")
        listed = "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in files) + "]"
        for name, sql in VIEWS.items():
            made.execute(f"CREATE VIEW {name} AS {sql.replace('{files}', listed)}")
        made.execute(
            """CREATE TABLE snapshot AS SELECT $1::TIMESTAMPTZ AS taken,
            (SELECT count(*) FROM base.batches) AS batches,
            (SELECT coalesce(sum(objects), 0)::BIGINT FROM base.batches) AS objects, $2::INTEGER AS files""",
            [now.isoformat(), len(files)],
        )


def _files(cursor: duckdb.DuckDBPyConnection, layout: Layout) -> list[Path]:
    """The Parquet files that hold all object rows, each row once; what is missing of them is written."""
    (last,) = cursor.execute("SELECT coalesce(max(first + rows), 1) - 1 FROM spans").fetchall()[0]
    spans, at = [], 1
    for low, high in _chain(layout):
        spans.append((low, high))
        at = high + 1
    if at <= last or not spans:
        spans.append((at, last))
        while len(spans) >= TIER and _alike(spans[-TIER:]):
            spans[-TIER:] = [(spans[-TIER][0], spans[-1][1])]
    for low, high in spans:
        path = _path(layout, low, high)
        if not (path.exists() and _whole(cursor, path)):
            rows = cursor.sql(_OBJECTS, params={"low": low, "high": high}).to_arrow_reader(_ROWS)
            durable.publish(path, lambda sink, rows=rows: _write(sink, rows), replace=True)  # type: ignore[misc]
    return [_path(layout, low, high) for low, high in spans]


def _whole(cursor: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether a file has as many rows as there are: fewer are there when a batch was erased."""
    if not cursor.execute("SELECT 1 FROM erased LIMIT 1").fetchall():
        return True
    low, high = _span(path)
    ((rows,),) = cursor.execute(_COUNT, {"low": low, "high": high}).fetchall()
    try:
        return bool(pq.read_metadata(path).num_rows == rows)
    except (OSError, pa.ArrowException):  # it is written anew
        return False


def _alike(spans: Sequence[tuple[int, int]]) -> bool:
    sizes = [high - low + 1 for low, high in spans]
    return max(sizes) <= TIER * max(1, min(sizes))


def _write(sink: object, rows: pa.RecordBatchReader) -> None:
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(batch)


def _path(layout: Layout, low: int, high: int) -> Path:
    return layout.catalog.parent.resolve() / f"objects-{low}-{high}.parquet"


def _present(layout: Layout) -> list[Path]:
    paths = layout.catalog.parent.resolve().glob("objects-*.parquet")
    return [path for path in paths if _NAME.fullmatch(path.name)]


def _span(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None  # noqa: S101  # of `_path` or `_present`
    return int(match[1]), int(match[2])


def _chain(layout: Layout) -> Iterator[tuple[int, int]]:
    """The files that are there, the longest first, as far as they follow each other from the beginning."""
    found: dict[int, int] = {}
    for low, high in map(_span, _present(layout)):
        found[low] = max(high, found.get(low, high))
    at = 1
    while at in found and found[at] >= at:
        yield at, found[at]
        at = found[at] + 1


def _retire(layout: Layout, files: Sequence[Path], stale: Sequence[Path], now: float) -> None:
    """Remove files that no view has named for `GRACE`, as their time says, or that hold erased rows."""
    for path in files:
        os.utime(path, (now, now))
    for path in _present(layout):
        if path not in files and (path in stale or path.stat().st_mtime < now - GRACE):
            path.unlink()


class Publishing:
    """The publications of one open catalog, each in a thread beside other work, one at a time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._thread: threading.Thread | None = None

    def begin(self, connection: duckdb.DuckDBPyConnection, now: datetime, *, wait: bool) -> bool:
        """Begin one; nothing if one is going on.

        Args:
            connection: the catalog's.
            now: the time that stands in it, in UTC.
            wait: until it is done, whichever it is.

        Returns:
            Whether it began now: all that is in the catalog now will be in it.
        """
        begun = self._thread is None or not self._thread.is_alive()
        if begun:
            self._thread = threading.Thread(
                target=self._publish, args=(connection.cursor(), now), name="publish"
            )
            self._thread.start()
        if wait:
            self.end()
        return begun

    def _publish(self, cursor: duckdb.DuckDBPyConnection, now: datetime) -> None:
        try:
            with cursor, translated():
                publish(cursor, self._layout, now)
        except (OSError, Damaged) as error:
            log.error("the catalog was not published: %s", getattr(error, "strerror", None) or error)

    def end(self) -> None:
        """Wait for what is going on."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
