"""A search request as SQL text and parameters. Pure; from the column table only.

It is run on `parts`, `objects` and `conflicts`: by a store on its catalog, by a terminal on the rows it
keeps. Both have to answer the same, so it is part of the agreement.

Guarantees: no text of a request becomes SQL, and no row of a facility that the asker may not see is found
(`schemas.conditions`). The order is total, so that pages fit together: newest study first, then numbers, then
UIDs.

Leaves to others: the tables and running it (`central_store.catalog`, `facility_sync.offline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import pyarrow as pa

from schemas import columns
from schemas.columns import Column, Level, Rollup
from schemas.conditions import Check, Conditions, Points
from schemas.errors import FormatError
from schemas.messages import SearchRequest
from schemas.names import FacilityName

MAX_ROWS = 50_000
"""Most rows in one answer, whatever its limit says; the rest is asked for with an offset."""

OWN, TOTALS = columns.own(), columns.totals()
_ORDER: dict[Level, str] = {
    "study": "study_date DESC NULLS LAST, study_uid, facility",
    "series": "study_date DESC NULLS LAST, study_uid, facility, series_number, series_uid",
    "instance": (
        "study_date DESC NULLS LAST, study_uid, facility, series_number, series_uid, "
        "instance_number, sop_instance_uid, object_sha256"
    ),
}
_PAGE: dict[Level, str] = {
    "study": "min(study_date) DESC NULLS LAST, any_value(study_uid), any_value(facility)",
    "series": (
        "min(study_date) DESC NULLS LAST, any_value(study_uid), any_value(facility), "
        "arg_min(series_number, first_object), any_value(series_uid)"
    ),
}
_TOTALS = ", ".join(f'"{column.name}"' for column in TOTALS)
_TEXTS = columns.by_name["domains"].arrow
CONFLICT = "conflict"
"""Column of an answer at instance level: the facility sent different files of this SOP instance."""


@dataclass(frozen=True)
class Query:
    """SQL and its parameters."""

    rows: str
    """One row for each study, series or instance, at most `MAX_ROWS`."""
    all_rows: str
    """The same if all of them fit on the page: planned in half the time."""
    counts: str
    """One row: matches, instances, bytes."""
    parameters: Mapping[str, Any]
    points: Points
    """Further parameters: what the catalog's look-ups find for these values."""
    schema: pa.Schema
    """Of the rows."""
    level: Level
    parts: str
    """What must hold of a part."""
    checks: Mapping[str, Check]
    """What must hold of a part, by columns, but for conditions on texts."""
    texts: Sequence[str]
    """Conditions on texts."""
    objects: str
    """What must hold of an object, if there is a condition on objects themselves."""
    found: Mapping[str, Sequence[str]]
    """The same, for objects of which a look-up has the numbers: a column is one of its values."""
    page: str
    """Numbers of the studies or series on the page, in its order, each beside the three counts.

    Nothing on the level of instances.
    """
    newest: str
    """As `page`, in no order: numbers of all studies that their dates let onto the page or before it.

    It reads no UIDs, which is most of the work: they decide between studies of one day only.
    """
    studies: str
    """Of instances the counts; the numbers of studies of which some are on the page, each beside a day on
    which they are; and how many come before all of them.

    Nothing on other levels, with a condition on objects, or with an order.
    """
    of_studies: str
    """As `rows`, where `$studies` and `$days` are these, and `$skip` says how many of theirs come before."""


def build(request: SearchRequest, owners: Sequence[FacilityName], *, look_ups: bool = True) -> Query:
    """The query of a request, limited to rows of `owners`.

    Args:
        request: what is asked.
        owners: whose rows may be seen.
        look_ups: leave it to `points` to find rows by UID, token or digest; otherwise rows are compared.

    Raises:
        FormatError: a column nobody may search or sort by, or a value that is none of its kind.
    """
    level = cast(Level, request.level)
    made = Conditions(owners, look_ups=look_ups)
    for name, values in sorted(request.conditions.items()):
        column = columns.by_name.get(name)
        if column is None or not column.search:
            raise FormatError("a condition names a column that cannot be searched")
        made.add(column, values)
    page = _page(level, made, request)
    by_study = level == "instance" and not (made.objects or request.order)
    return Query(
        rows=_rows(level, made, page, request.order),
        all_rows=_rows(level, made, "", request.order),
        counts=_counts(level, made),
        parameters=made.parameters,
        points=made.points,
        schema=schema(level),
        level=level,
        parts=" AND ".join(made.parts),
        checks=made.checks,
        texts=made.texts,
        objects=" AND ".join(made.objects),
        found=made.found,
        page=_numbers(level, made, request) if level != "instance" else "",
        newest=_newest(made, request),
        studies=_studies(made, request) if by_study else "",
        of_studies=_rows(level, made, f"{_limit(request)} OFFSET $skip", (), _CHOSEN) if by_study else "",
    )


# Everything put together here comes from `schemas.columns` and this module; values are parameters.


def _hits(made: Conditions, chosen: str) -> str:
    """The parts that match; with a condition on objects, each object that matches as a part of its own."""
    parts = " AND ".join(made.parts)
    if not made.objects:
        return f"SELECT {chosen} FROM parts WHERE {parts}"
    own = ", ".join(f'o."{column.name}"' for column in TOTALS)
    return (
        f"SELECT {chosen} FROM (SELECT p.* EXCLUDE (n_instances, first_object, {_TOTALS}), "
        f"1::BIGINT AS n_instances, o.object_sha256 AS first_object, {own} FROM ({_objects(made)}) o "
        f"JOIN (SELECT * FROM parts WHERE {parts}) p ON p.part = o.part)"
    )


def _objects(made: Conditions) -> str:
    where = " AND ".join(["NOT duplicate", *made.objects])
    return f"SELECT * FROM objects WHERE {where}"


def _counts(level: Level, made: Conditions) -> str:
    total = "sum(n_instances)"
    each = total if level == "instance" else f"count(DISTINCT {level})"
    return (
        f"SELECT coalesce({each}, 0)::BIGINT, coalesce({total}, 0)::BIGINT, "
        f"coalesce(sum(object_bytes), 0)::BIGINT FROM ({_hits(made, '*')})"
    )


def _ordered(order: Sequence[str], values: Mapping[str, str]) -> tuple[str, str]:
    """What an order says before the usual one: of the rows' columns, and of what makes them."""
    names, made = [], []
    for item in order:
        name, _, way = item.partition(":")
        if name not in values or way not in ("", "desc"):
            raise FormatError("an order is not a column of the answer, perhaps with :desc")
        said = " DESC NULLS LAST, " if way else " ASC NULLS LAST, "
        names.append(f'"{name}"{said}')
        made.append(f"{values[name]}{said}")
    return "".join(names), "".join(made)


@cache
def _values(level: Level) -> Mapping[str, str]:
    """The columns of an answer, each with the expression that makes it."""
    found = {c.name: _value(c, way, level) for c, way in columns.at_level(level)} | _more(level)
    return MappingProxyType(found)


def _rows(level: Level, made: Conditions, page: str, order: Sequence[str], also: Sequence[str] = ()) -> str:
    values = _values(level)
    shown = ", ".join(f'{value} AS "{name}"' for name, value in values.items())
    first, first_made = _ordered(order, values)
    if level == "instance":
        parts = " AND ".join([*made.parts, *also])
        return (
            f"SELECT {shown} FROM ({_objects(made)}) o "
            f"JOIN (SELECT * FROM parts WHERE {parts}) p ON p.part = o.part "
            f"ORDER BY {first_made}{_ORDER[level]} {page}"
        )
    hits = f"FROM ({_hits(made, '*')}) hits {page}"
    return f"SELECT {shown} {hits} GROUP BY {level} ORDER BY {first}{_ORDER[level]}"


def last(request: SearchRequest) -> int:
    """How many rows come up to the end of the page."""
    return request.offset + min(request.limit, MAX_ROWS)


def _limit(request: SearchRequest) -> str:
    return f"LIMIT {min(request.limit, MAX_ROWS):d}"


def _on_page(request: SearchRequest, number: str) -> str:
    """Of what has so many rows, and so many up to its end, that some are on the page."""
    return f"WHERE up_to > {request.offset:d} AND up_to - {number} < {last(request):d}"


def _day(study_date: str = "study_date") -> str:
    """A day as one that can be compared: rows without one come last."""
    return f"coalesce({study_date}, DATE '-infinity')"


def _page(level: Level, made: Conditions, request: SearchRequest) -> str:
    """What keeps to one page: of studies and series the few columns that say which ones come first."""
    if level == "instance":
        return f"{_limit(request)} OFFSET {request.offset:d}"
    return f"WHERE {level} IN (SELECT {level} FROM ({_numbers(level, made, request)}))"


def _numbers(level: Level, made: Conditions, request: SearchRequest) -> str:
    """Without an order, first the days of the page: the rest of the usual one is needed only within them."""
    hits = f"FROM ({_hits(made, '*')}) hits"
    if request.order:
        _, first = _ordered(request.order, _values(level))
        counts = ", ".join(
            f"(sum({each}) OVER ())::BIGINT" for each in ("1", "sum(n_instances)", "sum(object_bytes)")
        )
        return (
            f"SELECT {level}, {counts} {hits} GROUP BY {level} "
            f"ORDER BY {first}{_PAGE[level]} {_limit(request)} OFFSET {request.offset:d}"
        )
    return f"""WITH found AS MATERIALIZED (
    SELECT {level}, {_day("min(study_date)")} AS day, sum(n_instances) AS instances,
        sum(object_bytes) AS bytes
    {hits} GROUP BY {level}
), span AS (
    SELECT max(day) AS first, min(day) AS last, min(up_to - number) AS before FROM (
        SELECT day, count(*) AS number, sum(count(*)) OVER (ORDER BY day DESC) AS up_to
        FROM found GROUP BY day) {_on_page(request, "number")}
), page AS (
    SELECT {level}, before + row_number() OVER (ORDER BY {_PAGE[level]}) AS place {hits}, span
    WHERE {level} IN (SELECT {level} FROM found, span WHERE day BETWEEN last AND first)
    GROUP BY {level}, before
)
SELECT {level}, counts.* FROM page, (
    SELECT count(*), sum(instances)::BIGINT, sum(bytes)::BIGINT FROM found) counts
WHERE place > {request.offset:d} AND place <= {last(request):d} ORDER BY place"""


def _newest(made: Conditions, request: SearchRequest) -> str:
    most = last(request)
    return (
        "WITH found AS MATERIALIZED (SELECT study, min(study_date) AS day, sum(n_instances) AS instances, "
        f"sum(object_bytes) AS bytes FROM parts hits WHERE {' AND '.join(made.parts)} GROUP BY study), "
        "counts AS (SELECT count(*), sum(instances)::BIGINT, sum(bytes)::BIGINT FROM found), "
        "last AS (SELECT min(day) AS day, count(day) AS days FROM ("
        f"SELECT day FROM found ORDER BY day DESC NULLS LAST LIMIT {most:d})) "
        "SELECT found.study, counts.* FROM found, counts, last "
        f"WHERE found.day >= last.day OR last.days < {most:d}"
    )


_CHOSEN = (f"(study, {_day()}) IN (SELECT (unnest($studies::BIGINT[]), unnest($days::DATE[])))",)


def _studies(made: Conditions, request: SearchRequest) -> str:
    """First the days of the page, which are few, and then the studies of these days."""
    parts = " AND ".join(made.parts)
    day, on_page = _day(), _on_page(request, "instances")
    return f"""WITH days AS MATERIALIZED (
    SELECT {day} AS day, sum(n_instances) AS instances, sum(object_bytes) AS bytes
    FROM parts hits WHERE {parts} GROUP BY day
), span AS (
    SELECT max(day) AS first, min(day) AS last, min(up_to - instances) AS before FROM (
        SELECT *, sum(instances) OVER (ORDER BY day DESC) AS up_to FROM days) {on_page}
), found AS (
    SELECT {day} AS day, study, any_value(study_uid) AS uid, any_value(facility) AS facility,
        sum(n_instances) AS instances
    FROM parts hits, span WHERE {parts} AND {day} BETWEEN last AND first GROUP BY day, study
), page AS (
    SELECT list(study), list(day::VARCHAR), min(up_to - instances)::BIGINT FROM (
        SELECT found.*, before + sum(instances) OVER (ORDER BY day DESC, uid, facility) AS up_to
        FROM found, span) {on_page}
)
SELECT counts.*, page.* FROM page, (
    SELECT coalesce(sum(instances), 0)::BIGINT, coalesce(sum(bytes), 0)::BIGINT FROM days) counts"""


def rollup(level: Level) -> str:
    """All studies or series, with their tokens: a view for readers of the published catalog."""
    tokens = (c.name for c in columns.tokens())
    values = {**_values(level)} | {t: f'list_sort(list_distinct(flatten(list(hits."{t}"))))' for t in tokens}
    shown = ", ".join(f'{value} AS "{name}"' for name, value in values.items())
    return f"SELECT {shown} FROM base.parts hits WHERE hits.n_instances > 0 GROUP BY {level}"


@cache
def schema(level: Level) -> pa.Schema:
    """The columns of an answer at a level."""
    fields = [
        pa.field(c.name, _TEXTS if _listed(level, way) else c.arrow) for c, way in columns.at_level(level)
    ]
    if level == "study":
        fields.append(pa.field("n_series", pa.int64()))
    if level == "instance":
        fields.append(pa.field(CONFLICT, pa.bool_()))
    else:
        fields.append(pa.field("n_instances", pa.int64()))
    return pa.schema(fields)


def _more(level: Level) -> dict[str, str]:
    if level == "instance":
        key = "(p.facility, o.sop_instance_uid)"
        return {CONFLICT: f"{key} IN (SELECT (facility, sop_instance_uid) FROM conflicts)"}
    series = {"n_series": "coalesce(len(list_distinct(list(hits.series_uid))), 0)"}
    return (series if level == "study" else {}) | {"n_instances": "sum(hits.n_instances)::BIGINT"}


def _listed(level: Level, way: Rollup) -> bool:
    return level != "instance" and way == "list"


def _value(column: Column, way: Rollup, level: Level) -> str:
    """One column of a row; above instances, one value of many."""
    if level == "instance":
        return f'{"o" if column in OWN else "p"}."{column.name}"'
    return rolled_up(column, way)


def rolled_up(column: Column, way: Rollup) -> str:
    """One value of many parts, which a statement calls `hits`."""
    name = f'hits."{column.name}"'
    return {
        "key": f"any_value({name})",
        "first": f"arg_min({name}, hits.first_object)",
        "min": f"min({name})",
        "max": f"max({name})",
        "sum": f"sum({name})::BIGINT",
        "list": f"coalesce(list_sort(list_distinct(list({name}))), [])",  # cheaper than DISTINCT
    }[way]
