"""A sheet of bundles: rows that lie together as columns, in memory or in a mapped file; and which match.

The file is an Arrow IPC file of one record batch (https://arrow.apache.org/docs/format/Columnar.html), with
the columns of `central_store.bundles`. It is mapped, so that its columns are used as they lie on the disk and
need no memory of ours. Rows of a facility lie together, newest first, and by UID within a day. Its name and
texts that are searched are numbers in a dictionary: a condition is decided once for each different value.

Guarantees: a file is written whole and never changed. One that does not have the bytes that were written is
refused before anything of it is used. Rows of studies that no longer count are left out.

Leaves to others: which sheets there are (`central_store.bundling`).
"""

from __future__ import annotations

import mmap
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property, reduce
from itertools import pairwise
from operator import neg
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from central_store import mapped
from central_store.bundles import FOLDED, SCHEMA, merged, together
from central_store.keyruns import Numbered
from schemas import columns
from schemas.conditions import is_wild, period
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
SHAPE = f"{_STORED.to_string()}: by facility, newest first, by UID"
"""What changes when a file is written otherwise."""
_READ = 1 << 20
_FEW = 8
"""Codes that are compared one by one."""


Span = tuple[int, int]
"""From where to where; behind the last place, but of days counted as Arrow counts the last one."""


class Sheet:
    """Bundles that lie together.

    Args:
        rows: of the schema of sheets: what `coded` makes.
        dropped: numbers of studies of which no row counts.
        file: in which the rows lie.
    """

    def __init__(
        self, rows: pa.RecordBatch, dropped: Sequence[int] = (), file: mmap.mmap | None = None
    ) -> None:
        self.rows, self.dropped, self._file = rows, tuple(dropped), file

    def release(self) -> None:
        """Give the pages of the file back that were touched."""
        if self._file is not None:
            mapped.release(self._file)

    def without(self, studies: Sequence[int]) -> Sheet:
        """The same, but for rows of these studies."""
        mine = [study for study in sorted({*studies}) if self._by_study.find([study])]
        return Sheet(self.rows, (*self.dropped, *mine), self._file) if mine else self

    def kept(self) -> pa.RecordBatch:
        """The rows that count."""
        return self.rows.filter(self._counts(self.rows["study"])) if self.dropped else self.rows

    def _counts(self, studies: pa.Array) -> pa.Array:
        return pc.invert(pc.is_in(studies, value_set=pa.array(self.dropped, pa.int64())))

    def matching(self, asked: Asked) -> pa.Array:
        """The places of rows that are asked for, ascending."""
        if not self._days_meet(asked.days):
            return _NOWHERE
        if asked.studies is None:
            found = [self._matching(low, high, asked) for low, high in self._spans(asked)]
            at = pa.concat_arrays(found) if found else _NOWHERE
        else:
            at = pa.array(sorted(self._by_study.find(asked.studies)), pa.uint64())
            if len(at):
                rows = {name: self.rows[name].take(at) for name in ("facility", *asked.columns)}
                whose = _coded(rows["facility"], _is_one(rows["facility"].dictionary, [*asked.owners]))
                at = at.filter(reduce(pc.and_, asked.masks(rows), whose))
        return at.filter(self._counts(self.rows["study"].take(at))) if self.dropped else at

    def columns(self, names: Sequence[str], at: pa.Array) -> pa.Table:
        """What rows at ascending places say, with texts in the place of their numbers."""
        return plain(_at(self.rows.select(names), at))

    def different(self, studies: pa.Array) -> int:
        """How many these are, which follow each other as rows of this sheet do."""
        return _changes(studies) if self._together else len(studies.unique())

    @cached_property
    def _together(self) -> bool:
        """Whether the rows of each study lie together: if not, it has several days."""
        return _changes(self.rows["study"]) == len(self.rows["study"].unique())

    def _matching(self, low: int, high: int, asked: Asked) -> pa.Array:
        """Those from here to there, of a facility and day that are asked for."""
        rows = self.rows.slice(low, high - low)
        masks = [*asked.others(rows)] or [rows["study"].is_valid()]
        return pc.add(pc.indices_nonzero(reduce(pc.and_, masks)), pa.scalar(low, pa.uint64()))

    def _spans(self, asked: Asked) -> list[Span]:
        """From where to where rows of the facilities and days lie that are asked for."""
        found: list[Span] = []
        for name, low, dated, high in self._whose:
            if name in asked.owners:
                found += self._of_days(low, dated, asked.days) if asked.days else [(low, high)]
        return _joined(found)

    def _of_days(self, low: int, high: int, asked: Sequence[Span]) -> list[Span]:
        """From where to where rows of these days lie among a facility's, which begin with the newest."""
        ends = (
            (
                bisect_left(self._day, -last, low, high, key=neg),
                bisect_right(self._day, -first, low, high, key=neg),
            )
            for first, last in asked
        )
        return sorted(end for end in ends if end[0] < end[1])

    @cached_property
    def _whose(self) -> list[tuple[str, int, int, int]]:
        """Of each facility where its rows begin, where those without a day do, and where they end."""
        runs = pc.run_end_encode(self.rows["facility"].indices)
        names = self.rows["facility"].dictionary.take(runs.values).to_pylist()
        spans = pairwise([0, *runs.run_ends.to_pylist()])
        undated = (
            (low, high, self.rows["study_date"].slice(low, high - low).null_count) for low, high in spans
        )
        return [(name, low, high - n, high) for name, (low, high, n) in zip(names, undated, strict=True)]

    def _days_meet(self, asked: Sequence[Span]) -> bool:
        """Whether a day of any row may be asked for: mostly the days of one sheet lie together."""
        if not asked or self._ends is None:
            return not asked
        least, most = self._ends
        return any(first <= most and last >= least for first, last in asked)

    @cached_property
    def _ends(self) -> Span | None:
        """The first day and the last."""
        ends = pc.min_max(self.rows["study_date"])
        return (ends["min"].value, ends["max"].value) if ends["min"].is_valid else None

    @cached_property
    def _day(self) -> memoryview:
        """The days as they lie in memory; of rows without one it says nothing."""
        days = self.rows["study_date"]
        return memoryview(days.buffers()[1]).cast("i")[days.offset :]

    @cached_property
    def _by_study(self) -> Numbered:
        studies = self.rows["study"]
        order = pc.array_sort_indices(studies)
        return Numbered(studies.take(order).cast(pa.uint64()), order.cast(pa.uint64()))


_NOWHERE = pa.array([], pa.uint64())


class Asked:
    """What is asked of rows.

    Args:
        conditions: for which `bundles.hold`.
        owners: of whom rows may be seen.
        studies: numbers of the only studies that may match, ascending; None: of any.
    """

    def __init__(
        self,
        conditions: Mapping[str, Sequence[str]],
        owners: Sequence[FacilityName],
        studies: Sequence[int] | None,
    ) -> None:
        self.owners = frozenset[str](owners).intersection(conditions.get("facility", owners))
        self.studies = studies
        periods = [period(each) for each in conditions.get("study_date", ())]
        self.days = [(_counted(first, -_NEVER), _counted(last, _NEVER)) for first, last in periods]
        """The periods, if there is a condition on days."""
        self._others = {n: values for n, values in conditions.items() if n not in ("facility", "study_date")}
        dated = ["study_date"] if self.days else []
        self.columns = [*dated, *(FOLDED.get(name, name) for name in self._others)]
        """On which there are conditions, beside the facility."""

    def masks(self, rows: Any) -> Iterator[pa.Array]:
        """For each condition, of each row whether it is met; null, too, if not."""
        if self.days:
            day = rows["study_date"].cast(pa.int32())
            yield reduce(
                pc.or_,
                (pc.and_(pc.greater_equal(day, one), pc.less_equal(day, two)) for one, two in self.days),
            )
        yield from self.others(rows)

    def others(self, rows: Any) -> Iterator[pa.Array]:
        """The same for each condition but that on days."""
        for name, values in self._others.items():
            found, search = rows[FOLDED.get(name, name)], columns.by_name[name].search
            if search == "text":
                yield _coded(found, _is_like(found.dictionary, values))
            elif search == "token":
                wanted = frozenset(values)
                yield pa.array([not wanted.isdisjoint(each) for each in found.to_pylist()], pa.bool_())
            else:
                yield _is_one(found, values)


_NEVER = 1 << 30
"""A day, counted as Arrow counts, that none is behind, and before its negative none."""


def _counted(day: date | None, instead: int) -> int:
    return pa.scalar(day, pa.date32()).value if day else instead


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Of spans by their beginnings, those that touch as one."""
    found: list[Span] = []
    for low, high in spans:
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def _coded(found: pa.DictionaryArray, wanted: pa.Array) -> pa.Array:
    """Of each row whether the value that its code stands for is wanted."""
    codes = pc.indices_nonzero(wanted).cast(pa.int32())
    if len(codes) > _FEW:
        return pc.is_in(found.indices, value_set=codes)
    if not len(codes):
        return pa.nulls(len(found), pa.bool_())
    return reduce(pc.or_, (pc.equal(found.indices, code) for code in codes))


def _is_one(found: pa.Array, values: Sequence[str]) -> pa.Array:
    return pc.is_in(found, value_set=pa.array(values, pa.string()))


def _is_like(found: pa.Array, values: Sequence[str]) -> pa.Array:
    """Whether texts in lower case are like one of these, where `*` and `?` stand for any.

    In time that grows with the text alone: Arrow uses RE2.
    """
    lower = [value.lower() for value in values]
    wild = [value for value in lower if is_wild(value)]
    masks = [pc.match_like(found, "".join(_LIKE.get(char, char) for char in value)) for value in wild]
    return reduce(pc.or_, masks, _is_one(found, [value for value in lower if value not in wild]))


_LIKE = {"*": "%", "?": "_", "%": "\\%", "_": "\\_", "\\": "\\\\"}


def coded(rows: pa.Table) -> pa.RecordBatch:
    """Bundles as sheets have them: with numbers in dictionaries."""
    table = rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks().cast(_STORED)
    return _one_batch(table.take(_ordered(table)))


def joined(sheets: Sequence[Sheet]) -> Sheet:
    """The rows of several that count, as one sheet."""
    table = pa.Table.from_batches([sheet.rows for sheet in sheets], _STORED).unify_dictionaries()
    order = _ordered(table)
    if any(sheet.dropped for sheet in sheets):
        counts = [sheet._counts(sheet.rows["study"]) for sheet in sheets]
        order = order.filter(pa.chunked_array(counts, pa.bool_()).take(order).combine_chunks())
    return Sheet(_one_batch(table.take(order)))


def put_together(old: Sheet | None, new: Sequence[Sheet]) -> Sheet:
    """All rows that count, where new ones are put together with others of the same study and key.

    Args:
        old: whose rows are put together as far as they can be.
        new: the others.
    """
    rows = [sheet.kept() for sheet in new]
    studies = pa.concat_arrays([each["study"] for each in rows]).unique()
    stay = []
    if old is not None:
        touched = pc.and_(pc.is_in(old.rows["study"], value_set=studies), old._counts(old.rows["study"]))
        rows.append(old.rows.filter(touched))
        stay = [old.without(studies.to_pylist())]
    some = pa.concat_tables(map(plain, rows)).sort_by("first_object")
    return joined([*stay, Sheet(coded(merged(some, together(some))))])


def _at(rows: Any, at: pa.Array) -> Any:
    """What lies at these places, which ascend: mostly together, where a facility and days were asked for."""
    low = at[0].as_py()
    return rows.slice(low, len(at)) if at[-1].as_py() - low == len(at) - 1 else rows.take(at)


def _changes(values: pa.Array) -> int:
    """How many runs of the same value there are."""
    changed: int = pc.not_equal(values[1:], values[:-1]).true_count
    return changed + min(len(values), 1)


def plain(rows: pa.RecordBatch) -> pa.Table:
    """Rows of sheets with texts in the place of their numbers."""
    found = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.table(found, schema=pa.schema([SCHEMA.field(name) for name in rows.schema.names]))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    if not len(table):
        return pa.RecordBatch.from_pylist([], _STORED)
    return table.combine_chunks().to_batches()[0]


def _ordered(table: pa.Table) -> pa.Array:
    """The places of rows in the order of sheets: facilities as their numbers are."""
    codes = pa.chunked_array([each.indices for each in table["facility"].chunks], pa.int32())
    keys = pa.table([codes, table["study_date"], table["study_uid"]], names=["0", "1", "2"])
    return pc.sort_indices(keys, sort_keys=_ORDER)


_ORDER = [("0", "ascending"), ("1", "descending"), ("2", "ascending")]


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
    """The sheet in a file; raises `Damaged` if it is missing, or has other bytes than were written.

    It is read before it is mapped: a disk that fails is an `OSError` then, and not the end of the process.
    """
    found = 0
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(_READ):
                found = zlib.crc32(data, found)
        if found != crc:
            raise Damaged("a sheet of the catalog has other bytes than were written")
        mapping = mapped.opened(path)
    except (FileNotFoundError, ValueError):  # the second of an empty file
        raise Damaged("a sheet of the catalog is missing") from None
    rows = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapping))).get_batch(0)
    return Sheet(rows, file=mapping)
