"""What a search request asks for, as conditions in SQL. Pure; from the column table only.

Guarantees: no text of a request becomes SQL: columns are looked up in `schemas.columns`, values are
parameters. Whatever is asked, rows of other facilities than the permitted ones are not found.

Leaves to others: the statements around them (`schemas.query`), finding numbers (`central_store.lookups`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Any, NamedTuple

from schemas import columns
from schemas.columns import Column, Level
from schemas.errors import FormatError
from schemas.names import FacilityName

ENTITIES: dict[str, Level] = {
    c.name: c.level for c in columns.COLUMNS if c.search == "uid" and c.level != "instance"
}
"""UIDs of studies and series; a column of `parts` with the level's name is their number."""
TOKEN = "token"  # noqa: S105  # the name of a kind
FEW = 16
"""Values that are compared one by one."""
_WRITTEN = 64
_EPOCH = date(1970, 1, 1)

Period = tuple[date | None, date | None]
"""The first and the last day, both included; at least one is there."""
Check = Callable[[Any], bool]
"""Whether a value in a part is one of those asked for."""


class Point(NamedTuple):
    """A parameter that is numbers from a look-up: of which column, and what is looked up of whom."""

    column: str
    kind: str
    values: Sequence[str]
    owners: Sequence[str] = ()


Points = Mapping[str, Point]
"""By the parameters' names."""


def among(column: str, parameter: str, found: Sequence[int] = ()) -> str:
    """That a column is one of the numbers of a parameter, or of those found.

    DuckDB finds one number by what it knows of each block, and some by an index, which is on `part` of
    `parts`. Of a column without one a list of some is slower than a join.
    """
    if len(found) == 1:
        return f"{column} = {found[0]:d}"
    if column == "part" and 0 < len(found) <= _WRITTEN:
        return f"{column} IN ({', '.join(map(str, found))})"
    return f"{column} IN (SELECT unnest(${parameter}::BIGINT[]))"


def folded(column: Column) -> str:
    """The name of a column of text in lower case, which a catalog has too: folding takes as long as LIKE."""
    return f"folded_{column.name}"


def _of_one(owners: Sequence[FacilityName]) -> str:
    """That the facility is one of the owners, in the words that DuckDB answers soonest."""
    if len(owners) == 1:
        return "list_contains($owners::VARCHAR[], facility)"  # becomes `=`; of several it becomes a join
    if len(owners) <= _WRITTEN:
        return "list_position($owners::VARCHAR[], facility) > 0"
    return "facility IN (SELECT unnest($owners::VARCHAR[]))"


class Conditions:
    """What must hold of a part, and of an object; with the parameters."""

    def __init__(self, owners: Sequence[FacilityName], *, look_ups: bool) -> None:
        self._look_ups = look_ups
        self.parameters: dict[str, Any] = {"owners": list(owners)}
        self.points: dict[str, Point] = {}
        self.parts = ["n_instances > 0", _of_one(owners)]
        self.objects: list[str] = []
        self.found: dict[str, Sequence[str]] = {}
        self.texts: list[str] = []
        self.checks: dict[str, Check] = {"facility": frozenset(owners).__contains__}

    def add(self, column: Column, values: Sequence[str]) -> None:
        """A column is to have one of these values; raises `FormatError` if one is none of its kind."""
        where = self.objects if column.distinct else self.parts
        where.append(_condition(column, values, self.parameters, look_ups=self._look_ups))
        if column.search == "text":
            self.texts.append(where[-1])
        elif column.distinct:
            self.found[column.name] = values
        else:
            self._check(column, values)
        if not self._look_ups:
            return
        if column.distinct:
            self._point(where, column.name, "number", column.name, values)
        elif column.search == "token":
            self._point(where, column.name, "study", TOKEN, values)
        elif column.name in ENTITIES:
            self._point(where, column.name, ENTITIES[column.name], column.name, values)

    def _check(self, column: Column, values: Sequence[str]) -> None:
        wanted = frozenset(values)
        if column.search == "token":
            self.checks[column.name] = lambda found: not wanted.isdisjoint(found)
        elif column.search == "date":
            spans = [period(value) for value in values]
            self.checks[column.name] = partial(_within, spans)
        else:
            visible = self.checks.get(column.name, wanted.__contains__)  # of owners, those asked for
            self.checks[column.name] = lambda found: found in wanted and visible(found)

    def _point(self, where: list[str], name: str, number: str, kind: str, values: Sequence[str]) -> None:
        self.points[f"at_{name}"] = Point(number, kind, list(values), self.parameters["owners"])
        where.insert(0, among(number, f"at_{name}"))


def _condition(column: Column, values: Sequence[str], parameters: dict[str, Any], *, look_ups: bool) -> str:
    if not values:
        raise FormatError(f"the condition on {column.name} has no value")
    name, key = f'"{column.name}"', f"c_{column.name}"
    if column.search == "date":
        return _dates(name, key, values, parameters)
    if column.search == "text":
        text = f'"{folded(column)}"' if look_ups else f"lower({name})"
        return _texts(text, key, values, parameters)
    if len(values) == 1 and column.search != "token":
        parameters[key] = values[0]
        return f"{name} = ${key}"
    parameters[key] = list(values)
    if column.search == "token":
        if len(values) <= FEW:
            return f"list_has_any({name}, ${key}::VARCHAR[])"  # compares each with each
        near = f" WHERE {among('study', f'at_{column.name}')}" if look_ups else ""
        return (
            f"part IN (SELECT r FROM (SELECT part AS r, unnest({name}) AS t FROM parts{near}) "
            f"WHERE t IN (SELECT unnest(${key}::VARCHAR[])))"
        )
    return f"{name} IN (SELECT unnest(${key}::VARCHAR[]))"


def _texts(text: str, key: str, values: Sequence[str], parameters: dict[str, Any]) -> str:
    plain = [value for value in values if not is_wild(value)]
    wild = [value for value in values if is_wild(value)]
    if len(wild) > 100:
        raise FormatError("a condition has more than 100 values with wildcards")
    parts = []
    if 0 < len(plain) <= FEW:
        asked = {f"{key}_p{number}": value for number, value in enumerate(plain)}
        parameters.update(asked)
        parts.append(f"{text} IN ({', '.join(f'lower(${one})' for one in asked)})")  # no join: half
    elif plain:
        parameters[key] = plain
        parts.append(f"{text} IN (SELECT lower(unnest(${key}::VARCHAR[])))")
    for number, value in enumerate(wild):
        parameters[f"{key}_{number}"] = pattern = like(value)
        escape = " ESCAPE '!'" if "!" in pattern else ""  # twice the time
        parts.append(f"{text} LIKE lower(${key}_{number}){escape}")  # ILIKE takes three times as long
    return f"({' OR '.join(parts)})"


def is_wild(text: str) -> bool:
    """Whether a text has wildcards."""
    return "*" in text or "?" in text


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


def _within(spans: Sequence[Period], counted: int | None) -> bool:
    """Whether a day, counted as Arrow counts, lies in one of them."""
    if counted is None:
        return False
    found = _EPOCH + timedelta(counted)
    return any((not first or first <= found) and (not last or found <= last) for first, last in spans)


def period(text: str) -> Period:
    """The first and the last day of a condition; raises `FormatError` if one is none."""
    first, last = (_day(each) if each else None for each in text.split(".."))
    return first, last


def _day(text: str) -> date:
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise FormatError("a date condition has a day that is none") from error
    if found.isoformat() != text:
        raise FormatError("a date condition is not written YYYY-MM-DD")
    return found
