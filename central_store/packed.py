"""A part as one text, and answers put together of these: what makes a search quick.

DuckDB spends more time on a statement with thirty columns than on finding the few parts it is about. So each
part has, beside its columns, all of them in one: a JSON array in the order of `COLUMNS`. A search that finds
few parts reads only that and groups the parts here; of many, DuckDB does it (`schemas.query`). Both
ways give the same rows, in the same order.

Leaves to others: which parts match, and how many are few (`central_store.quick`).
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress
from operator import itemgetter, ne
from typing import Any

import pyarrow as pa

from schemas import columns
from schemas.columns import Column, Level, Rollup
from schemas.conditions import Check
from schemas.query import CONFLICT

COLUMNS: tuple[Column, ...] = tuple(c for c in columns.COLUMNS if c in columns.shared() or c.rollup)
"""What a part has of its own, and what it sums up."""
FIRST, COUNT = len(COLUMNS), len(COLUMNS) + 1
"""Where the part's lowest object and the number of its objects stand."""
_AT = {column.name: at for at, column in enumerate(COLUMNS)}
_WAYS: dict[pa.DataType, str] = {
    pa.binary(): "to_base64({0})",
    pa.date32(): "{0} - DATE '1970-01-01'",
    pa.time64("us"): "epoch_us({0})",
    pa.timestamp("us", tz="UTC"): "epoch_us({0})",
}

Part = list[Any]


def sql() -> str:
    """The expression over a part's columns."""
    shown = (_WAYS.get(column.arrow, "{0}").format(f'"{column.name}"') for column in COLUMNS)
    return f"json_array({', '.join(shown)}, first_object, n_instances)::VARCHAR"


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of parts as an array."""
    if kind == pa.binary():
        bytes_of = {value: None if value is None else b64decode(value) for value in {*values}}
        values = [bytes_of[value] for value in values]
    return pa.array(values, kind)


def chosen(parts: Sequence[tuple[int, str]], checks: Mapping[str, Check]) -> list[tuple[int, Part]]:
    """Of numbered parts those with instances whose values pass; a check's name is its column's.

    Values of a part are as `array` makes arrays of them.
    """
    tests = [(_AT[name], check) for name, check in checks.items()]
    read: list[Part] = json.loads(f"[{','.join(text for _, text in parts)}]")  # at once: a third quicker
    return [
        (number, each)
        for (number, _), each in zip(parts, read, strict=True)
        if each[COUNT] and all(test(each[at]) for at, test in tests)
    ]


def totals(parts: Iterable[Part]) -> tuple[int, int]:
    """How many instances they have, and how many bytes."""
    instances = size = 0
    for each in parts:
        instances, size = instances + each[COUNT], size + each[_AT["object_bytes"]]
    return instances, size


def grouped(parts: Iterable[tuple[int, Part]]) -> dict[int, list[Part]]:
    """Parts by the number that stands with each; in each group that with the lowest object first."""
    groups: dict[int, list[Part]] = {}
    for number, each in parts:
        groups.setdefault(number, []).append(each)
    for group in groups.values():
        if len(group) > 1:
            group.sort(key=itemgetter(FIRST))
    return groups


def newest_first(level: Level, groups: Mapping[int, list[Part]]) -> list[list[Part]]:
    """Studies or series in the order of answers."""
    names = ["study_uid", "facility", *(["series_number", "series_uid"] if level == "series" else [])]
    date, places = _AT["study_date"], [_AT[name] for name in names]

    def rank(group: list[Part]) -> tuple[Any, ...]:
        day, first = _least([each[date] for each in group]), group[0]
        values = (_one([each[at] for each in group]) if first[at] is None else first[at] for at in places)
        return (day is None, -(day or 0), *((value is None, value or 0) for value in values))

    return sorted(groups.values(), key=rank)


def answer(level: Level, groups: Sequence[list[Part]], schema: pa.Schema) -> pa.Table:
    """One row for each study or series."""
    shown = columns.at_level(level)
    pick = itemgetter(*(_AT[column.name] for column, _ in shown), _AT["series_uid"], COUNT)
    ups = [*(UP[way] for _, way in shown), _listed, sum]
    sums = [at for at, up in enumerate(ups) if up is sum]
    rows = [_merged([*map(pick, group)], ups, sums) for group in groups]
    turned = list(zip(*rows, strict=True)) or [()] * len(ups)
    made = {
        column.name: lists(values) if way == "list" else list(values)
        for (column, way), values in zip(shown, turned[:-2], strict=True)
    }
    made["n_series"] = [len(each) for each in lists(turned[-2])]
    made["n_instances"] = list(turned[-1])
    return pa.Table.from_arrays([array(made[each.name], each.type) for each in schema], schema=schema)


def _merged(
    parts: Sequence[tuple[Any, ...]], ups: Sequence[Callable[[Sequence[Any]], Any]], sums: Sequence[int]
) -> Sequence[Any]:
    """One row of several; most columns of a study's parts are the same, and so is what comes of them.

    Args:
        parts: their values.
        ups: how one value of each column comes of many.
        sums: the columns of which something else comes.
    """
    first = parts[0]
    if len(parts) == 1:  # nearly always
        return first
    differ = {*sums}
    for other in parts[1:]:
        differ.update(compress(range(len(ups)), map(ne, first, other)))
    row = list(first)
    for at in differ:
        row[at] = ups[at]([part[at] for part in parts])
    return row


def lists(values: Iterable[Any]) -> list[list[Any]]:
    """Values as lists, which some are."""
    return [value if isinstance(value, list) else [] if value is None else [value] for value in values]


def _one(values: Sequence[Any]) -> Any:
    return values[0] if values[0] is not None else next((v for v in values if v is not None), None)


def _listed(values: Sequence[Any]) -> list[Any]:
    return sorted({each for value in lists(values) for each in value})


def _least(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else min((v for v in values if v is not None), default=None)


def _most(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else max((v for v in values if v is not None), default=None)


UP: dict[Rollup, Callable[[Sequence[Any]], Any]] = {
    "key": _one, "first": _one, "min": _least, "max": _most, "sum": sum, "list": _listed,
}  # fmt: skip
"""How one value comes of many; of parts in the order of their lowest objects."""


_OBJECT = {column.name: at for at, column in enumerate(columns.own())}
_FIRST = ("study_uid", "facility", "series_number", "series_uid")
_THEN = ("instance_number", "sop_instance_uid", "object_sha256")


def instances(
    rows: Iterable[Sequence[Any]],
    parts: Mapping[int, Part],
    disputed: Collection[tuple[str, str]],
    schema: pa.Schema,
) -> pa.Table:
    """Objects with what they have of their parts, in the order of answers.

    Args:
        rows: of each object its own columns, and the number of its part.
        parts: those that match, by number; objects of others are left out.
        disputed: facilities and SOP instances of which they sent different files.
        schema: of the answer.
    """
    date, first = _AT["study_date"], [_AT[name] for name in _FIRST]
    ranks = {
        number: (part[date] is None, -(part[date] or 0), *(_rank(part[at]) for at in first))
        for number, part in parts.items()
    }
    then = [_OBJECT[name] for name in _THEN]
    found = [(ranks[row[-1]], [_rank(row[at]) for at in then], row) for row in rows if row[-1] in parts]
    found.sort(key=itemgetter(0, 1))
    shown = [(row, parts[row[-1]]) for *_, row in found]
    facility, uid = _AT["facility"], _OBJECT["sop_instance_uid"]
    made: dict[str, list[Any]] = {CONFLICT: [(part[facility], row[uid]) in disputed for row, part in shown]}
    for name in schema.names:
        if (at := _OBJECT.get(name)) is not None:
            made[name] = [row[at] for row, _ in shown]
        elif (at := _AT.get(name)) is not None:
            made[name] = [part[at] for _, part in shown]
    return pa.Table.from_arrays([array(made[field.name], field.type) for field in schema], schema=schema)


def _rank(value: Any) -> tuple[bool, Any]:
    """Sorts what is missing behind the rest."""
    return value is None, "" if value is None else value
