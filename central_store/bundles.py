"""What there is of one study and modality, as one row: lists of studies read these, not all their parts.

A bundle is up to `MOST` parts of one study that agree in `KEY`: everything of a study that can be searched,
and the modality. A condition on these columns holds for a whole bundle or not at all, as it does for a part,
and there is about one bundle for three parts. All that an answer shows of a study is put together in it
already.

Guarantees: an answer put together of bundles is the one that their parts give, whichever parts are together
in one. A batch adds bundles of its own parts and changes none. However many parts a study has, a bundle is
small.

Leaves to others: keeping them (`central_store.bundling`), which match (`central_store.sheets`), answers
(`central_store.study_lists`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from central_store import packed
from schemas import columns, conditions, query
from schemas.columns import Column, Rollup

KEY: tuple[Column, ...] = tuple(
    c for c in columns.shared() if c.search and (c.level == "study" or c.name == "modality")
)
_ASKED = frozenset(c.name for c in KEY)
FOLDED: dict[str, str] = {c.name: conditions.folded(c) for c in KEY if c.search == "text"}
"""Columns of text, and the names of the same in lower case."""

MOST = 32
"""Parts of a bundle: what is read at once is bounded, whatever a facility sends."""

SERIES = "series"
"""The column of the UIDs of its series: of what several bundles become."""
_LISTED = columns.by_name["series_uid"]
SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("study", pa.int64()),
        ("n_parts", pa.int64()),
        ("first_object", pa.string()),
        (SERIES, columns.by_name["domains"].arrow),
        *((c.name, c.arrow) for c in columns.tokens()),
        *((name, pa.string()) for name in FOLDED.values()),
        *query.schema("study"),
    ]
)
"""The columns of bundles: the number of the first part, of the study, and how many parts; the object by which
bundles are ordered where the first value counts; what is searched; and an answer's columns."""
_WAYS: dict[str, Rollup] = {
    **{column.name: way for column, way in columns.at_level("study")},
    "part": "min", "n_parts": "sum", "n_instances": "sum", "first_object": "min", SERIES: "list",
}  # fmt: skip
"""How one value comes of many; of the others any: they are the same, or stand for nothing."""
_KEYS = ("study", *(c.name for c in KEY))
_COMPARED = {pa.timestamp("us", tz="UTC"): pa.int64()}
"""Types whose values are looked at as others: each list of times looks for a package of time zones."""

_MADE: dict[str, str] = {
    "part": "min(part)",
    "study": "study",
    "n_parts": "count(*)",
    "first_object": "min(first_object)",
    SERIES: query.rolled_up(_LISTED, "list"),
    **{c.name: f'"{c.name}"' for c in columns.tokens()},
    **{folded: f'lower("{name}")' for name, folded in FOLDED.items()},
    **{c.name: query.rolled_up(c, way) for c, way in columns.at_level("study")},
    "n_series": f"len({query.rolled_up(_LISTED, 'list')})",
    "n_instances": "sum(n_instances)::BIGINT",
}
_SAME = ", ".join(["study", *(f'"{c.name}"' for c in KEY)])


def _select(where: str) -> str:
    return f"""SELECT {", ".join(f'{_MADE[each.name]} AS "{each.name}"' for each in SCHEMA)} FROM (
    SELECT *, (row_number() OVER (PARTITION BY {_SAME} ORDER BY part) - 1) // {MOST} AS piece
    FROM parts WHERE n_instances > 0 AND {where}
) hits GROUP BY {_SAME}, piece ORDER BY min(part)"""


OF_PARTS = _select("part BETWEEN $low AND $high AND study NOT IN (SELECT unnest($but::BIGINT[]))")
"""The bundles of parts with these numbers, but for some studies: all parts of a batch, or of several."""
OF_STUDIES = _select("study IN (SELECT unnest($studies::BIGINT[]))")
"""The bundles of studies."""


def of_parts(parts: pa.Table, fold: Callable[[list[str | None]], list[str | None]]) -> pa.Table:
    """Each part as a bundle of its own; what `OF_PARTS` says of many at once.

    Args:
        parts: shared columns, numbers, and what parts sum up.
        fold: texts in lower case, as DuckDB has it.
    """
    folded = {name: fold(parts[name].to_pylist()) for name in FOLDED}
    made: dict[str, Any] = {FOLDED[name]: values for name, values in folded.items()}
    made[SERIES] = packed.lists(parts["series_uid"].to_pylist())
    made["n_series"] = [*map(len, made[SERIES])]
    made["n_parts"] = [1] * len(parts)
    for each in SCHEMA:
        if each.name not in made:
            values = parts[each.name]
            made[each.name] = packed.lists(values.to_pylist()) if pa.types.is_list(each.type) else values
    return pa.table(made, schema=SCHEMA)


def together(rows: pa.Table) -> list[list[int]]:
    """The places of rows that may be one: of one study and with one key, and not of too many parts.

    Args:
        rows: bundles by their first objects.
    """
    keys = zip(*(rows[name].to_pylist() for name in _KEYS), strict=True)
    groups: dict[str, list[list[int]]] = {}
    held: dict[str, int] = {}
    for at, (key, parts) in enumerate(zip(map(repr, keys), rows["n_parts"].to_pylist(), strict=True)):
        mine = groups.setdefault(key, [])
        held[key] = held.get(key, 0) + parts
        if not mine or held[key] > MOST:
            mine.append([])
            held[key] = parts
        mine[-1].append(at)
    return [group for several in groups.values() for group in several]


def merged(rows: pa.Table, groups: Sequence[Sequence[int]]) -> pa.Table:
    """Each group of rows as one.

    Args:
        rows: columns of bundles, among them `SERIES`.
        groups: the places of those that become one, of which the first has the lowest first object.
    """
    made: dict[str, pa.Array] = {}
    for name, field in zip(rows.column_names, rows.schema, strict=True):
        kind = _COMPARED.get(field.type, field.type)
        values = rows[name].cast(kind).to_pylist()
        one = [_one(_WAYS.get(name, "key"), [values[at] for at in group]) for group in groups]
        made[name] = pa.array(one, kind).cast(field.type)
    made["n_series"] = pc.list_value_length(made[SERIES]).cast(pa.int64())
    return pa.table(made, schema=rows.schema)


def _one(way: Rollup, values: list[Any]) -> Any:
    """One value of several bundles'; mostly they have the same."""
    return values[0] if way != "sum" and values.count(values[0]) == len(values) else packed.UP[way](values)


def hold(asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether these conditions hold for a whole bundle or not at all, and are soon compared.

    Texts are compared in the lower case of DuckDB, which Python's is for ASCII only.
    """
    texts = [value for name in asked.keys() & FOLDED.keys() for value in asked[name]]
    wild = sum(map(conditions.is_wild, texts))
    return asked.keys() <= _ASKED and wild <= conditions.FEW and all(map(str.isascii, texts))
