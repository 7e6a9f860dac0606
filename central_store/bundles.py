"""What a batch has of one study and modality, as one row: lists of studies read these, not all their parts.

A bundle is up to `MOST` parts of one study, from one batch, that agree in `KEY`: everything of a study that
can be searched, and the modality. A condition on these columns holds for a whole bundle or not at all, as it
does for a part, and there is about one bundle for three parts. All that an answer shows of a study is put
together in it already.

Guarantees: an answer put together of bundles is the one that their parts give. Bundles follow from the parts
of one batch, so that adding a batch adds its own and changes none; they are made anew when which row of a
file stands in answers changes. However many parts a study has, a bundle is small.

Leaves to others: keeping them (`central_store.bundling`), which match (`central_store.sheets`), answers
(`central_store.study_lists`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas import columns, conditions, query
from schemas.columns import Column

KEY: tuple[Column, ...] = tuple(
    c for c in columns.shared() if c.search and (c.level == "study" or c.name == "modality")
)
_ASKED: dict[str, Column] = {c.name: c for c in KEY}
_TOKENS = tuple(c for c in KEY if c.search == "token")
FOLDED: dict[str, str] = {c.name: conditions.folded(c) for c in KEY if c.search == "text"}
"""Columns of text, and the names of the same in lower case."""

MOST = 32
"""Parts of a bundle: what is read at once is bounded, whatever a facility sends."""

SERIES = "series"
"""The column of the UIDs of its series; answers have their number."""
_LISTED = columns.by_name["series_uid"]
_SHOWN = tuple(each for each in query.schema("study") if each.name != "n_series")
SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("study", pa.int64()),
        ("first_object", pa.string()),
        (SERIES, columns.by_name["domains"].arrow),
        *((c.name, c.arrow) for c in _TOKENS),
        *((name, pa.string()) for name in FOLDED.values()),
        *_SHOWN,
    ]
)
"""The columns of bundles: the number of the first part and of the study, the object by which bundles are
ordered where the first value counts, what is searched, and an answer's columns."""

_MADE: dict[str, str] = {
    "part": "min(part)",
    "study": "study",
    "first_object": "min(first_object)",
    SERIES: query.rolled_up(_LISTED, "list"),
    **{c.name: f'"{c.name}"' for c in _TOKENS},
    **{folded: f'lower("{name}")' for name, folded in FOLDED.items()},
    **{c.name: query.rolled_up(c, way) for c, way in columns.at_level("study")},
    "n_instances": "sum(n_instances)::BIGINT",
}
_SAME = ", ".join(["batch_id", "study", *(f'"{c.name}"' for c in KEY)])
SELECT = f"""SELECT {", ".join(f'{_MADE[each.name]} AS "{each.name}"' for each in SCHEMA)} FROM (
    SELECT *, (row_number() OVER (PARTITION BY {_SAME} ORDER BY part) - 1) // {MOST} AS piece
    FROM parts WHERE n_instances > 0 AND part BETWEEN $low AND $high
) hits GROUP BY {_SAME}, piece ORDER BY min(part)"""
"""The bundles of parts with these numbers: all those of a batch, or of several."""


def hold(asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether these conditions hold for a whole bundle or not at all.

    Texts are compared in the lower case of DuckDB, which Python's is for ASCII only.
    """
    return _ASKED.keys() >= asked.keys() and all(
        value.isascii() for name in asked.keys() & FOLDED.keys() for value in asked[name]
    )
