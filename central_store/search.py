"""Search and held requests to their answers.

Guarantees: an answer's table has exactly the columns of `schemas.query.schema`, in that order, and its
digest stands in the signed answer; counts and rows are of one state of the catalog.

Leaves to others: whether the asker may ask (`central_store.requests`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

from central_store import quick
from central_store.catalog import Catalog
from central_store.quick import Found
from central_store.replies import Refused
from schemas import answer_table, query
from schemas.container import MAX_TABLE
from schemas.messages import HeldAnswer, HeldRequest, SearchAnswer, SearchRequest, rfc3339
from schemas.names import FacilityName
from schemas.query import Query

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
        FormatError: a condition that is none, or more than fits one answer.
        CatalogError: the catalog failed.
    """
    built = query.build(request, owners)
    found = quick.find(catalog, built, request) or _found(catalog, built, request)
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


def _found(catalog: Catalog, built: Query, request: SearchRequest) -> Found:
    """What a request asks for, put together by DuckDB."""
    matches, instances, size = catalog.row(built.counts, built.parameters, built.points)
    if request.count_only:
        return Found(matches, instances, size, None)
    fits = request.offset == 0 and matches <= min(request.limit, query.MAX_ROWS)
    rows = catalog.table(built.all_rows if fits else built.rows, built.parameters, built.points)
    return Found(matches, instances, size, rows.cast(built.schema))


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
