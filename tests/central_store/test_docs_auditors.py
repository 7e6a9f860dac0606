"""What `docs/auditors.md` shows is true: its queries run on a store at work, its table is ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import duckdb
import pytest

from central_store.catalog import Catalog
from central_store.check import check
from schemas import columns
from tests.central_store.conftest import Place
from tests.kit.batches import digest, row

DOC = Path(__file__).parents[2] / "docs" / "auditors.md"


def column_table() -> str:
    """The columns as Markdown, from the one table."""
    lines = ["| column | type | DICOM | identity | meaning |", "|---|---|---|---|---|"]
    for column in columns.COLUMNS:
        mark, kind = "yes" if column.identifying else "", columns.duckdb_type(column)
        lines.append(f"| `{column.name}` | {kind} | {column.keyword} | {mark} | {column.meaning} |")
    return "\n".join(lines)


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"no {language} block in the documentation"
    return found


@pytest.fixture
def stored(place: Place) -> Place:
    place.put(place.a, place.a.batch([row(0), row(1), row(0, study=40)], place.card))
    place.put(place.a, place.a.batch([row(1, source_digest=digest("other bytes"))], place.card))
    place.put(place.b, place.b.batch([row(0, study=3, modality="MR")], place.card))
    assert place.work().stored == 3
    return place


def test_the_queries_run_while_the_catalog_is_in_use(stored: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored.root)
    check(stored.store, read_data=True)
    with Catalog(stored.store.layout, stored.store.settings), duckdb.connect() as auditor:
        months, batches, versions, checked = (
            [tuple(line.values()) for line in auditor.sql(sql).to_arrow_table().to_pylist()]
            for sql in blocks("sql")
        )
    assert [(line[0], line[2], line[3], line[4]) for line in months] == [
        ("clinic-a", "CT", 2, 4),
        ("hospital_b", "MR", 1, 1),
    ]
    assert [(line[0], line[1], line[3], line[6]) for line in batches] == [
        ("clinic-a", 1, 3, True),
        ("clinic-a", 2, 1, True),
        ("hospital_b", 1, 1, True),
    ]
    assert [(line[0], line[3]) for line in checked] == [
        ("clinic-a", "ok"),
        ("clinic-a", "ok"),
        ("hospital_b", "ok"),
    ]
    assert [line[2:4] for line in versions] == [("1.2.1.1.1", 2)]


def test_the_signature_walk_through_works(stored: Place, tmp_path: Path) -> None:
    command = next(block for block in blocks("sh") if "ssh-keygen" in block)
    folder = next((stored.root / "manifests" / "clinic-a").iterdir())
    (tmp_path / "signers").write_text(f"clinic-a {stored.a.card.ssh_key}\n")
    shown = command.replace("-f signers", f"-f {tmp_path / 'signers'}")
    done = subprocess.run(["sh", "-c", shown], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run(
        ["sh", "-c", shown.replace("< statement.json", "< receipt.json")], cwd=folder, check=False,
        capture_output=True,
    )  # fmt: skip
    assert wrong.returncode != 0


def test_the_column_table_is_the_one_in_the_program() -> None:
    assert column_table() in DOC.read_text("utf-8")
