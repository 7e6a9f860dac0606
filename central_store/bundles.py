"""What a study has of one modality, as one row: lists of studies read these, and not their many parts.

A bundle is the parts of one study that agree in `KEY`: everything of a study that can be searched, and the
modality. A condition on these columns holds for a whole bundle or not at all, as it does for a part, and
there are half as many or fewer. All that an answer shows of a study is put together in it already, and
packed as a part is (`central_store.packed`).

Guarantees: an answer put together of bundles is the one that their parts give. Bundles follow from `parts`
alone: those of a study are made anew when one of its parts comes, changes or goes.

Leaves to others: when that is (`central_store.catalog`), which bundles match (`central_store.quick`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from central_store import packed
from schemas import columns, conditions
from schemas.columns import Column, Rollup

KEY: tuple[Column, ...] = tuple(
    c for c in columns.shared() if c.search and (c.level == "study" or c.name == "modality")
)
_NAMES = frozenset(c.name for c in KEY)
_TOKENS = frozenset(c.name for c in KEY if c.search == "token")
_FOLDED = {conditions.folded(c): f'lower("{c.name}")' for c in KEY if c.search == "text"}

TABLE = f"""CREATE TABLE bundles (
    study BIGINT NOT NULL, n_instances BIGINT NOT NULL, object_bytes BIGINT NOT NULL,
    {", ".join(f'"{c.name}" {columns.duckdb_type(c)}' for c in KEY)},
    {", ".join(f"{name} VARCHAR" for name in _FOLDED)},
    packed VARCHAR USING COMPRESSION uncompressed
)"""

_WAYS: dict[Rollup, str] = {
    "key": "any_value({0})",
    "first": "arg_min({0}, first_object)",
    "min": "min({0})",
    "max": "max({0})",
    "sum": "sum({0})::BIGINT",
    "list": "list_sort(list_distinct(list({0})))",
}
_SHOWN = {column: way for column, way in columns.at_level("study") if column not in KEY}


def _value(column: Column) -> str:
    """What a bundle has in the place of a part's column; null where a study shows nothing of it."""
    name = f'"{column.name}"'
    if column in KEY:
        return name
    if column.name == "series_uid":  # only how many differ is shown
        return "list_sort(list_distinct(list(series) FILTER (series_uid IS NOT NULL)))"
    return _WAYS[_SHOWN[column]].format(name) if column in _SHOWN else "NULL"


_PACKED = packed.sql(_value, "min(first_object)", "sum(n_instances)::BIGINT")
_KEYS = ", ".join(f'"{c.name}"' for c in KEY)
_ADD = f"""INSERT INTO bundles BY NAME
SELECT study, sum(n_instances)::BIGINT AS n_instances, sum(object_bytes)::BIGINT AS object_bytes, {_KEYS},
    {", ".join(f"{value} AS {name}" for name, value in _FOLDED.items())}, {_PACKED} AS packed
FROM parts WHERE n_instances > 0"""
_GROUPED = f" GROUP BY study, {_KEYS} ORDER BY study, {_KEYS}"
ADD_ALL = _ADD + _GROUPED
AGAIN: tuple[str, ...] = (
    "DELETE FROM bundles WHERE study IN (SELECT unnest($studies::BIGINT[]))",
    f"{_ADD} AND part >= $least AND study IN (SELECT unnest($studies::BIGINT[])){_GROUPED}",
)
"""Makes the bundles of some studies anew; none of their parts has a lower number than `least`."""


def hold(asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether these conditions hold for a whole bundle or not at all, and are asked of each row alone."""
    alone = (len(values) <= conditions.FEW for name, values in asked.items() if name in _TOKENS)
    return _NAMES.issuperset(asked) and all(alone)
