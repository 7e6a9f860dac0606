"""What is derived from a batch forgets it when it is erased: the catalog, its look-ups, what is published."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from central_store import changes, publish
from central_store.catalog import Catalog
from schemas import names
from tests.central_store.test_catalog_same import FACILITIES, SETTINGS, Made, any_row, asked, check_rows
from tests.central_store.test_changes import follow
from tests.central_store.test_publish import rows_of, rows_of_view
from tests.kit.batches import NOW, digest, row

WHO = names.facility_name(FACILITIES[0].name)


def test_a_study_whose_first_batch_is_erased_stays_one_study(tmp_path: Path) -> None:
    """A later batch finds it by its UID, though the part that gave it its number is gone."""
    made = Made(tmp_path / "store")
    with Catalog(made.layout, SETTINGS, seal=4) as catalog:
        first, _ = (made.add(FACILITIES[0], [row(n, series=n)]) for n in (1, 2))
        for batch, _ in made.batches:
            catalog.follow(batch)
        made.erase(first)
        catalog.erase(first)
        catalog.follow(made.add(FACILITIES[0], [row(3, series=2)]))
        assert catalog.rows("SELECT count(DISTINCT study), count(DISTINCT series) FROM parts", {}) == [(1, 1)]
        for level in ("study", "series", "instance"):
            check_rows(made, catalog, asked(level, {}), _found(catalog, level))


def _found(catalog: Catalog, level: str) -> list[dict[str, object]]:
    from schemas import query

    built = query.build(asked(level, {"study_uid": ["1.2.1"]}), [WHO])  # type: ignore[arg-type]
    rows: list[dict[str, object]] = (
        catalog.table(built.rows, built.parameters, built.points).cast(built.schema).to_pylist()
    )
    return rows


def test_what_stood_behind_stands_and_conflicts_are_those_that_are_left(tmp_path: Path) -> None:
    made = Made(tmp_path / "store")
    with Catalog(made.layout, SETTINGS) as catalog:
        first = made.add(FACILITIES[0], [row(1), row(2)])
        again = made.add(FACILITIES[0], [row(1)])  # the same file, sent twice
        other = made.add(FACILITIES[0], [row(2) | {"source_digest": digest("other bytes")}])
        for batch in (first, again, other):
            catalog.follow(batch)
        assert catalog.held(WHO, [row(1)["source_digest"]]) in (
            {row(1)["source_digest"]: first.batch}, {row(1)["source_digest"]: again.batch},
        )  # fmt: skip
        made.erase(first)
        catalog.erase(first)
        assert catalog.held(WHO, [row(n)["source_digest"] for n in (1, 2)]) == {
            row(1)["source_digest"]: again.batch
        }
        assert catalog.rows("FROM conflicts", {}) == []
        assert catalog.rows("SELECT count(*) FROM instances WHERE NOT duplicate", {}) == [(2,)]
        feed = list(changes.since(made.layout, 0))
    kinds = [change["kind"] for change in feed]
    assert kinds == ["added", "added", "superseded", "added", "conflict", "erased", "standing"]
    assert {batch for batch, _ in follow_without(made, feed)} == {again.batch, other.batch}


def follow_without(made: Made, feed: list[dict[str, object]]) -> set[tuple[str, str]]:
    """What a program that reads the feed thinks stands, erased batches left out."""
    erased = {change["batch"] for change in feed if change["kind"] == "erased"}
    kept = [change for change in feed if change["batch"] not in erased or change["kind"] == "superseded"]
    return {each for each in follow(made, kept) if each[0] not in erased}


TIER = 3
"""Files of a size that are joined: fewer than in earnest, for fewer publications."""


def test_nothing_of_it_is_left_in_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are joined meanwhile, and some are named by no view any more: none of them keeps a row."""
    monkeypatch.setattr(publish, "TIER", TIER)
    made, rng = Made(tmp_path / "store"), random.Random(4)
    published, folder = made.layout.published, made.layout.catalog.parent
    with Catalog(made.layout, SETTINGS) as catalog:
        for turn in range(TIER + 3):
            rows = [any_row(rng) for _ in range(3)]
            if turn in (2, TIER + 1):
                rows = [row(turn * 10 + n, study=90 + turn) for n in range(3)]
            catalog.follow(made.add(FACILITIES[0], rows))
            catalog.publish(NOW, wait=True)
        gone = [made.batches[turn][0] for turn in (2, TIER + 1)]
        objects = [
            found["object_sha256"] for found in made.rows() if found["batch_id"] in [b.batch for b in gone]
        ]
        os.link(published, tmp_path / "early")
        with duckdb.connect(str(tmp_path / "early"), read_only=True) as early:
            before = early.execute("SELECT count(*) FROM instances").fetchall()[0][0]
            for batch in gone:
                made.erase(batch)
                catalog.erase(batch)
            assert catalog.publish(NOW + timedelta(minutes=1), wait=True)
            after = early.execute("SELECT count(*) FROM instances").fetchall()[0][0]
            assert (before, after) == (3 * (TIER + 3), 3 * (TIER + 1)), "it has less, and works"
        for path in folder.glob("objects-*.parquet"):
            found = duckdb.sql(f"SELECT object_sha256 FROM '{path}'").fetchall()
            assert not {name for (name,) in found} & set(objects)
        for path in folder.iterdir():
            if path.suffix == ".parquet" or path == published:
                assert b"1.2.92" not in path.read_bytes()
        assert rows_of(published, "SELECT count(*) FROM batches WHERE erased") == [(2,)]
        for level in ("study", "series"):
            check_rows(made, catalog, asked(level, {}), rows_of_view(published, level))  # type: ignore[arg-type]
        late = made.add(FACILITIES[0], [row(7, study=77)])
        catalog.follow(late)
        catalog.publish(NOW + timedelta(minutes=2), wait=True)
        assert rows_of(published, "SELECT count(*) FROM instances") == [(3 * (TIER + 1) + 1,)]
