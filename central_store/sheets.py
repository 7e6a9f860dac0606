"""A sheet of bundles: rows that lie together as columns, in memory or in a mapped file; and which match.

The file is an Arrow IPC file of one record batch (https://arrow.apache.org/docs/format/Columnar.html), with
the columns of `central_store.bundles`. It is mapped, so that its columns are used as they lie on the disk and
need no memory of ours. What is compared for all rows (facility, texts) is a number in a dictionary: a
condition is decided once for each different value.

Guarantees: a file is written whole and never changed. One that does not have the bytes that were written is
refused before anything of it is used. Rows of studies that no longer count are left out.

Leaves to others: which sheets there are (`central_store.bundling`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from central_store.bundles import FOLDED, SCHEMA, merged, together
from central_store.keyruns import Sorted
from schemas import columns, conditions
from schemas.columns import Column
from schemas.errors import Damaged
from schemas.names import FacilityName
from schemas.transit import durable

_CODED = ("facility", *FOLDED.values())
_STORED = pa.schema(
    [
        pa.field(each.name, pa.dictionary(pa.int32(), pa.string())) if each.name in _CODED else each
        for each in SCHEMA
    ]
)
SHAPE = _STORED.to_string()
"""What changes when a file is written otherwise."""
_FEW = 8
"""Codes that are compared one by one."""


class Sheet:
    """Bundles that lie together.

    Args:
        rows: of the schema of sheets: what `coded` makes.
        dropped: numbers of studies of which no row counts.
    """

    def __init__(self, rows: pa.RecordBatch, dropped: Sequence[int] = ()) -> None:
        self.rows, self.dropped = rows, tuple(dropped)

    def without(self, studies: Sequence[int]) -> Sheet:
        """The same, but for rows of these studies."""
        mine = [study for study in sorted({*studies}) if self._by_study.find([study])]
        return Sheet(self.rows, (*self.dropped, *mine)) if mine else self

    def kept(self) -> pa.RecordBatch:
        """The rows that count."""
        return self.rows.filter(self._counts(self.rows["study"])) if self.dropped else self.rows

    def _counts(self, studies: pa.Array) -> pa.Array:
        return pc.invert(pc.is_in(studies, value_set=pa.array(self.dropped, pa.int64())))

    def matching(
        self,
        asked: Mapping[str, Sequence[str]],
        owners: Sequence[FacilityName],
        studies: Sequence[int] | None,
    ) -> pa.Array:
        """The places of rows of these owners that meet the conditions.

        Args:
            asked: for which `bundles.hold`.
            owners: of whom rows may be seen.
            studies: numbers of the only studies that may match, ascending; None: of any.
        """
        rows, near = self.rows, None
        if not self._days_meet(asked.get("study_date", ())):
            return pa.array([], pa.int64())
        if studies is not None:
            near = pa.array(sorted(self._by_study.find(studies)), pa.int64())
            if not len(near):
                return near
            rows = _some(rows, near, asked)
        masks = [_coded(rows["facility"], frozenset[str](owners).__contains__)]
        masks += [_meets(rows, columns.by_name[name], values) for name, values in asked.items()]
        mask = reduce(pc.and_, masks)
        at = near.filter(mask) if near is not None else pc.indices_nonzero(mask)
        return at.filter(self._counts(self.rows["study"].take(at))) if self.dropped else at

    def _days_meet(self, periods: Sequence[str]) -> bool:
        """Whether a day of any row may lie in one: mostly the days of one sheet lie together."""
        least, most = self._days
        spans = [
            [conditions.day(each) if each else None for each in period.split("..")] for period in periods
        ]
        return not spans or any(
            least and (not first or first <= most) and (not last or last >= least) for first, last in spans
        )

    @cached_property
    def _days(self) -> tuple[date | None, date | None]:
        ends = pc.min_max(self.rows["study_date"]).as_py()
        return ends["min"], ends["max"]

    @cached_property
    def _by_study(self) -> Sorted:
        studies = self.rows["study"]
        order = pc.array_sort_indices(studies)
        return Sorted(studies.take(order).cast(pa.uint64()), order.cast(pa.uint64()))


def _some(rows: pa.RecordBatch, at: pa.Array, asked: Mapping[str, Any]) -> dict[str, pa.Array]:
    """Of some rows the columns that conditions are on."""
    names = {"facility", *(FOLDED.get(name, name) for name in asked)}
    return {name: rows[name].take(at) for name in names}


def _meets(rows: Any, column: Column, values: Sequence[str]) -> pa.Array:
    """Of each row whether a column meets one of the conditions' values."""
    if column.search == "text":
        return _coded(rows[FOLDED[column.name]], _like(values))
    if column.search == "date":
        return reduce(pc.or_, (_within(rows[column.name], value) for value in values))
    if column.name in _CODED:
        return _coded(rows[column.name], frozenset(values).__contains__)
    if column.search == "token":
        wanted = frozenset(values)
        return pa.array([not wanted.isdisjoint(found) for found in rows[column.name].to_pylist()], pa.bool_())
    return pc.is_in(rows[column.name], value_set=pa.array(values, column.arrow))


def _coded(found: pa.DictionaryArray, wanted: Callable[[str], Any]) -> pa.Array:
    codes = [code for code, value in enumerate(found.dictionary.to_pylist()) if wanted(value)]
    if len(codes) > _FEW:
        return pc.is_in(found.indices, value_set=pa.array(codes, found.indices.type))
    if not codes:
        return pa.nulls(len(found), pa.bool_())  # of none it is known that it matches
    return reduce(pc.or_, (pc.equal(found.indices, pa.scalar(code, pa.int32())) for code in codes))


def _like(values: Sequence[str]) -> Callable[[str], Any]:
    """Whether a text in lower case is like one of these, where `*` and `?` stand for any."""
    ways = {"*": ".*", "?": "."}
    patterns = ("".join(ways.get(char) or re.escape(char) for char in value.lower()) for value in values)
    return re.compile("|".join(patterns), re.DOTALL).fullmatch


def _within(days: pa.Array, period: str) -> pa.Array:
    first, _, last = period.partition("..")
    bounds = [
        compare(days, pa.scalar(conditions.day(text), pa.date32()))
        for compare, text in ((pc.greater_equal, first), (pc.less_equal, last))
        if text
    ]
    return reduce(pc.and_, bounds)


def coded(rows: pa.Table) -> pa.RecordBatch:
    """Bundles as sheets have them: with numbers in dictionaries."""
    return _whole(rows.select(SCHEMA.names).cast(SCHEMA).cast(_STORED))


def joined(sheets: Sequence[Sheet]) -> Sheet:
    """The rows of several that count, as one sheet."""
    rows = [sheet.kept() for sheet in sheets]
    return Sheet(_whole(pa.Table.from_batches(rows, _STORED).unify_dictionaries()))


def put_together(old: Sheet | None, new: Sequence[Sheet]) -> Sheet:
    """All rows that count, where new ones are put together with others of the same study and key.

    Args:
        old: whose rows are put together as far as they can be.
        new: the others.
    """
    rows = plain(joined([*([old] if old else []), *new]).rows)
    studies = joined(new).rows["study"].unique()
    touched = pc.is_in(rows["study"], value_set=studies)
    some = rows.filter(touched).sort_by("first_object")
    groups = together(some)
    return Sheet(coded(pa.concat_tables([rows.filter(pc.invert(touched)), merged(some, groups)])))


def plain(rows: pa.RecordBatch) -> pa.Table:
    """Rows of sheets with texts in the place of their numbers."""
    found = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.table(found, schema=pa.schema([SCHEMA.field(name) for name in rows.schema.names]))


def _whole(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], _STORED)


class _Summed:
    """A file that is written, and the CRC of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self.crc, self.closed, self._file = 0, False, file

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write(path: Path, sheet: Sheet) -> int:
    """Write a sheet of which all rows count; returns the CRC-32 of its bytes."""
    crc = 0

    def whole(file: BinaryIO) -> None:
        nonlocal crc
        summed = _Summed(file)
        with pa.ipc.new_file(summed, _STORED) as writer:
            writer.write_batch(sheet.rows)
        crc = summed.crc

    durable.publish(path, whole, replace=True)
    return crc


def read(path: Path, crc: int) -> Sheet:
    """The sheet in a file; raises `Damaged` if it is missing, or has other bytes than were written."""
    try:
        mapped = pa.memory_map(str(path))
    except (OSError, pa.ArrowInvalid):  # an empty one cannot be mapped
        raise Damaged("a sheet of the catalog is missing") from None
    if zlib.crc32(mapped.read_buffer(mapped.size())) != crc:
        raise Damaged("a sheet of the catalog has other bytes than were written")
    return Sheet(pa.ipc.open_file(mapped).get_batch(0))
