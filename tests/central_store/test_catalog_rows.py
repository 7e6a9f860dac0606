"""A batch's rows as objects and parts: what a plain look at all rows gives."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from central_store.catalog_rows import arrange
from schemas import columns
from tests.central_store.test_catalog_same import any_row

_SHARED = [column.name for column in columns.shared()]


def rows_of(seed: int, many: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        any_row(rng)
        | {"object_sha256": f"{rng.randrange(16**8):064x}", "object_bytes": rng.randrange(1000),
           "object_offset": 4096 * n, "facility": "clinic-a", "instance_number": rng.choice([None, 1, 2, 3])}
        for n in range(many)
    ]  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    fields = [*((c.name, c.arrow) for c in columns.COLUMNS), ("object_offset", pa.int64())]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def place(row: dict[str, Any]) -> list[tuple[bool, Any]]:
    names = ("study_uid", "series_uid", "instance_number", "object_offset")
    return [(row[name] is None, 0 if row[name] is None else row[name]) for name in names]


@pytest.mark.parametrize("seed", range(8))
def test_objects_are_in_order_and_parts_are_what_agrees(seed: int) -> None:
    rows = sorted(rows_of(seed, 1 + seed * 20), key=place)
    shuffled = random.Random(seed).sample(rows, len(rows))
    objects, parts = arrange(table_of(shuffled), 100)
    assert objects["object_offset"].to_pylist() == [row["object_offset"] for row in rows]
    assert objects["number"].to_pylist() == [*range(100, 100 + len(rows))]
    by_key: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        by_key.setdefault(repr([row[name] for name in _SHARED]), []).append(at)
    part_of = {at: 100 + places[0] for places in by_key.values() for at in places}
    assert objects["part"].to_pylist() == [part_of[at] for at in range(len(rows))]
    firsts: dict[Any, int] = {}
    for found, places in zip(parts.to_pylist(), by_key.values(), strict=True):
        mine = [rows[at] for at in places]
        assert found["part"] == 100 + places[0]
        assert [found[name] for name in _SHARED] == [mine[0][name] for name in _SHARED]
        assert found["n_instances"] == len(mine)
        assert found["first_object"] == min(row["object_sha256"] for row in mine)
        assert found["object_bytes"] == sum(row["object_bytes"] for row in mine)
        assert found["captured_at"] == max(row["captured_at"] for row in mine)
        study, series = (found["study_uid"],), (found["study_uid"], found["series_uid"])
        assert found["study"] == firsts.setdefault(study, found["part"])
        assert found["series"] == firsts.setdefault(series, found["part"])


def test_lists_that_read_the_same_are_not() -> None:
    one, other = rows_of(1, 1) * 2
    rows = [one | {"patient_id_tokens": ["a", "b"]}, other | {"patient_id_tokens": ["ab"]}]
    assert len(arrange(table_of(rows), 1).parts) == 2
