"""Thousands of parts: what Arrow puts together is what the packed parts say, and DuckDB."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

import duckdb
import pyarrow as pa
import pytest

from central_store import catalog_tables as tables
from central_store import packed, rollup
from schemas import columns, messages, names, query
from schemas.columns import Column, Level

CLINIC = names.facility_name("clinic-a")
PARTS = 6_000


def value(column: Column) -> str:
    """SQL for a value of a part, now and then none, that several parts share."""
    some = f"(hash(part, '{column.name}') % 7)"
    made = {
        "VARCHAR": f"'{column.name} ' || {some}", "VARCHAR[]": f"['a' || {some}, 'b']",
        "BLOB": f"encode('s' || {some})", "DATE": f"DATE '2026-01-01' + ({some} * 10)::INTEGER",
        "TIME": f"TIME '08:00:00' + INTERVAL ({some}) HOUR",
        "TIMESTAMP": f"TIMESTAMP '2026-01-01' + INTERVAL ({some}) DAY",
        "TIMESTAMP WITH TIME ZONE": f"TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL ({some}) DAY",
        "INTEGER": f"{some}::INTEGER", "BIGINT": f"{some}::BIGINT",
    }[columns.duckdb_type(column)]  # fmt: skip
    by_entity = {
        "study_uid": "'1.2.' || study",
        "series_uid": "'1.2.' || study || '.' || series",
        "facility": f"'{CLINIC}'",
    }
    if column.name in by_entity:
        return by_entity[column.name]
    if column.required or column.level == "study":
        return made if column.level != "study" else made.replace("hash(part,", "hash(study,")
    return f"CASE WHEN hash(part, 'none', '{column.name}') % 3 = 0 THEN NULL ELSE {made} END"


@pytest.fixture(scope="module")
def catalog() -> Iterator[duckdb.DuckDBPyConnection]:
    """A table of parts: studies of one to a dozen parts, in the order of no number."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for ddl in tables.TABLES:
            connection.execute(ddl)
        shown = ", ".join(f'{value(c)} AS "{c.name}"' for c in (*tables.SHARED, *tables.TOTALS))
        connection.execute(f"""INSERT INTO parts BY NAME
            SELECT *, {tables.TEXT_KEYS}, {packed.sql()} AS packed FROM (
                SELECT part, study, series, 'batch' AS batch_id, hash(part, 'n') % 5 AS n_instances,
                    sha256('o' || part) AS first_object, {shown}
                FROM (SELECT r AS part, (r // 6 * 7919) % 100003 AS study, (r // 3 * 7919) % 1000003 AS series
                    FROM range(1, {PARTS}) t(r)))""")
        yield connection


@pytest.mark.parametrize("level", ["study", "series"])
def test_all_three_ways_say_the_same(catalog: duckdb.DuckDBPyConnection, level: str) -> None:
    asked = messages.SearchRequest(
        id="0" * 32, facility=CLINIC, user="user", password="word", level=level, conditions={},
        count_only=False, limit=50_000, created="2026-11-24T08:00:00Z",
    )  # fmt: skip
    built = query.build(asked, [CLINIC])
    at = cast(Level, level)
    wanted = catalog.sql(built.all_rows, params={"owners": [CLINIC]}).to_arrow_table().cast(built.schema)
    assert wanted.num_rows > 500

    of_parts = catalog.sql(f"SELECT {rollup.select(at)} FROM parts WHERE n_instances > 0").to_arrow_table()
    shuffled = of_parts.take(random.Random(1).sample(range(len(of_parts)), len(of_parts)))
    found = rollup.answer(at, shuffled, built.schema)
    found.validate(full=True)
    for name in found.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name

    texts = catalog.execute(f"SELECT {level}, packed FROM parts WHERE n_instances > 0").fetchall()
    groups = packed.newest_first(at, packed.grouped(packed.chosen(texts, {})))
    assert packed.answer(at, groups, built.schema).equals(found)

    heads = catalog.sql(rollup.heads(at, "n_instances > 0")).to_arrow_table()
    assert len(heads) == found.num_rows
    for offset, limit in ((0, 10), (37, 100), (found.num_rows - 5, 10), (found.num_rows + 5, 10)):
        near, skipped = rollup.page(heads, offset, limit)
        page = of_parts.filter(pa.compute.is_in(of_parts[rollup.NUMBER], value_set=near[rollup.NUMBER]))
        shown = rollup.answer(at, page, built.schema).slice(skipped, limit)
        assert shown.equals(found.slice(offset, limit)), (offset, limit)
