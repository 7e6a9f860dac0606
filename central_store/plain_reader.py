"""A manifest must read in DuckDB as it reads here.

Auditors read `manifests/**` with tools of their own, all files at once: one that only our reader understands
would stop every query over the store, and one that says something else there would deceive it. Guarantees:
`check` returns only if DuckDB reads every row of the file with the very values of the table.

Runs in the worker processes that verify. Leaves to others: whether the values are right (`schemas.manifest`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

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
