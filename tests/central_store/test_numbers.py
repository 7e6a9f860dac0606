"""From a value to a number, and from numbers to what a statement says of them."""

from __future__ import annotations

import duckdb
import pytest

from central_store import keys
from schemas import conditions


@pytest.mark.parametrize("kind", keys.KINDS)
def test_keys_are_the_same_in_python_and_sql(kind: str) -> None:
    values, owner = ["", "1.2.3", "ä" * 70, "a\0b", None, "𝔘"], "clinic-ä"
    with duckdb.connect() as database:
        sql = f"SELECT {keys.key_sql(kind, 'v')} FROM (SELECT unnest($v::VARCHAR[]) AS v, $f AS facility)"
        found = [key for (key,) in database.execute(sql, {"v": values, "f": owner}).fetchall()]
    assert found == [key for value in values for key in keys.keys(kind, [value], [owner])]
    within = kind in keys.WITHIN
    assert len({key >> 52 for key in found}) == (1 if within else len(values) - 1)  # "" and None are one


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65, 1000])
@pytest.mark.parametrize("column", ["part", "number"])
def test_numbers_in_a_statement_find_what_a_list_finds(column: str, count: int) -> None:
    wanted = list(range(5, 5 + count))
    with duckdb.connect() as database:
        database.execute(f"CREATE TEMP TABLE t AS SELECT range AS {column} FROM range(2000)")
        said = conditions.among(column, "wanted", wanted)
        given = {"wanted": wanted} if "$wanted" in said else {}
        found = database.execute(f"SELECT {column} FROM t WHERE {said} ORDER BY ALL", given).fetchall()
    assert [number for (number,) in found] == wanted
