"""The rows of one facility as tables behind the views of `schemas.views`: SQL text. Pure.

    rows                        every column of `schemas.columns`, batch_id, duplicate
    studies series instances    what `fsync query` answers at each level, and the tokens
    batches receipts            what was sent, and what the store signed for it
    conflicts                   SOP instances of which the facility sent different files

A store keeps them for SQL from outside, a terminal for questions with the line down. Both have to answer the
same, so they are part of the agreement.

Guarantees: after the statements of `follow` the tables give what the store's catalog answers: the same
duplicates left out, the same conflicts, the same roll-ups. A batch costs its own rows, the studies they
touch, and one look at two key columns; after `drop` and `follow` nothing tells that a batch was there.

Leaves to others: files, transactions, whose rows they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, cast

from schemas import columns, views
from schemas.columns import Level
from schemas.messages import Receipt, Statement

_KEYS: dict[Level, str] = {"study": "study_uid", "series": "study_uid, series_uid"}
_NAMES = ", ".join(f'"{column.name}"' for column in columns.COLUMNS)

Step = tuple[str, dict[str, Any]]
"""A statement and its parameters."""

# Everything put together here comes from the column tables; values are parameters.


def _ddl(view: str, table: str) -> str:
    lines = ", ".join(f'"{column.name}" {column.type}' for column in views.VIEWS[view])
    return f"CREATE TABLE {table} ({lines})"


def _roll_up(level: Level, view: str) -> str:
    """The rows of the touched studies at a level, as `schemas.query` makes them."""
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
TABLES: tuple[str, ...] = (
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
_LOST = "CREATE TEMP TABLE IF NOT EXISTS lost (study_uid VARCHAR)"
# A study that is touched, and every study of a file that was sent twice: either of its rows may stand.
_TOUCH = """CREATE OR REPLACE TEMP TABLE touched AS
SELECT DISTINCT coalesce(study_uid, '') AS study_uid FROM rows
WHERE batch_id IN (SELECT unnest($batches::VARCHAR[]))
OR source_digest IN (SELECT source_digest FROM again)
UNION SELECT study_uid FROM lost"""
_ROLL_UPS = tuple(
    sql
    for level, view in (("study", "studies"), ("series", "series"))
    for sql in (f"DELETE FROM {view} WHERE {_TOUCHED}", _roll_up(cast(Level, level), view))
)
SHAPE = hashlib.sha256("\n".join((*TABLES, *_ROLL_UPS)).encode()).hexdigest()
"""Of the tables and what fills them: another one means to make them anew."""

_SHARED = ", ".join(f'"{column.name}"' for column in columns.shared())
_WAYS = {"sum": "sum({0})::BIGINT", "max": "max({0})", "min": "min({0})"}
PARTS = columns.duckdb_ddl(
    "parts",
    "n_instances BIGINT NOT NULL",
    "first_object VARCHAR NOT NULL",
    *(f'"{column.name}" {columns.duckdb_type(column)}' for column in columns.totals()),
    chosen=columns.shared(),
)
"""One more table, for searches with `schemas.query`: what objects share that share all they can."""
_PARTS = (
    f"DELETE FROM parts WHERE {_TOUCHED}",
    f"""INSERT INTO parts SELECT {_SHARED}, count(*), min(object_sha256),
{", ".join(_WAYS[column.rollup].format(f'"{column.name}"') for column in columns.totals())}
FROM rows WHERE NOT duplicate AND {_TOUCHED} GROUP BY {_SHARED}""",
)
SHAPE_WITH_PARTS = hashlib.sha256("\n".join((SHAPE, PARTS, *_PARTS)).encode()).hexdigest()

ADD_ROWS = f"INSERT INTO rows SELECT {_NAMES}, $batch, false FROM incoming"
"""The rows of a batch, from a relation `incoming` with the columns of a manifest."""

_DROPPED = "batch_id IN (SELECT unnest($batches::VARCHAR[]))"
_DROP = (
    f"""CREATE OR REPLACE TEMP TABLE gone AS SELECT DISTINCT source_digest FROM rows WHERE {_DROPPED}""",
    """INSERT INTO lost SELECT DISTINCT coalesce(study_uid, '') FROM rows
WHERE source_digest IN (SELECT source_digest FROM gone)""",
    *(f"DELETE FROM {table} WHERE {_DROPPED}" for table in ("rows", "batches", "receipts")),
    "UPDATE rows SET duplicate = false WHERE duplicate AND source_digest IN (SELECT source_digest FROM gone)",
)


def add(statement: Statement, receipt: Receipt) -> tuple[Step, ...]:
    """What puts a batch's lines into `batches` and `receipts`, beside `ADD_ROWS`."""
    said = {
        "batches": (
            statement.batch, statement.facility, statement.sequence, statement.previous, statement.objects,
            statement.bytes, statement.created,
        ),
        "receipts": (
            statement.batch, statement.facility, receipt.sequence, receipt.store, receipt.objects,
            receipt.bytes, receipt.stored,
        ),
    }  # fmt: skip
    return tuple(
        (
            f"INSERT INTO {table} VALUES ({', '.join(f'$v{n}' for n in range(len(values)))})",
            {f"v{n}": value for n, value in enumerate(values)},
        )
        for table, values in said.items()
    )


def drop(batches: Collection[str]) -> tuple[Step, ...]:
    """What takes batches out, before `follow`."""
    parameters = {"batches": sorted(batches)}
    return ((_LOST, {}), *((sql, parameters if "$batches" in sql else {}) for sql in _DROP))


def follow(batches: Sequence[str], damaged: Collection[str], *, parts: bool = False) -> tuple[Step, ...]:
    """What brings everything else up to date after rows of these batches were added.

    Args:
        batches: those added.
        damaged: all of the facility whose packs are damaged: their rows stand behind others of the same file.
        parts: there is a table of parts.
    """
    return (
        (_LOST, {}),
        (_AGAIN, {}),
        ("DELETE FROM conflicts", {}),
        (_CONFLICTS, {}),
        (_TOUCH, {"batches": list(batches)}),
        (_DUPLICATES, {"damaged": sorted(damaged)}),
        *((sql, {}) for sql in (*_ROLL_UPS, *(_PARTS if parts else ()))),
    )
