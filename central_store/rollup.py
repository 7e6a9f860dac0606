"""Studies and series of many parts, put together column by column in Arrow.

What `central_store.packed` does value by value, and quicker for few, and DuckDB does in one statement with an
aggregate for each column, for which it needs ten times as long. All three give the same rows.

Leaves to others: which parts, and how many are few (`central_store.quick`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from schemas import columns
from schemas.columns import Level, Rollup

NUMBER, FIRST, COUNT = "number", "first_object", "n_instances"
"""Beside the columns of the level: what a part belongs to, its lowest object, and how many it has."""
_DAY = "day"

_ORDER: dict[Level, tuple[str, ...]] = {
    "study": ("study_uid", "facility"),
    "series": ("study_uid", "facility", "series_number", "series_uid"),
}


def heads(level: Level, where: str) -> str:
    """SQL for one row for each study or series: its number and day, and instances, bytes and parts."""
    return (
        f"SELECT {level} AS {NUMBER}, min(study_date) AS {_DAY}, sum(n_instances)::BIGINT AS instances, "  # noqa: S608
        f"sum(object_bytes)::BIGINT AS bytes, count(*) AS parts FROM parts WHERE {where} GROUP BY {level}"
    )


def page(found: pa.Table, offset: int, limit: int) -> tuple[pa.Table, int]:
    """Those that may be on a page, and how many of them come before it; newest first.

    Args:
        found: the rows of `heads`.
        offset: how many come before the page.
        limit: how many it has.

    Returns:
        All from the day of the page's first to the day of its last: what comes first within a day, other
        columns say.
    """
    days = found[_DAY].combine_chunks().cast(pa.int32()).fill_null(-(2**31))
    order = pc.array_sort_indices(days, order="descending")
    last = min(offset + limit, len(days)) - 1
    if offset > last:
        return found.slice(0, 0), 0
    newest, oldest = days[order[offset].as_py()], days[order[last].as_py()]
    within = pc.and_(pc.less_equal(days, newest), pc.greater_equal(days, oldest))
    return found.filter(within), offset - pc.sum(pc.greater(days, newest)).as_py()


def select(level: Level) -> str:
    """What is read of each part."""
    shown = dict.fromkeys([*(column.name for column, _ in columns.at_level(level)), "series_uid"])
    return ", ".join([f"{level} AS {NUMBER}", FIRST, COUNT, *(f'"{name}"' for name in shown)])


def answer(level: Level, parts: pa.Table, schema: pa.Schema) -> pa.Table:
    """One row for each study or series, in the order of answers.

    Args:
        level: of the rows.
        parts: what `select` says of each part with instances.
        schema: of the answer.
    """
    order = pc.sort_indices(parts, sort_keys=[(NUMBER, "ascending"), (FIRST, "ascending")])
    groups = _Groups(parts.take(order).combine_chunks())
    made = {column.name: _UP[way](groups, column.name) for column, way in columns.at_level(level)}
    made[COUNT] = groups.each("sum", COUNT)
    if level == "study":
        made["n_series"] = pc.list_value_length(groups.listed("series_uid"))
    found = pa.Table.from_arrays([made[each.name].cast(each.type) for each in schema], schema=schema)
    keys = [
        ("study_date", "descending", "at_end"),
        *((name, "ascending", "at_end") for name in _ORDER[level]),
    ]
    return found.take(pc.sort_indices(found, sort_keys=keys))


class _Groups:
    """Parts in order of the number they belong to, and within it of their lowest object."""

    def __init__(self, parts: pa.Table) -> None:
        self._parts = parts
        self._numbers = self._column(NUMBER)
        self._distinct = pc.unique(self._numbers)  # one for each group, and the groups in this order
        self._rows = pa.array(range(len(parts)), pa.int64())
        self._starts = pc.search_sorted(self._numbers, self._distinct)

    def _column(self, name: str) -> pa.Array:
        return self._parts[name].combine_chunks()

    def _reduced(self, way: str, values: pa.Array) -> pa.Array:
        pairs = pa.table({NUMBER: self._numbers, "value": values})
        found = pairs.group_by(NUMBER).aggregate([("value", way)])  # in any order
        return found[f"value_{way}"].take(pc.sort_indices(found[NUMBER])).combine_chunks()

    def each(self, way: str, name: str) -> pa.Array:
        """The least, most or sum of each group."""
        return self._reduced(way, self._column(name))

    def first(self, name: str) -> pa.Array:
        """The first value there is."""
        values = self._column(name)
        if not values.null_count:
            return values.take(self._starts)
        return values.take(self._reduced("min", pc.if_else(values.is_valid(), self._rows, None)))

    def listed(self, name: str) -> pa.Array:
        """The distinct values, sorted."""
        pairs = pa.table({NUMBER: self._numbers, "value": self._column(name)})
        once = pairs.filter(pairs["value"].is_valid()).group_by([NUMBER, "value"]).aggregate([])
        once = once.take(pc.sort_indices(once, sort_keys=[(NUMBER, "ascending"), ("value", "ascending")]))
        ends = pc.search_sorted(once[NUMBER].combine_chunks(), self._distinct, side="right")
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends.cast(pa.int32())])
        lists = pa.ListArray.from_arrays(offsets, once["value"].combine_chunks())
        lists.validate(full=True)  # what is wrong here would end the process where it is written
        return lists


_UP: dict[Rollup, Callable[[_Groups, str], pa.Array]] = {
    "key": _Groups.first,
    "first": _Groups.first,
    "list": _Groups.listed,
    **{way: partial(lambda way, groups, name: groups.each(way, name), way) for way in ("min", "max", "sum")},
}
"""How one value comes of many."""
