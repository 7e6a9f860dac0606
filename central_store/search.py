"""Search and held requests to their answers.

Guarantees: an answer's table has exactly the columns of `schemas.query.schema`, in that order, and its
digest stands in the signed answer; counts and rows are of one state of the catalog.

Leaves to others: whether the asker may ask (`central_store.requests`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from central_store import quick
from central_store.catalog import Catalog
from central_store.catalog_file import OutOfMemory, too_large
from central_store.quick import Found
from central_store.replies import Refused
from schemas import answer_table, query
from schemas.container import MAX_TABLE
from schemas.messages import HeldAnswer, HeldRequest, SearchAnswer, SearchRequest, rfc3339
from schemas.names import FacilityName
from schemas.query import Query

SLICE = 10_000
"""Rows that are put together at once where those of a page do not fit into memory."""
_MUCH = 1 << 20
"""Bytes of rows from which on it is their number that counts, not the time to write them."""


def search(
    catalog: Catalog,
    store: FacilityName,
    request: SearchRequest,
    owners: Sequence[FacilityName],
    now: datetime,
) -> tuple[SearchAnswer, bytes | None, dict[str, int]]:
    """The answer, its table (none when only counts were asked for), and how many rows are whose.

    Args:
        catalog: where to look.
        store: this store's name.
        request: whose password was checked.
        owners: the facilities the asker may see.
        now: the time written into the answer.

    Raises:
        FormatError: a condition that is none, or more than fits one answer or into memory.
        CatalogError: the catalog failed.
    """
    built = query.build(request, owners)
    try:
        found = quick.find(catalog, built, request) or _found(catalog, built, request, owners)
    except OutOfMemory:
        raise too_large() from None
    table, returned, whose = None, 0, dict[str, int]()
    if found.rows is not None:
        returned = found.rows.num_rows
        table = answer_table.to_parquet(found.rows, quick=found.rows.nbytes < _MUCH)
        whose = {each["values"]: each["counts"] for each in found.rows["facility"].value_counts().to_pylist()}
        if len(table) > MAX_TABLE:
            raise Refused("too-large", "the rows are more than one answer holds: ask for fewer at once")
    answer = SearchAnswer(
        store=store,
        request=request.id,
        matches=found.matches,
        instances=found.instances,
        bytes=found.bytes,
        returned=returned,
        table="" if table is None else hashlib.sha256(table).hexdigest(),
        answered=rfc3339(now),
    )
    return answer, table, whose


def _found(catalog: Catalog, built: Query, request: SearchRequest, owners: Sequence[FacilityName]) -> Found:
    """What a request asks for, put together by DuckDB; a page that does not fit into memory in slices."""
    counts, chosen, given = _counted(catalog, built, request)
    if request.count_only:
        return Found(*counts, None)
    try:
        rows = catalog.table(chosen, given, built.points).cast(built.schema)
    except OutOfMemory:
        if min(request.limit, query.MAX_ROWS) <= SLICE:
            raise
        slices = (_found(catalog, query.build(each, owners), each, owners) for each in _slices(request))
        rows = pa.concat_tables([each.rows for each in slices if each.rows is not None])
    return Found(*counts, rows)


def _slices(request: SearchRequest) -> Iterator[SearchRequest]:
    last = query.last(request)
    for at in range(request.offset, last, SLICE):
        yield replace(request, offset=at, limit=min(SLICE, last - at))


def _counted(
    catalog: Catalog, built: Query, request: SearchRequest
) -> tuple[tuple[int, int, int], str, dict[str, Any]]:
    """The three counts; and the statement that gives the page, with its parameters."""
    given = dict(built.parameters)
    if built.studies and not request.count_only:
        instances, size, studies, days, before = catalog.row(built.studies, given, built.points)
        chosen = {"studies": studies or [], "days": days or [], "skip": request.offset - (before or 0)}
        return (instances, instances, size), built.of_studies, {**given, **chosen}
    matches, instances, size = catalog.row(built.counts, given, built.points)
    fits = request.offset == 0 and matches <= min(request.limit, query.MAX_ROWS)
    return (matches, instances, size), built.all_rows if fits else built.rows, given


def held(catalog: Catalog, store: FacilityName, request: HeldRequest, now: datetime) -> HeldAnswer:
    """Which of the asked source files are stored by that facility, and where its sequence stands."""
    sequence, head = catalog.head(request.facility)
    return HeldAnswer(
        store=store,
        request=request.id,
        held=catalog.held(request.facility, request.digests) if request.digests else {},
        sequence=sequence,
        head=head,
        answered=rfc3339(now),
    )
