"""The main job as people do it: sync, status, query, fetch, refuse; by the installed commands."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.kit import images
from tests.kit.site import Site, Terminal


@pytest.fixture
def a(full_site: Site) -> Terminal:
    return full_site.terminals["clinic-a"]


@pytest.fixture
def b(full_site: Site) -> Terminal:
    return full_site.terminals["hospital-b"]


def rows(terminal: Terminal, *words: str) -> list[dict]:
    done = terminal.ask("query", "--json", *words)
    assert done.status == 0, done.err
    return done.json


def test_a_second_round_finds_nothing_to_do(a, b):
    done = a("sync", "--json")
    assert done.status == 0
    assert {key: done.json[key] for key in ("found", "known", "taken", "sent_batches")} == {
        "found": 16, "known": 16, "taken": 0, "sent_batches": 0,
    }  # fmt: skip
    again = b("sync", "--json")
    assert again.status == 3
    assert {line["path"]: line["reason"] for line in again.json["refused"]} == {
        "notes.txt": "not-dicom", "real/DICOMDIR": "dicomdir",
    }  # fmt: skip


def test_status_lists_what_is_not_stored(b):
    done = b("status", "--json")
    assert done.status == 3
    (source,) = done.json["sources"]
    assert source["stored"] == source["found"] - 2
    assert {line["path"] for line in source["not_stored"]} == {"notes.txt", "real/DICOMDIR"}
    text = b("status").out
    assert "notes.txt" in text
    assert "not-dicom" in text


CONDITIONS = [
    (["--patient-id", "PID-00001"], 2),
    (["--patient-id", "pid-00001 "], 2),
    (["--patient-id", "PID-00001", "--issuer", "elsewhere"], 0),
    (["--patient-id", "PID-0000"], 0),
    (["--patient-name", "family1^given1", "--birth-date", "1941-03-15"], 2),
    (["--patient-name", "FAMILY1^GIVEN1", "--birth-date", "1941-03-16"], 0),
    (["--accession", "ACC000201"], 1),
    (["--date", "2024-02-15"], 2),
    (["--date", "2024-02"], 2),
    (["--date", "202403*"], 2),
    (["--date", "2024-02-16..2024-12-31"], 2),
    (["--date", "..2024-02-15"], 2),
    (["--date", "2025"], 0),
    (["--modality", "ct"], 4),
    (["--modality", "CT,MR"], 4),
    (["--modality", "US"], 0),
    (["--menu", "ct thorax NATIVE"], 4),
    (["--menu", "*thorax*"], 4),
    (["--menu", "thorax"], 0),
    (["--body-part", "brain"], 4),
    (["--facility", "clinic-a"], 4),
    (["--facility", "hospital-b"], 0),
    (["--study", f"{images.ROOT}.1.2"], 1),
    (["--series", f"{images.ROOT}.1.2.2"], 1),
    (["--instance", f"{images.ROOT}.1.2.1.3"], 1),
    (["--facility", "clinic-a", "--patient-id", "PID-00002", "--date", "2024-03-15", "--modality", "CT",
      "--menu", "CT Thorax native"], 1),
    (["--patient-id", "PID-00002", "--date", "2024-02-15", "--modality", "MR", "--menu", "*"], 0),
]  # fmt: skip


@pytest.mark.parametrize(("words", "studies"), CONDITIONS, ids=[" ".join(words) for words, _ in CONDITIONS])
def test_every_condition_alone_and_combined(a, words, studies):
    assert len(rows(a, *words)) == studies


@pytest.mark.parametrize(("level", "count"), [("study", 4), ("series", 8), ("instance", 16)])
def test_levels_and_counts(a, level, count):
    assert len(rows(a, "--level", level)) == count
    assert a.ask("query", "--level", level, "--count").out == f"{count}\n"
    assert len(rows(a, "--level", level, "--limit", "3")) == 3


def test_rows_show_the_identity_and_the_menu(a):
    (row,) = rows(a, "--study", f"{images.ROOT}.2.1")
    assert (row["patient_name"], row["patient_id"], row["menu"], row["modality"]) == (
        "FAMILY2^GIVEN2", "PID-00002", ["CT Thorax native"], ["CT", "MR"],
    )  # fmt: skip
    assert (row["n_series"], row["n_instances"], row["study_date"]) == (2, 4, "2024-02-15")


def test_a_name_is_found_in_any_of_its_writings(b):
    for name in ("山田^太郎", "ﾔﾏﾀﾞ^ﾀﾛｳ", "やまだ^たろう"):
        assert len(rows(b, "--patient-name", name, "--birth-date", "19410315")) == 1
    assert len(rows(b, "--patient-id", "PID-00001", "--issuer", "b")) == 1


def test_csv_parquet_and_table_say_the_same(a, tmp_path):
    want = {row["study_uid"] for row in rows(a)}
    text = a.ask("query", "--format", "csv").out
    assert {row["study_uid"] for row in csv.DictReader(io.StringIO(text))} == want
    assert a.ask("query", "--format", "parquet", "--output", tmp_path / "x.parquet").status == 0
    assert set(pq.read_table(tmp_path / "x.parquet")["study_uid"].to_pylist()) == want
    table = a.ask("query").out
    assert all(uid in table for uid in want)
    assert "FAMILY1^GIVEN1" in table


@pytest.mark.parametrize(
    "words",
    [
        ["query", "--patient-name", "FAMILY1^GIVEN1"], ["query", "--birth-date", "19410315"],
        ["query", "--issuer", "B"], ["fetch", "--to", "x"], ["query", "--date", "yesterweek"],
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_with_the_next_step(a, words):
    done = a.ask(*words)
    assert done.status in (10, 15)
    assert "hint:" in done.err


def test_a_wrong_password_and_an_unknown_user_get_the_same_refusal(a, full_site, tmp_path):
    (tmp_path / "wrong").write_text("guess")
    (tmp_path / "wrong").chmod(0o600)
    wrong = a("query", "--user", "kimura", "--password-file", tmp_path / "wrong")
    unknown = a("query", "--user", "nobody", "--password-file", full_site.password)
    fetch = a(
        "fetch", "--study", "1.2", "--to", tmp_path, "--user", "kimura", "--password-file", tmp_path / "wrong"
    )
    assert wrong.status == unknown.status == fetch.status == 14
    assert wrong.err == unknown.err == fetch.err
    assert not wrong.out


def test_a_password_comes_from_standard_input_too_but_never_from_the_command_line(a, full_site):
    done = a("query", "--user", "kimura", "--password-stdin", "--count", stdin=full_site.password.read_text())
    assert done.out == "4\n"
    assert a("query", "--user", "kimura", "--password", "x").status == 2
    assert a("query", "--user", "kimura").status == 10


def test_a_password_file_others_can_read_is_refused(a, tmp_path):
    (tmp_path / "open").write_text("x")
    (tmp_path / "open").chmod(0o644)
    assert a("query", "--user", "kimura", "--password-file", tmp_path / "open").status == 10


def digests(folder: Path) -> dict[str, Path]:
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.rglob("*") if path.is_file()
    }


def test_everything_comes_back_bit_for_bit_and_a_second_run_fetches_nothing(b, full_site, tmp_path):
    done = b.ask("fetch", "--facility", "hospital-b", "--to", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    back = digests(tmp_path / "out")
    sent = digests(full_site.folder.parent / "images-b")
    assert set(back) == {d for d, path in sent.items() if path.name not in {"DICOMDIR", "notes.txt"}}
    assert all(
        path.suffix == ".dcm" and len(path.relative_to(tmp_path / "out").parts) == 4 for path in back.values()
    )
    again = b.ask("fetch", "--facility", "hospital-b", "--to", tmp_path / "out", "--json")
    assert (again.json["in_place"], again.json["restored"]) == (len(back), 0)
    one = next(iter(back.values()))
    one.chmod(0o600)
    one.write_bytes(one.read_bytes()[:-1] + b"?")
    mended = b.ask("fetch", "--facility", "hospital-b", "--to", tmp_path / "out", "--json")
    assert mended.json["restored"] == 1
    assert set(digests(tmp_path / "out")) == set(back)


def test_fetch_takes_the_same_conditions_and_names_files_readably(a, tmp_path):
    done = a.ask(
        "fetch", "--patient-id", "PID-00001", "--modality", "CT", "--date", "2024-02-15", "--to", tmp_path
    )
    assert done.status == 0, done.err
    paths = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.dcm")]
    assert len(paths) == 3
    assert {path.parts[0] for path in paths} == {"FAMILY1_GIVEN1_PID-00001"}
    assert all(path.parts[1].startswith("2024-02-15_CT_Thorax_native_") for path in paths)
    assert "3 images" in done.err


def test_another_facilitys_rows_need_a_grant_and_its_names_the_domain(a, b, full_site, tmp_path):
    assert rows(b, "--facility", "clinic-a") == []
    assert full_site.store("grant", "clinic-a", "--to", "hospital-b").status == 0
    try:
        granted = rows(b, "--facility", "clinic-a")
        assert len(granted) == 4
        assert all("sealed" in row["patient_name"] for row in granted)
        assert rows(b, "--patient-id", "PID-00002") == []
        nothing = b.ask("fetch", "--facility", "clinic-a", "--to", tmp_path / "none", "--json")
        assert nothing.status == 18
        assert {item["reason"] for item in nothing.json["failed"]} == {"no-key"}
        assert a("domain", "export", "--to", b.home / "hospital-b.card", tmp_path / "d").status == 0
        assert a("domain", "import", tmp_path / "d").status == 16  # not sealed for this terminal
        assert b("domain", "import", tmp_path / "d").status == 0
        assert [row["patient_name"] for row in rows(b, "--patient-id", "PID-00002")] == ["FAMILY2^GIVEN2"] * 2
        assert len(json.loads(b("domain", "list", "--json").out)["domains"]) == 2
        assert b.ask("fetch", "--facility", "clinic-a", "--to", tmp_path / "all").status == 0
        assert set(digests(tmp_path / "all")) == set(digests(full_site.folder.parent / "images-a"))
    finally:
        assert full_site.store("revoke", "clinic-a", "--to", "hospital-b").status == 0
    assert rows(b, "--facility", "clinic-a") == []


def test_no_identity_is_anywhere_at_the_store(full_site):
    needles = [
        b"FAMILY1",
        b"GIVEN1",
        b"PID-00001",
        b"ACC000101",
        b"19410315",
        "山田".encode(),
    ]
    needles += [b"free text of a busy day", b"CompressedSamples", b"Anonymized"]
    stored = [path.read_bytes() for path in full_site.root.rglob("*") if path.is_file()]
    sent = [path.read_bytes() for path in full_site.folder.parent.glob("images-*/**/*.dcm")]
    assert sum(data.count(needle) for data in sent for needle in needles) > 50
    assert sum(data.count(needle) for data in stored for needle in needles) == 0


def test_the_store_says_the_same(full_site):
    status = full_site.store("status", "--json")
    assert status.status == 0
    check = full_site.store("check", "--read-data", "--json")
    assert check.status == 0, check.err
    assert json.loads(check.out)
