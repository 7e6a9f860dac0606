"""Searches that find little, and of large ones the page: by numbers first, then by what the parts say packed.

    studies, counts   bundles, if the conditions are on what these share (`central_store.study_lists`)
    studies, series   the parts that match, if they are few; otherwise first the numbers of those on the page,
                      then the parts of these
    instances         the parts that match and then their objects; or the objects, if they have a condition
                      of their own, and then their parts

Guarantees: the same rows in the same order, and the same counts, as the statements of `schemas.query`
give over all columns; or none, when they are for DuckDB to put together: then ask those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from central_store import bundles, packed
from central_store.catalog import Catalog
from central_store.catalog_tables import OWN
from central_store.packed import Part
from central_store.study_lists import Listed
from schemas import conditions, query
from schemas.conditions import Points
from schemas.messages import SearchRequest
from schemas.query import MAX_ROWS, Query

FEW = 1000
"""Parts that are read without counting them first."""
MANY = 5000
"""Parts of one page, or objects, above which DuckDB is quicker."""

SMALL = 1 << 15
"""Bundles of a catalog of which one statement finds parts and reads them in less time than two."""


class Found(NamedTuple):
    """An answer's rows and counts."""

    matches: int
    instances: int
    bytes: int
    rows: pa.Table | None
    """None when only counts were asked for."""


def find(catalog: Catalog, built: Query, request: SearchRequest) -> Found | None:
    """The rows that a request asks for, and the counts of all that match; None: too many.

    Args:
        catalog: where to look.
        built: the request as SQL.
        request: for its page and order.

    Raises:
        CatalogError, Refused: as `Catalog.table`.
    """
    unordered = built.level == "study" and not request.order
    counted = built.level != "series" and request.count_only
    if (unordered or counted) and bundles.hold(request.conditions):
        return _listed(catalog, built, request)
    if request.count_only:
        return None
    if built.level == "instance":
        return _instances(catalog, built, request)
    return _groups(catalog, built, request) if not built.objects else None


def _listed(catalog: Catalog, built: Query, request: SearchRequest) -> Found:
    near = _near(catalog, built)
    found = Listed(catalog.bundles(), request, built.parameters["owners"], None if near is None else near[1])
    matches = found.instances if built.level == "instance" else found.matches
    return Found(matches, found.instances, found.bytes, None if request.count_only else found.page())


# Everything put together here comes from `schemas.query` and this module; values are parameters.


Parts = list[tuple[int, Part]]


def _read(
    catalog: Catalog, select: str, wheres: Sequence[str], given: Mapping[str, Any], points: Points, limit: int
) -> list[tuple[int, Any]] | None:
    """Two columns of parts that meet any of these conditions; None: more than the limit."""
    sql = " UNION ALL ".join(f"{select} WHERE {where}" for where in wheres)
    found = catalog.rows(f"{sql} LIMIT {limit + 1:d}", given, points)
    return None if len(found) > limit else found


def _parts(catalog: Catalog, built: Query, number: str, limit: int) -> Parts | None:
    """The parts that match, each beside a number; None: more than the limit.

    Where look-ups say which ones they may be, the other conditions are checked here: each column that a
    statement reads costs more than all of these.
    """
    select, near = f"SELECT {number}, packed FROM parts", _near(catalog, built)  # noqa: S608
    if near is None:
        return _looked_for(catalog, built, number, limit)
    column, numbers = near
    if not numbers:
        return []
    # DuckDB skips what cannot have one number; a list of some takes three times as long.
    few = [conditions.among(column, "near", [one]) for one in numbers[: conditions.FEW]]
    asked = few if len(few) == len(numbers) else [conditions.among(column, "near")]
    wheres = [" AND ".join([one, *built.texts]) for one in asked]
    found = _read(catalog, select, wheres, {**built.parameters, "near": numbers}, {}, limit)
    return None if found is None else packed.chosen(found, built.checks)


def _looked_for(catalog: Catalog, built: Query, number: str, limit: int) -> Parts | None:
    """The parts that a look at all of them finds: first numbers, as of many nothing more is read."""
    if sum(len(sheet.rows) for sheet in catalog.bundles()) < SMALL:
        select, given = f"SELECT {number}, packed FROM parts", built.parameters  # noqa: S608
        read = _read(catalog, select, [built.parts], given, {}, limit)
        return None if read is None else packed.chosen(read, {})
    found = _read(catalog, f"SELECT {number}, part FROM parts", [built.parts], built.parameters, {}, limit)  # noqa: S608
    if not found:
        return None if found is None else []
    numbers = {part: mine for mine, part in found}
    which = conditions.among("part", "among", [*numbers])
    texts = catalog.rows(f"SELECT part, packed FROM parts WHERE {which}", {"among": [*numbers]})  # noqa: S608
    return packed.chosen([(numbers[part], text) for part, text in texts], {})


def _near(catalog: Catalog, built: Query) -> tuple[str, Sequence[int]] | None:
    """A column of parts and the numbers in it that look-ups leave; None without a condition of that kind."""
    left: dict[str, set[int]] = {}
    for at in built.points.values():
        if at.column != "number":
            numbers = {*catalog.numbers(at)}
            left[at.column] = left.get(at.column, numbers) & numbers
    columns = sorted(left, key=lambda column: len(left[column]))
    return (columns[0], sorted(left[columns[0]])) if columns else None


def _numbered(catalog: Catalog, built: Query, number: str, numbers: Sequence[int]) -> Parts | None:
    """Of parts with these numbers those that match; None: too many."""
    where = f"{conditions.among(number, 'among', numbers)} AND {built.parts}"
    select, given = f"SELECT {number}, packed FROM parts", {**built.parameters, "among": list(numbers)}  # noqa: S608
    found = _read(catalog, select, [where], given, built.points, MANY)
    return None if found is None else packed.chosen(found, {})


def _groups(catalog: Catalog, built: Query, request: SearchRequest) -> Found | None:
    level = built.level
    parts = None if request.order else _parts(catalog, built, level, FEW)
    last = query.last(request)
    if parts is not None:
        groups = packed.newest_first(level, packed.grouped(parts))
        counts = packed.totals(part for _, part in parts)
        rows = packed.answer(level, groups[request.offset : last], built.schema)
        return Found(len(groups), *counts, rows)
    newest = level == "study" and not (request.order or request.offset)
    numbers = catalog.rows(built.newest, built.parameters, built.points) if newest else []
    if not numbers or len(numbers) > 2 * request.limit:  # of another order, or most are of one day
        newest, numbers = False, catalog.rows(built.page, built.parameters, built.points)
    if not numbers:  # perhaps the page is behind the last one: nothing says how many there are
        return None
    parts = _numbered(catalog, built, level, [number for number, *_ in numbers])
    if parts is None:
        return None
    by_number = packed.grouped(parts)
    if newest:  # all that can be on the first page
        page = packed.newest_first(level, by_number)[:last]
    else:
        page = [by_number[number] for number, *_ in numbers]
    _, matches, instances, size = numbers[0]
    return Found(matches, instances, size, packed.answer(level, page, built.schema))


_OBJECTS = f"""SELECT {", ".join(f'"{column.name}"' for column in OWN)}, part FROM objects
WHERE NOT duplicate AND """  # noqa: S608
_AT = {column.name: at for at, column in enumerate(OWN)}


def _instances(catalog: Catalog, built: Query, request: SearchRequest) -> Found | None:
    if request.order:
        return None
    if built.objects:
        found = _objects(catalog, built)
        if found is None:
            return None
        parts = _numbered(catalog, built, "part", sorted({part for *_, part in found}))
    else:
        parts = _parts(catalog, built, "part", FEW)
        if parts is None or packed.totals(part for _, part in parts)[0] > MANY:
            return None
        numbers = sorted(number for number, _ in parts)
        which = conditions.among("objects.part", "parts", numbers)  # there is no index on this one
        found = catalog.rows(f"{_OBJECTS}{which}", {"parts": numbers})
    disputed = catalog.disputed([row[_AT["sop_instance_uid"]] for row in found])
    answered = packed.instances(found, dict(parts or ()), disputed, built.schema)
    size = sum(answered["object_bytes"].to_pylist())
    page = answered.slice(request.offset, min(request.limit, MAX_ROWS))
    return Found(len(answered), len(answered), size, page)


def _objects(catalog: Catalog, built: Query) -> list[tuple[Any, ...]] | None:
    """The objects that match, by their numbers; the values are compared here. None: too many."""
    points = (at for at in built.points.values() if at.column == "number")
    numbers = sorted(set[int].intersection(*({*catalog.numbers(at)} for at in points)))
    if len(numbers) > MANY:
        return None
    rows = catalog.rows(f"{_OBJECTS}{conditions.among('number', 'numbers', numbers)}", {"numbers": numbers})
    for name, values in built.found.items():
        at, wanted = _AT[name], frozenset(values)
        rows = [row for row in rows if row[at] in wanted]
    return rows
