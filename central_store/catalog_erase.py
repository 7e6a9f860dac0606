"""The rows of an erased batch leave the catalog's tables.

Guarantees: afterwards everything is as if its rows had never come, except for its line in `batches` and the
numbers of its rows, which are not given again: published files are named by them. What it costs follows the
batch, and one look at the columns of parts.

Leaves to others: the transaction around it, which row of a file stands in answers now
(`central_store.catalog`); what DuckDB's files still hold of it (`central_store.purge`).
"""

from __future__ import annotations

import duckdb

from central_store import catalog_tables as tables
from central_store.batches import Batch
from central_store.catalog_load import add_line, column
from central_store.layout import Layout
from central_store.lookups import Lookups


def erase(
    connection: duckdb.DuckDBPyConnection, lookups: Lookups, layout: Layout, batch: Batch
) -> tuple[list[str], list[int]]:
    """Take a batch's rows out.

    Returns:
        The source digests of its files, which others may stand for now; studies that are not what they were.

    Raises:
        duckdb.Error: the database failed.
    """
    execute = connection.execute
    if not execute(tables.SEEN, [batch.batch]).fetchall():
        add_line(connection, layout, batch)
    named = {"batch": batch.batch}
    keys = execute(tables.KEYS_OF_BATCH, named).fetchall()
    for statement in tables.ERASE:
        execute(statement, named if "$batch" in statement else None)
    for statements in tables.NEW_NUMBERS.values():
        for statement in statements:
            execute(statement)
    lookups.add(connection.sql(tables.NEW_KEYS).to_arrow_table())
    uids = [uid for _, uid in keys]
    execute(tables.NO_CONFLICTS, {"facility": batch.facility, "uids": uids})
    numbers = lookups.find("sop_instance_uid", uids, [batch.facility])
    column(connection, tables.CONFLICT, {"numbers": numbers, "facility": batch.facility})
    execute(tables.ADD_ERASED, [batch.batch])
    return [digest for digest, _ in keys], column(connection, tables.RENEWED)
