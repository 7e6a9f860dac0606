"""`fsync query` as a person uses it: SQL, patterns of names, order, columns, pages, estimate."""

from __future__ import annotations

import re
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DOCUMENT = ("--format", "json")


@pytest.fixture
def ask(full_site):
    return full_site.terminals["clinic-a"].ask


def rows(done):
    assert done.status == 0, done.err
    return done.json


def test_sql_counts_and_finds_patients_without_naming_them(ask, full_site):
    sql = "SELECT modality, count(*) AS n FROM instances GROUP BY 1 ORDER BY n DESC"
    assert rows(ask("query", "--sql", sql, *DOCUMENT)) == [
        {"modality": "CT", "n": 12},
        {"modality": "MR", "n": 4},
    ]
    sql = "SELECT count(*) AS n FROM studies WHERE patient('PID-00001') -- PID-00001"
    assert rows(ask("query", "--sql", sql, *DOCUMENT)) == [{"n": 2}]
    sql = "SELECT count(*) AS n FROM series s JOIN studies t USING (study_uid) WHERE t.person('family1^given1', '1941-03-15')"
    assert rows(ask("query", "--sql", sql, *DOCUMENT)) == [{"n": 4}]
    sql = "SELECT study_uid FROM studies WHERE accession('ACC000201')"
    assert rows(ask("query", "--sql", sql, *DOCUMENT))[0]["study_uid"].endswith(".2.1")
    log = (full_site.folder / "serve.log").read_text()
    assert "sql answered facility=clinic-a" in log and "PID-0" not in log and "SELECT" not in log


def test_sql_shows_identities_where_they_are_sealed(ask):
    sql = "SELECT sealed_identity, study_date FROM studies WHERE patient('PID-00002') ORDER BY study_date LIMIT 1"
    done = ask("query", "--sql", sql)
    assert "FAMILY2^GIVEN2" in done.out and "PID-00002" in done.out and "1 row." in done.err


def test_types_of_sql_survive_in_parquet(ask, tmp_path):
    file = tmp_path / "out.parquet"
    statement = tmp_path / "q.sql"
    statement.write_text(
        "SELECT study_date, captured_at, modality, sum(object_bytes)::BIGINT AS b FROM instances GROUP BY ALL"
    )
    done = ask("query", "--sql-file", statement, "--format", "parquet", "--output", file)
    assert done.status == 0, done.err
    table = pq.read_table(file)
    assert table.schema.field("study_date").type == pa.date32()
    assert table.schema.field("b").type == pa.int64()
    first = table.to_pylist()[0]
    assert isinstance(first["study_date"], date) and isinstance(first["captured_at"], datetime)


@pytest.mark.parametrize(
    ("sql", "status", "says"),
    [
        ("SELECT study_uid, nix FROM studies", 14, "there is no such column here"),
        ("SELECT version() FROM studies", 14, "the function version is not allowed"),
        ("SELECT * FROM studies WHERE patient_id = 'PID-00001'", 10, "the store has no such column"),
        ("SELECT * FROM studies WHERE patient('PID-00001' || 'x')", 10, "takes texts in single quotes"),
    ],
)
def test_a_refused_statement_says_which_part(ask, sql, status, says):
    done = ask("query", "--sql", sql)
    assert says in done.err and "PID-00001" not in done.err
    assert done.status == status
    if "nix" in sql:
        assert "Here: nix" in done.err


def test_sql_and_conditions_exclude_each_other(ask):
    done = ask("query", "--sql", "SELECT 1", "--modality", "CT")
    assert done.status == 2 and "--modality has no meaning beside SQL" in done.err


def test_a_pattern_of_a_name_finds_patients_this_terminal_can_read(ask, full_site):
    found = rows(ask("query", "--patient-name", "fam*", *DOCUMENT))
    assert {row["patient_name"] for row in found} == {"FAMILY1^GIVEN1", "FAMILY2^GIVEN2"}
    found = rows(
        ask("query", "--patient-name", "*^given2", "--level", "series", "--modality", "MR", *DOCUMENT)
    )
    assert [row["patient_id"] for row in found] == ["PID-00002"] * 2
    assert (
        rows(ask("query", "--patient-name", "F*", "--birth-date", "1941-03-15", "--count", *DOCUMENT))[
            "matches"
        ]
        == 2
    )
    other = full_site.terminals["hospital-b"].ask
    assert {row["patient_id"] for row in rows(other("query", "--patient-name", "やま*", *DOCUMENT))} == {
        "pid-00001"
    }
    done = ask("query", "--patient-name", "NOBODY*")
    assert done.status == 10 and "no patient this terminal can read" in done.err


def test_order_columns_and_pages(ask):
    shown = ("--columns", "study_uid,n_instances,study_date", "--order", "study_date,study_uid:desc")
    whole = rows(ask("query", *shown, *DOCUMENT))
    assert list(whole[0]) == ["study_uid", "n_instances", "study_date"] and len(whole) == 4
    assert [r["study_date"] for r in whole] == sorted(r["study_date"] for r in whole)
    pages = [rows(ask("query", *shown, "--limit", "3", "--offset", str(n), *DOCUMENT)) for n in (0, 3)]
    assert pages[0] + pages[1] == whole
    done = ask("query", "--limit", "3")
    assert "The next: --offset 3." in done.err
    done = ask("query", "--columns", "nix")
    assert done.status == 10 and "rows at level study have no column nix" in done.err
    assert ask("query", "--order", "nix").status == 14
    assert [r["modality"] for r in rows(ask("query", "--level", "series", "--order", "modality:desc", "--columns", "modality",
                                            *DOCUMENT))] == ["MR"] * 4 + ["CT"] * 4  # fmt: skip


def test_since_and_estimate(ask):
    assert rows(ask("query", "--since", "2024-03", "--count", *DOCUMENT))["matches"] == 2
    assert ask("query", "--since", "30d", "--count").out == "0\n"
    assert ask("query", "--since", "30d", "--date", "2024").status == 10
    estimate = rows(ask("query", "--modality", "CT,MR", "--estimate", *DOCUMENT))
    assert (estimate["instances"], estimate["seconds"]) == (16, None)
    done = ask("query", "--estimate")
    assert re.fullmatch(r"16 images, [\d.]+ kB, time unknown: no fetch was measured yet\n", done.out)


def test_the_shell_answers_line_after_line_on_one_connection(full_site):
    terminal = full_site.terminals["clinic-a"]
    before = (full_site.folder / "serve.log").read_text().count("logged in facility=clinic-a")
    lines = [
        "--modality MR --count", "SELECT count(*) AS n FROM studies WHERE patient('PID-00001');", "SELECT nix FROM studies",
        "--nix", "--patient-name \"open", "--user someone", "help", "columns", "", "--level series --order modality --columns modality",
        "--patient-id PID-00002 --count --json", "quit", "--count",
    ]  # fmt: skip
    done = terminal(
        "shell", "--user", "kimura", "--password-file", full_site.password, stdin="\n".join(lines)
    )
    assert done.status == 0, done.err
    out = done.out.split("\n")
    assert out[0] == "4" and out[1:4] == ["n", "-", "2"]
    assert "The words of `fsync query`" in done.out and "receipts: batch_id, facility" in done.out
    assert done.out.count("\nCT") == done.out.count("\nMR") == 4
    assert '"matches": 2' in done.out and out[-2].startswith("}")
    assert "Here: nix" in done.err and "No such option" in done.err and "No closing quotation" in done.err
    assert "--user has no place in the shell" in done.err
    assert (full_site.folder / "serve.log").read_text().count("logged in facility=clinic-a") <= before + 1
    assert not (terminal.home / "shell-history").exists()
