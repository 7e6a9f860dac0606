"""Bundles follow their parts: whatever fails while they go to files, the next start has each once."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from central_store import bundling, quick
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from central_store.replies import Refused
from central_store.sheets import Sheet
from schemas import names, query
from tests.central_store.test_catalog_same import (
    FACILITIES,
    SETTINGS,
    Made,
    any_row,
    asked,
    bundled,
)
from tests.kit.batches import digest, row

SEAL = bundling.KEYS * 3


def studies(catalog: Catalog) -> int:
    request = asked("study", {"study_date": ["2024-01-01.."]}, limit=1)
    found = quick.find(
        catalog, query.build(request, [names.facility_name(who.name) for who in FACILITIES]), request
    )
    assert found is not None
    return found.matches


def sheets_of(made: Made) -> set[str]:
    return {path.name for path in made.layout.catalog.parent.glob("*.sheet")}


def test_files_fill_up_and_a_left_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "FULL", 10)
    made, who = Made(tmp_path), FACILITIES[0]
    with Catalog(made.layout, SETTINGS, seal=SEAL) as catalog:
        for number in range(40):
            one = row(number, study=number, study_date=date(2024, 1, 1))
            catalog.follow(made.add(who, [one | {"source_digest": digest(f"{number}")}]))
        assert studies(catalog) == 40
        assert [len(each.rows) for each in catalog.bundles()] == [12, 12, 12, 4]
    files = sheets_of(made)
    assert len(files) == 4
    (made.layout.catalog.parent / "left.sheet").write_bytes(b"of a crash")
    with Catalog(made.layout, SETTINGS, seal=SEAL) as catalog:
        assert studies(catalog) == 40
        assert sheets_of(made) == files
    next(made.layout.catalog.parent.glob("*.sheet")).unlink()
    with Catalog(made.layout, SETTINGS) as catalog:  # it is made anew
        assert studies(catalog) == 40


class Failing:
    """What is called, until the call with this number fails."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, error: Exception) -> None:
        self.left -= 1
        if not self.left:
            raise error

    def wrapped(self, what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found = what(*args)  # it is done, and then the power fails
            self.step(OSError(28, "no space left on device"))
            return found

        return call

    def connection(self, real: Any) -> Any:
        failing = self

        class Connection:
            def execute(self, *args: Any) -> Any:
                failing.step(duckdb.IOException("disk"))
                return real.execute(*args)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        return Connection()


def test_whatever_fails_on_the_way_to_a_file_nothing_is_missing_or_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "FULL", 8)
    failed = 0
    for at in itertools.count(1):
        made, rng = Made(tmp_path / str(at)), random.Random(5)
        sent = [made.add(rng.choice(FACILITIES), [any_row(rng) for _ in range(3)]) for _ in range(6)]
        failing, stopped = Failing(at), False
        with monkeypatch.context() as patch, Catalog(made.layout, SETTINGS, seal=SEAL) as catalog:
            patch.setattr(bundling, "write", failing.wrapped(bundling.write))
            patch.setattr(bundling, "read", failing.wrapped(bundling.read))
            patch.setattr(catalog._bundles, "_connection", failing.connection(catalog._connection))
            try:
                for batch in sent:
                    catalog.follow(batch)
                made.erase(sent[2])
                catalog.erase(sent[2])
            except (OSError, CatalogError):
                stopped = True
        with Catalog(made.layout, SETTINGS, seal=SEAL) as catalog:
            for batch in sent:
                catalog.follow(batch)
            made.erase(sent[2])
            catalog.erase(sent[2])
            found = bundled(catalog)
            catalog.rebuild()
            assert found == bundled(catalog)
        if not stopped:
            break
        failed += 1
    assert failed > 8


def test_what_is_renewed_goes_to_a_file_though_there_is_none_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A facility that sends everything twice does not fill the memory."""
    made, who = Made(tmp_path), FACILITIES[0]
    with Catalog(made.layout, SETTINGS, seal=bundling.KEYS * 8) as catalog:
        for number in range(12):
            one = row(number, study=number, study_date=date(2024, 1, 1))
            for _ in range(2):
                catalog.follow(made.add(who, [one]))
        assert studies(catalog) == 12
        (sheet, *more) = catalog.bundles()
        assert len(sheet.rows) > 8
        assert sum(len(each.rows) for each in more) <= 8
    assert len(sheets_of(made)) == 1


def test_a_search_that_looks_at_sheets_for_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, who = Made(tmp_path), FACILITIES[0]
    with Catalog(made.layout, replace(SETTINGS, search_seconds=1), seal=bundling.KEYS) as catalog:
        catalog.follow(made.add(who, [row(study=n) for n in range(2)]))
        catalog.follow(made.add(who, [row(study=3)]))
        assert len([*catalog.bundles()]) == 2
        matching = Sheet.matching

        def slow(*given: Any) -> Any:
            time.sleep(1.3)
            return matching(*given)

        monkeypatch.setattr(Sheet, "matching", slow)
        with pytest.raises(Refused, match="longer than this store allows"):
            studies(catalog)
        monkeypatch.undo()
        assert studies(catalog) == 3
