"""What readers of the published catalog see: one moment of it, whole, while the store goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb

from central_store import publish
from central_store.catalog import Catalog
from schemas import names
from tests.central_store.test_catalog_same import FACILITIES, SETTINGS, Made, any_row, asked, check_rows
from tests.kit.batches import NOW, row, token

COUNTS = """SELECT (SELECT objects FROM snapshot), (SELECT count(*) FROM instances),
    (SELECT count(DISTINCT object_sha256) FROM instances), (SELECT sum(objects) FROM batches),
    (SELECT sum(n_instances) FROM studies), (SELECT sum(n_instances) FROM series),
    (SELECT count(*) FROM instances WHERE NOT duplicate)"""


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as reader:
        return reader.execute(sql).fetchall()


def test_views_say_what_searches_say_in_every_state(tmp_path: Path) -> None:
    """Twenty publications: files are added and joined; no row is missing or double in any of them."""
    made, rng = Made(tmp_path / "store"), random.Random(3)
    published = made.layout.published
    with Catalog(made.layout, SETTINGS) as catalog:
        catalog.publish(NOW, wait=True)
        assert rows_of(published, COUNTS) == [(0, 0, 0, None, None, None, 0)]
        os.link(published, tmp_path / "early")  # DuckDB knows open files of a process by their path
        early = duckdb.connect(str(tmp_path / "early"), read_only=True)
        for turn in range(20):
            catalog.follow(made.add(rng.choice(FACILITIES), [any_row(rng) for _ in range(rng.randint(1, 5))]))
            if turn == 15:
                made.damage(made.batches[3][0])
            catalog.publish(NOW + timedelta(minutes=turn), wait=True)
            stored = sum(count for _, count in catalog.totals().values())
            standing = len(made.standing()) if turn != 15 else None  # damage is looked at with the next batch
            ((*all_rows, studies, series, whole),) = rows_of(published, COUNTS)
            assert all_rows == [stored] * 4
            assert studies == series == whole
            assert standing in (None, whole)
        assert early.execute(COUNTS).fetchall() == [(0, 0, 0, None, None, None, 0)]
        early.close()
        for level in ("study", "series"):
            check_rows(made, catalog, asked(level, {}), rows_of_view(published, level))
    files = list(made.layout.catalog.parent.glob("objects-*.parquet"))
    assert rows_of(published, "SELECT files FROM snapshot")[0][0] < publish.TIER < len(files)
    assert (published.stat().st_mode & 0o777) == 0o444


def rows_of_view(path: Path, level: str) -> list[dict[str, Any]]:
    view = "studies" if level == "study" else "series"
    with duckdb.connect(str(path), read_only=True) as reader:
        reader.execute("SET TimeZone = 'UTC'")
        table = reader.sql(
            f"SELECT COLUMNS(lambda c: NOT ends_with(c, '_tokens')) FROM {view}"
        ).to_arrow_table()
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def test_files_no_view_names_are_removed_after_their_grace(tmp_path: Path) -> None:
    made = Made(tmp_path / "store")
    with Catalog(made.layout, SETTINGS) as catalog:
        for turn in range(publish.TIER + 1):
            catalog.follow(made.add(FACILITIES[0], [row(turn)]))
            catalog.publish(NOW, wait=True)
        before = len(list(made.layout.catalog.parent.glob("objects-*.parquet")))
        catalog.publish(NOW + timedelta(seconds=publish.GRACE + 1), wait=True)
        after = len(list(made.layout.catalog.parent.glob("objects-*.parquet")))
        assert (before > publish.TIER, after) == (
            True,
            rows_of(made.layout.published, "SELECT files FROM snapshot")[0][0],
        )
        assert rows_of(made.layout.published, COUNTS)[0][1] == publish.TIER + 1


def test_it_opens_from_any_folder_in_another_process_while_the_store_works(tmp_path: Path) -> None:
    made = Made(tmp_path / "it's a store")
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print(c.execute("
        "\"SELECT count(*) FROM studies WHERE list_contains(patient_id_tokens, '"
        + token("patient 1")
        + "')\""
        ").fetchall(), c.execute('SELECT count(*) FROM instances').fetchall())"
    )
    with Catalog(made.layout, SETTINGS) as catalog:
        catalog.follow(made.add(FACILITIES[0], [row(n) for n in range(9)]))
        catalog.publish(NOW, wait=True)
        (tmp_path / "elsewhere").mkdir()
        found = subprocess.run(
            [sys.executable, "-c", code, os.path.relpath(made.layout.published, tmp_path / "elsewhere")],
            cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout == "[(1,)] [(9,)]\n"
        catalog.rebuild()
        catalog.publish(NOW, wait=True)
        assert rows_of(made.layout.published, COUNTS)[0][:4] == (9, 9, 9, 9)
        assert catalog.held(names.facility_name("clinic-a"), ["0" * 64]) == {}
