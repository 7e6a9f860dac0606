"""Lists of studies put together of bundles, with the columns as they lie in sheets.

    which match     in each sheet by its columns, or by the numbers of studies that look-ups leave
    which are shown the newest ones, by day; UIDs decide only between studies of one day
    what is shown   a study of one bundle is its row; of several their values are put together

Guarantees: the same rows in the same order, and the same counts, as the statements of `schemas.query`
give over all columns.

Leaves to others: whether bundles can answer a request (`central_store.bundles.hold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

import pyarrow as pa
import pyarrow.compute as pc

from central_store.bundles import SCHEMA, SERIES, merged
from central_store.sheets import Asked, Sheet
from schemas import query
from schemas.messages import SearchRequest
from schemas.names import FacilityName

_COUNTED = ["study", "n_instances", "object_bytes"]
_SHOWN = query.schema("study").names
_GROUPED = ["study", "first_object", SERIES]
"""What is needed beside it where a study has several bundles."""
_ONE = pa.scalar(1, pa.int64())
_ORDER = [("study_date", "descending"), ("study_uid", "ascending"), ("facility", "ascending")]

Hit = tuple[Sheet, pa.Array]
"""A sheet, and the places of its rows that match."""


class Listed:
    """What matches: counts and a page.

    Args:
        sheets: all bundles.
        request: whose conditions bundles can meet, without an order of its own.
        owners: of whom rows may be seen.
        studies: numbers of the only studies that may match, ascending; None: of any.
    """

    def __init__(
        self,
        sheets: Iterable[Sheet],
        request: SearchRequest,
        owners: Sequence[FacilityName],
        studies: Sequence[int] | None,
    ) -> None:
        asked = Asked(request.conditions, owners, studies)
        found = [(sheet, sheet.matching(asked)) for sheet in sheets]
        self._hits: list[Hit] = [(sheet, at) for sheet, at in found if len(at)]
        counted = _read(self._hits, _COUNTED)
        self.instances, self.bytes = (
            pc.sum(counted[name]).as_py() or 0 for name in ("n_instances", "object_bytes")
        )
        self.matches = _different(self._hits, counted["study"])
        self._more = len(counted) - self.matches  # rows of studies that have several
        self._in_order = len(asked.owners) == 1
        self._first, self._last = request.offset, query.last(request)

    def page(self) -> pa.Table:
        """The rows asked for."""
        hits, whole = self._hits, self.matches <= self._last
        if not whole and self._in_order:
            # Before a row of a study that is shown stand rows of others before it, and further ones of some.
            first = [(sheet, at[: self._last + self._more]) for sheet, at in hits]
            hits = _of(hits, _read(first, ["study"])["study"]) if self._more else first
        elif not whole:
            hits = _of(hits, self._up_to_last())
        if self._first or not whole:
            keys = self._once(_read(hits, ["study", "study_date", "study_uid", "facility"]))
            order = pc.sort_indices(keys, sort_keys=_ORDER)
            hits = _of(hits, keys["study"].take(order[self._first : self._last]))
        rows = _grouped(_read(hits, [*_SHOWN, *_GROUPED])) if self._more else _read(hits, _SHOWN)
        return rows.select(_SHOWN).take(pc.sort_indices(rows, sort_keys=_ORDER))

    def _up_to_last(self) -> pa.ChunkedArray:
        """The studies on the page or before it, and those of the last one's day: UIDs are not read for it."""
        keys = self._once(_read(self._hits, ["study", "study_date"]))
        days = keys["study_date"]
        last = days[pc.array_sort_indices(days, order="descending")[self._last - 1].as_py()]
        if not last.is_valid:  # those without a day come last, and are as one day
            return keys["study"]
        return keys["study"].filter(pc.greater_equal(days, last))

    def _once(self, keys: pa.Table) -> pa.Table:
        """Of rows with studies, and what is the same for each, each study once, with its first day."""
        if not self._more:
            return keys
        days = [(name, "min") for name in keys.column_names if name == "study_date"]
        same = [name for name in keys.column_names if name != "study_date"]
        found = keys.group_by(same, use_threads=False).aggregate(days)
        return found.rename_columns([*same, *(name for name, _ in days)])


def _different(hits: Sequence[Hit], studies: pa.ChunkedArray) -> int:
    """How many studies; mostly those of one sheet are older than all of the next."""
    ends = sorted(tuple(pc.min_max(chunk).as_py().values()) for chunk in studies.chunks)
    if hits and all(one[1] < two[0] for one, two in pairwise(ends)):
        return sum(sheet.different(chunk) for (sheet, _), chunk in zip(hits, studies.chunks, strict=True))
    return len(studies.unique())  # in two thirds of the time of `count_distinct`


def _of(hits: Sequence[Hit], studies: pa.ChunkedArray) -> list[Hit]:
    """Those of these studies."""
    wanted = studies.combine_chunks()
    mine = [
        (sheet, at.filter(pc.is_in(sheet.rows["study"].take(at), value_set=wanted))) for sheet, at in hits
    ]
    return [(sheet, at) for sheet, at in mine if len(at)]


def _read(hits: Sequence[Hit], names: list[str]) -> pa.Table:
    """Columns of the rows, with texts in the place of their numbers."""
    found = [sheet.columns(names, at) for sheet, at in hits]
    return pa.concat_tables(found or [SCHEMA.empty_table().select(names)])


def _grouped(rows: pa.Table) -> pa.Table:
    """One row for each study; those of one bundle stay as they are."""
    counted = pc.value_counts(rows["study"])
    several = counted.field(0).filter(pc.greater(counted.field(1), _ONE))
    if not len(several):
        return rows
    mixed = pc.is_in(rows["study"], value_set=several)
    taken = rows.filter(mixed)
    taken = taken.take(
        pc.sort_indices(taken, sort_keys=[("study", "ascending"), ("first_object", "ascending")])
    )
    studies = taken["study"].to_pylist()
    groups = [[*places] for _, places in groupby(range(len(studies)), studies.__getitem__)]
    return pa.concat_tables([rows.filter(pc.invert(mixed)), merged(taken, groups)])
