"""A search request as SQL text and parameters. Pure; from the column table only.

Guarantees: no text of a request becomes SQL: columns are looked up in `schemas.columns`, values are
parameters. Every query is limited to the facilities the asker may see, whatever its conditions. The order
is total, so that pages fit together: newest study first, then numbers, then UIDs.

Leaves to others: running it (`central_store.catalog`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

import pyarrow as pa

from schemas import columns
from schemas.columns import Column, Level, Rollup
from schemas.errors import FormatError
from schemas.messages import SearchRequest
from schemas.names import FacilityName

MAX_ROWS = 50_000
"""Most rows in one answer, whatever its limit says; the rest is asked for with an offset."""

_FEW = 16

KEYS: dict[Level, tuple[str, ...]] = {
    "study": ("facility", "study_uid"),
    "series": ("facility", "study_uid", "series_uid"),
    "instance": ("facility", "study_uid", "series_uid", "sop_instance_uid", "object_sha256"),
}
_ORDER: dict[Level, str] = {
    "study": "study_date DESC NULLS LAST, study_uid, facility",
    "series": "study_date DESC NULLS LAST, study_uid, facility, series_number, series_uid",
    "instance": (
        "study_date DESC NULLS LAST, study_uid, facility, series_number, series_uid, "
        "instance_number, sop_instance_uid, object_sha256"
    ),
}
_TEXTS = columns.by_name["domains"].arrow
CONFLICT = "conflict"
"""Column of an answer at instance level: the facility sent different files of this SOP instance."""


@dataclass(frozen=True)
class Query:
    """SQL and its parameters."""

    rows: str
    """One row for each study, series or instance, at most `MAX_ROWS`."""
    counts: str
    """One row: matches, instances, bytes."""
    parameters: Mapping[str, Any]
    schema: pa.Schema
    """Of the rows."""


def build(request: SearchRequest, owners: Sequence[FacilityName]) -> Query:
    """The query of a request, limited to rows of `owners`.

    Raises:
        FormatError: a column nobody may search, or a value that is none of its kind.
    """
    level = cast(Level, request.level)
    parameters: dict[str, Any] = {"owners": list(owners)}
    where = ["NOT duplicate", "facility IN (SELECT unnest($owners::VARCHAR[]))"]
    for name, values in sorted(request.conditions.items()):
        column = columns.by_name.get(name)
        if column is None or not column.search:
            raise FormatError("a condition names a column that cannot be searched")
        where.append(_condition(column, values, parameters))
    # Everything put together here comes from `schemas.columns` and this module; values are parameters.
    hits = f"SELECT * FROM instances WHERE {' AND '.join(where)}"  # noqa: S608
    keys = ", ".join(KEYS[level])
    grouped = "" if level == "instance" else f" GROUP BY {keys}"
    each = (f'{_value(column, way, level)} AS "{column.name}"' for column, way in columns.at_level(level))
    shown = ", ".join([*each, *_more(level)])
    limit = min(request.limit, MAX_ROWS)
    return Query(
        rows=f"SELECT {shown} FROM ({hits}) AS hits{grouped} "  # noqa: S608
        f"ORDER BY {_ORDER[level]} LIMIT {limit:d} OFFSET {request.offset:d}",
        counts=f"SELECT count(*), coalesce(sum(n), 0)::BIGINT, coalesce(sum(b), 0)::BIGINT "  # noqa: S608
        f"FROM (SELECT count(*) AS n, sum(object_bytes) AS b FROM ({hits}) GROUP BY {keys})",
        parameters=parameters,
        schema=schema(level),
    )


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


def _more(level: Level) -> list[str]:
    if level == "instance":
        key = "(facility, sop_instance_uid)"
        return [f"{key} IN (SELECT {key} FROM conflicts) AS {CONFLICT}"]  # noqa: S608  # no text from outside
    series = ["count(DISTINCT series_uid) AS n_series"] if level == "study" else []
    return [*series, "count(*) AS n_instances"]


def _listed(level: Level, way: Rollup) -> bool:
    return level != "instance" and way == "list"


def _value(column: Column, way: Rollup, level: Level) -> str:
    """One column of a row; above instances, one value of many."""
    name = f'hits."{column.name}"'
    if level == "instance" or way == "key":
        return name
    return {
        "first": f"arg_min({name}, hits.object_sha256)",
        "min": f"min({name})",
        "max": f"max({name})",
        "sum": f"sum({name})::BIGINT",
        "list": f"coalesce(list_sort(list(DISTINCT {name}) FILTER ({name} IS NOT NULL)), [])",
    }[way]


def _condition(column: Column, values: Sequence[str], parameters: dict[str, Any]) -> str:
    if not values:
        raise FormatError(f"the condition on {column.name} has no value")
    name, key = f'"{column.name}"', f"c_{column.name}"
    if column.search == "date":
        return _dates(name, key, values, parameters)
    if column.search == "text":
        return _texts(name, key, values, parameters)
    parameters[key] = list(values)
    if column.search == "token":
        if len(values) <= _FEW:
            return f"list_has_any({name}, ${key}::VARCHAR[])"  # compares each with each
        return (
            f"rowid IN (SELECT r FROM (SELECT rowid AS r, unnest({name}) AS t FROM instances) "  # noqa: S608
            f"WHERE t IN (SELECT unnest(${key}::VARCHAR[])))"
        )
    return f"{name} IN (SELECT unnest(${key}::VARCHAR[]))"


def _texts(name: str, key: str, values: Sequence[str], parameters: dict[str, Any]) -> str:
    plain = [value for value in values if not set(value) & set("*?")]
    wild = [value for value in values if set(value) & set("*?")]
    if len(wild) > 100:
        raise FormatError("a condition has more than 100 values with wildcards")
    parts = []
    if plain:
        parameters[key] = plain
        parts.append(f"lower({name}) IN (SELECT lower(unnest(${key}::VARCHAR[])))")
    for number, value in enumerate(wild):
        parameters[f"{key}_{number}"] = like(value)
        parts.append(f"{name} ILIKE ${key}_{number} ESCAPE '!'")
    return f"({' OR '.join(parts)})"


def like(text: str) -> str:
    """A text with `*` and `?` as a LIKE pattern with the escape character `!`."""
    for char in "!%_":
        text = text.replace(char, f"!{char}")
    return text.replace("*", "%").replace("?", "_")


def _dates(name: str, key: str, values: Sequence[str], parameters: dict[str, Any]) -> str:
    if len(values) > 100:
        raise FormatError("a condition has more than 100 periods")
    parts = []
    for number, value in enumerate(values):
        first, dots, last = value.partition("..")
        if not dots or not (first or last):
            raise FormatError("a date condition is not FIRST..LAST with at least one of the two")
        bounds = []
        for text, sign, end in ((first, ">=", "a"), (last, "<=", "b")):
            if text:
                parameters[f"{key}_{number}{end}"] = _day(text)
                bounds.append(f"{name} {sign} ${key}_{number}{end}")
        parts.append(" AND ".join(bounds))
    return f"({' OR '.join(parts)})"


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise FormatError("a date condition has a day that is none") from error
    if day.isoformat() != text:
        raise FormatError("a date condition is not written YYYY-MM-DD")
    return day
