"""A manifest must read in DuckDB as it reads here.

Auditors read `manifests/**` with tools of their own, all files at once: one that only our reader understands
would stop every query over the store, and one that says something else there would deceive it. Guarantees:
`check` returns only if DuckDB reads every row of the file with the very values of the table, and the file's
statistics, by which a query passes over rows, are true.

Runs in the worker processes that verify. Leaves to others: whether the values are right (`schemas.manifest`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import FormatError

_CONFIG: dict[str, Any] = {
    "memory_limit": "1GB", "threads": 1, "temp_directory": "", "autoload_known_extensions": False,
    "autoinstall_known_extensions": False, "allow_community_extensions": False,
}  # fmt: skip


def check(path: Path, table: pa.Table) -> None:
    """Compare the file with the table that was read from it.

    Args:
        path: the staged `manifest.parquet`.
        table: what `schemas.manifest` made of it.

    Raises:
        FormatError: DuckDB cannot read it, or reads something else.
    """
    at = 0
    try:
        _check_statistics(pq.read_metadata(path), table)
        with duckdb.connect(config=_CONFIG) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET allowed_paths = ?", [[str(path)]])
            connection.execute("SET enable_external_access = false")
            query = "SELECT * FROM read_parquet(?, hive_partitioning = false)"
            found: Any = connection.sql(query, params=[str(path)])
            for batch in found.to_arrow_reader(4096):
                same = pa.Table.from_batches([batch]).cast(table.schema)
                if not same.equals(table.slice(at, batch.num_rows)):
                    raise FormatError("a manifest says something else to another program")
                at += batch.num_rows
    except (duckdb.Error, pa.ArrowException, ValueError) as error:
        raise FormatError("a manifest cannot be read by another program") from error
    if at != table.num_rows:
        raise FormatError("a manifest says something else to another program")


def _check_statistics(metadata: pq.FileMetaData, table: pa.Table) -> None:
    at = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = table.slice(at, group.num_rows)
        at += group.num_rows
        for column in map(group.column, range(group.num_columns)):
            values = rows[column.path_in_schema.partition(".")[0]]
            if column.statistics is not None and not _true(column.statistics, values):
                raise FormatError("a manifest's statistics are not those of its rows")


def _true(said: Any, values: pa.ChunkedArray) -> bool:
    lists = pa.types.is_list(values.type)
    if said.has_null_count and not lists and said.null_count != values.null_count:
        return False
    if not said.has_min_max:
        return True
    least, most = pc.min_max(pc.list_flatten(values) if lists else values).as_py().values()
    return least is None or bool(said.min <= least and most <= said.max)
