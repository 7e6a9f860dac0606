"""The shell's history keeps no identity, and the tab key offers what fits."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from facility_sync.cli.shell import Lines, completer


@pytest.fixture
def person(monkeypatch):
    """Standard input is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield
    os.close(ours)


@pytest.mark.usefixtures("person")
def test_lines_that_name_a_patient_are_not_kept(tmp_path: Path):
    path = tmp_path / "shell-history"
    lines = Lines(path, keep_all=False)
    harmless = ["--since 30d --modality CT", "SELECT count(*) FROM studies", "help"]
    naming = [
        "--patient-id 12345", "--patient-n YAM*", "--birth-date 1970-05-01", "--acc A1", "--issuer X --count",
        "SELECT 1 FROM studies WHERE patient('1')", "SELECT 1 WHERE s.PERSON ('A^B', '1970-01-01')",
        "SELECT 1 WHERE accession('A')",
    ]  # fmt: skip
    for line in [*harmless, *naming]:
        lines.keep(line)
    assert path.read_text().splitlines() == harmless
    assert path.stat().st_mode & 0o777 == 0o600
    Lines(path, keep_all=True).keep(naming[0])
    assert path.read_text().splitlines() == [*harmless, naming[0]]


def offered(line: str, text: str) -> list[str]:
    complete, found = completer(lambda: line), []
    while (word := complete(text, len(found))) is not None:
        found.append(word)
    return found


def test_the_tab_key_offers_options_columns_and_views():
    assert offered("--mod", "--mod") == ["--modality"]
    assert offered("--columns pati", "pati") == ["patient_id", "patient_name"]
    assert offered("--order=n_se", "n_se") == ["n_series"]
    assert offered("SELECT * FROM rec", "rec") == ["receipts"]
    assert offered("SELECT study_d", "study_d") == ["study_date"]
    assert offered("qu", "qu") == ["quit"]
