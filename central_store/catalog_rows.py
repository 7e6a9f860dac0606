"""The rows of one batch as the catalog has them: objects in order, and the parts they are of. Pure.

Order: by study, series, instance number and place in the pack; missing values last. Objects get numbers in
that order, and are of one part if they agree in every shared column. A part's number is that of its first
object; its study and its series are those of the first part of the batch that has the same UIDs.

Guarantees: what it costs follows the rows: columns become numbers, and only these are compared.

Leaves to others: studies and series that were there before (`central_store.catalog_load`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from schemas import columns, conditions

_ORDER = [(name, "ascending") for name in ("study_uid", "series_uid", "instance_number", "object_offset")]
_OWN = [column.name for column in columns.own()]
_SHARED = [column.name for column in columns.shared()]


class Arranged(NamedTuple):
    """A batch's rows."""

    objects: pa.Table
    """Own columns, `number`, `part`, `object_offset`."""
    parts: pa.Table
    """Shared columns, `part`, `study`, `series`, and what parts sum up."""


def arrange(rows: pa.Table, first: int) -> Arranged:
    """Objects and parts of a manifest.

    Args:
        rows: the manifest's columns, and `object_offset`.
        first: the number of the first object.
    """
    rows = rows.take(pc.sort_indices(rows, sort_keys=_ORDER)).combine_chunks()
    of = _same(rows)
    starts: list[int] = []
    for place, part in enumerate(of):
        if part == len(starts):  # parts are counted as they come
            starts.append(place)
    numbers = pa.array(range(first, first + len(rows)), pa.int64())
    part = numbers.take(pa.array([starts[each] for each in of], pa.int64()))
    objects = rows.select([*_OWN, "object_offset"])
    objects = objects.append_column("number", numbers).append_column("part", part)
    parts = (
        rows.select(_SHARED).take(starts).append_column("part", numbers.take(pa.array(starts, pa.int64())))
    )
    for name, values in (*_entities(parts), *_sums(objects, len(starts), of)):
        parts = parts.append_column(name, values)
    return Arranged(objects, parts)


def _same(rows: pa.Table) -> list[int]:
    """Of each row which part it is of, counted in the order in which they come."""
    found = pa.array([0] * len(rows), pa.int64())
    for name in _SHARED:
        codes = _codes(rows[name].chunk(0))
        many = pa.scalar(pc.max(codes).as_py() + 1, pa.int64())
        found = _counted(pc.add(pc.multiply(found, many), codes))  # both are below the number of rows
    parts: list[int] = found.to_pylist()
    return parts


def _codes(values: pa.Array) -> pa.Array:
    if not pa.types.is_list(values.type):
        return _counted(values)
    known: dict[Any, int] = {}
    codes = [known.setdefault(tuple(value), len(known)) for value in values.to_pylist()]
    return pa.array(codes, pa.int64())


def _counted(values: pa.Array) -> pa.Array:
    """Each value as a number, from 0 in the order in which they come."""
    return values.dictionary_encode(null_encoding="encode").indices.cast(pa.int64())


def _entities(parts: pa.Table) -> Iterable[tuple[str, pa.Array]]:
    """For study and series: of each part the number of the first with its UIDs."""
    numbers, uids = parts["part"].to_pylist(), [list[Any]() for _ in range(len(parts))]
    for name, number in conditions.ENTITIES.items():
        for mine, uid in zip(uids, parts[name].to_pylist(), strict=True):
            mine.append(uid)
        known: dict[tuple[Any, ...], int] = {}
        found = [known.setdefault(tuple(mine), part) for mine, part in zip(uids, numbers, strict=True)]
        yield number, pa.array(found, pa.int64())


def _sums(objects: pa.Table, parts: int, of: list[int]) -> Iterable[tuple[str, pa.Array]]:
    """What parts have of their objects."""
    count, first = [0] * parts, [""] * parts
    for part, name in zip(of, objects["object_sha256"].to_pylist(), strict=True):
        count[part] += 1
        if not first[part] or name < first[part]:
            first[part] = name
    yield "n_instances", pa.array(count, pa.int64())
    yield "first_object", pa.array(first, pa.string())
    asked = [(column.name, column.rollup) for column in columns.totals()]
    table = objects.select([name for name, _ in asked]).append_column("of", pa.array(of, pa.int64()))
    found = table.group_by("of", use_threads=False).aggregate(asked).sort_by("of")
    for name, way in asked:
        yield name, found[f"{name}_{way}"].combine_chunks().cast(columns.by_name[name].arrow)
