"""What a batch has of one study and modality, as one row: lists of studies read these, not all their parts.

A bundle is up to `MOST` parts of one study, from one batch, that agree in `KEY`: everything of a study that
can be searched, and the modality. A condition on these columns holds for a whole bundle or not at all, as it
does for a part, and there is about one bundle for three parts. All that an answer shows of a study is put
together in it already, and packed as a part is (`central_store.packed`).

Guarantees: an answer put together of bundles is the one that their parts give. Bundles follow from the parts
of one batch, so that adding a batch adds its own and changes none; they are made anew when which row of a
file stands in answers changes. However many parts a study has, a bundle is small.

Leaves to others: when that is (`central_store.catalog`), which bundles match (`central_store.quick`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from central_store import packed
from schemas import columns, conditions, query
from schemas.columns import Column

KEY: tuple[Column, ...] = tuple(
    c for c in columns.shared() if c.search and (c.level == "study" or c.name == "modality")
)
_NAMES = frozenset(c.name for c in KEY)
_TOKENS = frozenset(c.name for c in KEY if c.search == "token")
_FOLDED = {conditions.folded(c): f'lower("{c.name}")' for c in KEY if c.search == "text"}

MOST = 32
"""Parts of a bundle: what is read at once is bounded, whatever a facility sends."""

TABLE = f"""CREATE TABLE bundles (
    part BIGINT NOT NULL, study BIGINT NOT NULL, n_instances BIGINT NOT NULL, object_bytes BIGINT NOT NULL,
    {", ".join(f'"{c.name}" {columns.duckdb_type(c)}' for c in KEY)},
    {", ".join(f"{name} VARCHAR" for name in _FOLDED)},
    packed VARCHAR USING COMPRESSION uncompressed
)"""
"""`part` is the lowest number of its parts."""

_SHOWN = {column: way for column, way in columns.at_level("study") if column not in KEY}


def _value(column: Column) -> str:
    """What a bundle has in the place of a part's column; null where a study shows nothing of it."""
    if column in KEY:
        return f'"{column.name}"'
    way = "list" if column.name == "series_uid" else _SHOWN.get(column)  # how many differ is shown
    return "NULL" if way is None else query.rolled_up(column, way)


_PACKED = packed.sql(_value, "min(first_object)", "sum(n_instances)::BIGINT")
_KEYS = ", ".join(f'"{c.name}"' for c in KEY)
_SAME = f"batch_id, study, {_KEYS}"
ADD = f"""INSERT INTO bundles BY NAME
SELECT min(part) AS part, study, sum(n_instances)::BIGINT AS n_instances,
    sum(object_bytes)::BIGINT AS object_bytes, {_KEYS},
    {", ".join(f"{value} AS {name}" for name, value in _FOLDED.items())}, {_PACKED} AS packed
FROM (
    SELECT *, (row_number() OVER (PARTITION BY {_SAME} ORDER BY part) - 1) // {MOST} AS piece
    FROM parts WHERE n_instances > 0 AND part BETWEEN $low AND $high
) hits GROUP BY {_SAME}, piece ORDER BY min(part)"""
"""Makes the bundles of parts with these numbers: all those of a batch, or of several."""
DROP = "DELETE FROM bundles WHERE part BETWEEN $low AND $high"


def hold(asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether these conditions hold for a whole bundle or not at all, and are asked of each row alone."""
    alone = (len(values) <= conditions.FEW for name, values in asked.items() if name in _TOKENS)
    return _NAMES.issuperset(asked) and all(alone)
