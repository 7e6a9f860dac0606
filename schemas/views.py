"""The views that SQL from outside may read: their names and columns, from `schemas.columns`.

    studies  series  instances    rows of images, as `fsync query` answers them at each level, and the tokens
    batches                       what was sent: one row for each stored batch
    receipts                      what the store signed for it

Guarantees: the store's views, the terminal's completion and the docs have these columns in this order.

Leaves to others: filling them (`central_store.sql_rows`), who may see which rows (`central_store.access`).
"""

from __future__ import annotations

from typing import NamedTuple, cast

from schemas import columns
from schemas.columns import Level


class ViewColumn(NamedTuple):
    """A column of a view: its name, its type in DuckDB's SQL, what it means."""

    name: str
    type: str
    meaning: str


CONFLICT = "The facility sent different files of this SOP instance."

_BATCH = ViewColumn("batch_id", "VARCHAR", "SHA-256 of the batch's manifest: the batch's name.")
_SENDER = (
    ViewColumn("facility", "VARCHAR", "The facility that sent it."),
    ViewColumn("sequence", "BIGINT", "Its number in the facility's sequence."),
)
_SIZE = (
    ViewColumn("objects", "BIGINT", "Number of objects."),
    ViewColumn("bytes", "BIGINT", "Bytes of the objects."),
)
_WHEN = "TIMESTAMP WITH TIME ZONE"


def _of(level: Level) -> tuple[ViewColumn, ...]:
    if level == "instance":
        every = [ViewColumn(c.name, columns.duckdb_type(c), c.meaning) for c in columns.COLUMNS]
        return (*every, _BATCH, ViewColumn("conflict", "BOOLEAN", CONFLICT))
    made = []
    for column, way in columns.at_level(level):
        kind = "VARCHAR[]" if way == "list" else columns.duckdb_type(column)
        made.append(ViewColumn(column.name, kind, column.meaning))
    made += [ViewColumn(c.name, columns.duckdb_type(c), c.meaning) for c in token_columns()]
    made += [
        ViewColumn(name, "BIGINT", text)
        for name, text in columns.COUNTS.items()
        if level == "study" or name != "n_series"
    ]
    return tuple(made)


def token_columns() -> tuple[columns.Column, ...]:
    """The columns that hold tokens."""
    return tuple(column for column in columns.COLUMNS if column.search == "token")


VIEWS: dict[str, tuple[ViewColumn, ...]] = {
    **{name: _of(cast(Level, level)) for name, level in
       (("studies", "study"), ("series", "series"), ("instances", "instance"))},
    "batches": (
        _BATCH, *_SENDER, ViewColumn("previous", "VARCHAR", "The batch before it, or empty."), *_SIZE,
        ViewColumn("created", _WHEN, "When the terminal made it."),
    ),
    "receipts": (
        _BATCH, *_SENDER, ViewColumn("store", "VARCHAR", "The store that signed."), *_SIZE,
        ViewColumn("stored", _WHEN, "Since when it is durable there."),
    ),
}  # fmt: skip
"""Every view."""
