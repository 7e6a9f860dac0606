"""What `docs/auditors.md` shows is true: its questions find what they ask for, its table is ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from central_store import audit, audit_kit, audit_segments, catalog_file, check, damage, grants
from central_store.audit_kit import Choice
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.layout import Layout
from central_store.service import Clock, Service
from schemas import columns, messages, names
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import NOW, Made, digest, request_id, row, token
from tests.kit.cookbook import ask, ask_sql

DOC = Path(__file__).parents[2] / "docs" / "auditors.md"
A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")
PATIENT = token("patient 1")
LATER = datetime(2999, 12, 24, 8, 30, tzinfo=UTC)


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


@pytest.fixture(scope="module")
def eventful(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store where everything an auditor asks about has happened."""
    folder = tmp_path_factory.mktemp("eventful")
    shutil.copytree(made_store.root, folder / "store")
    store = replace(made_store.store, layout=Layout(folder / "store"))
    first_time = {"sequence": 0, "previous": ""}  # other tests sent for the same facilities before
    place = Place(store, replace(made_store.a, **first_time), replace(made_store.b, **first_time))
    layout = place.store.layout
    a, b = place.a.batch, place.b.batch
    first = [row(0), row(1), row(0, study=40), *(row(n, study=50) for n in range(9)), row(0, study=60)]
    place.put(place.a, a(first, place.card))
    protected = row(1, source_digest=digest("other bytes"), encoding="dicom", flags=["odd-date"])
    place.put(place.a, a([protected, row(0)], place.card))
    place.put(place.b, b([row(0, study=3, modality="MR")], place.card))
    grants.give(layout, A, B)
    assert place.work().stored == 3
    place.a.sequence += 1  # a number that never came
    lost = place.put(place.a, a([row(0, study=70)], place.card, previous=digest("nowhere")))
    place.a.sequence -= 2
    place.put(place.a, a([row(0, study=71)], place.card))
    asked = [
        place.search(place.b, "instance", conditions={"modality": ("CT",)}),
        place.search(place.b, password="wrong"),
        messages.FetchRequest(
            id=request_id(), facility=B, user=names.user_name("user.hospital_b"), password=PASSWORD,
            objects=tuple(names.object_id(name) for name in lost.objects), created=messages.rfc3339(NOW),
        ),
        messages.SqlRequest(
            id=request_id(), facility=B, user=names.user_name("user.hospital_b"), password=PASSWORD,
            sql=f"SELECT study_uid FROM instances WHERE menu IN ('YAMADA', '{PATIENT}')",
            created=messages.rfc3339(NOW),
        ),
    ]  # fmt: skip
    service = Service(place.store, Clock(lambda: LATER, lambda: 0.0))
    assert service.one_pass().stored == 2
    for request in asked:
        place.ask(place.b, request)
    place.work()
    check.check(place.store, read_data=True)
    damage.found(place.store, Batch(A, lost.batch), "pack-bytes", NOW,
                 damage.seen(layout.pack(lost.batch).stat()))  # fmt: skip
    damage.repaired(layout, Batch(A, lost.batch))
    grants.revoke(layout, A, B)
    audit_segments.close(place.store, NOW)
    return place


def expected(questions: dict[str, list[dict[str, Any]]]) -> None:
    """What is known of the store above."""
    rows = {name.split("-")[0]: found for name, found in questions.items()}
    assert [(r["facility"], r["sequence"], r["objects"]) for r in rows["01"]] == [
        ("clinic-a", 1, 13), ("clinic-a", 2, 2), ("clinic-a", 3, 1), ("clinic-a", 4, 1), ("hospital_b", 1, 1),
    ]  # fmt: skip
    assert rows["02"] == rows["03"] == []
    assert {(r["facility"], r["modality"], r["month"].month, r["images"]) for r in rows["04"]} == {
        ("clinic-a", "CT", 11, 15), ("clinic-a", "CT", 12, 2), ("hospital_b", "MR", 11, 1),
    }  # fmt: skip
    assert sum(r["images"] for r in rows["05"]) == 18
    assert [(r["sop_instance_uid"], r["times"]) for r in rows["06"]] == [("1.2.1.1.0", 2)]
    assert [(r["sop_instance_uid"], r["versions"]) for r in rows["07"]] == [("1.2.1.1.1", 2)]
    assert rows["09"] != []
    assert [(r["user"], r["searched_by"], r["matches"]) for r in rows["10"]] == [
        ("user.hospital_b", ["modality"], 16),
        ("user.hospital_b", ["instances", "menu", "study_uid"], None),
    ]
    assert rows["10"][0]["conditions"] == '{"modality":["CT"]}'
    assert [(r["owner"], r["images"]) for r in rows["11"]] == [("clinic-a", 1)]
    assert [(r["owner"], r["seen_by"], r["rows_shown"]) for r in rows["12"]] == [
        ("clinic-a", "hospital_b", 16)
    ]
    assert [(r["facility"], r["reason"]) for r in rows["13"]] == [("hospital_b", "access-denied")]
    assert [(r["user"], r["times"]) for r in rows["14"]] == [("user.hospital_b", 1)]
    assert {r["kind"] for r in rows["17"]} >= {"init", "enrol", "account", "grant", "revoke", "check"}
    assert ("1.2.50", 9) in {(r["study_uid"], r["images"]) for r in rows["18"]}
    assert {(r["facility"], r["stored_as"], r["images"]) for r in rows["19"]} == {
        ("clinic-a", "protected", 1), ("clinic-a", "sealed whole", 16), ("hospital_b", "sealed whole", 1),
    }  # fmt: skip
    assert [(r["reason"], r["whole_again"] is not None) for r in rows["21"]] == [("pack-bytes", True)]
    assert (rows["22"][0]["first_event"], rows["22"][0]["problem"]) == (1, None)
    assert sum(r["images"] for r in rows["24"]) == 18
    assert [r["with_flags"] for r in rows["25"]] == [1, 0]
    assert rows["26"] == rows["27"] == rows["28"] == []


NAMES = [name.removesuffix(".sql") for name, _ in audit_kit.questions()]


def test_every_question_finds_what_it_asks_for(eventful: Place) -> None:
    assert len(NAMES) == 28
    with Catalog(eventful.store.layout, eventful.store.settings):  # in use, as in a running service
        expected({name: ask(eventful.root, name) for name in NAMES})


def test_questions_about_a_day(eventful: Place) -> None:
    def day(name: str, text: str) -> list[dict[str, Any]]:
        return ask(eventful.root, name, day=f"DATE '{text}'")

    assert [r["images"] for r in day("23-as-of", str(NOW.date() - timedelta(1)))] == []
    assert [r["images"] for r in day("23-as-of", str(NOW.date()))] == [14, 1]  # one was sent twice
    assert [r["images"] for r in day("23-as-of", "2999-12-24")] == [16, 1]
    # The real clock wrote who may what: made and taken back on the same day.
    assert [r["user"] for r in day("16-accounts", "2999-01-01")] == ["user.clinic-a", "user.hospital_b"]
    assert day("16-accounts", "2000-01-01") == []
    assert day("15-grants", "2999-01-01") == []
    assert day("20-unchecked", "2000-01-01") == []
    assert len(day("20-unchecked", "2999-01-01")) == 5
    assert [r["missing"] for r in day("08-gaps", "2999-01-01")] == []


def test_the_state_of_a_day_is_the_same_whatever_comes_later(place: Place, tmp_path: Path) -> None:
    layout, day = place.store.layout, f"DATE '{NOW.date()}'"

    def as_of(root: Path, when: str) -> list[dict[str, Any]]:
        rows = f"SELECT * FROM as_of({when}) ORDER BY batch_id, object_sha256"
        return [*ask(root, "23-as-of", day=when), *ask_sql(root, rows)]

    def arrives(*made: Made, at: datetime) -> None:
        for batch in made:
            place.put(place.a, batch)
        assert Service(place.store, Clock(lambda: at, lambda: 0.0)).one_pass().stored == len(made)

    def batch(rows: list[dict[str, Any]], **changes: Any) -> Made:
        return place.a.batch(rows, place.card, **changes)

    place.a.sequence = 7
    first, second = batch([row(0), row(1), row(2, study=4)]), batch([row(1), row(3)])
    arrives(first, second, at=NOW)
    before = as_of(place.root, day)
    assert (before[0]["images"], len(before)) == (4, 1 + 4)
    damaged, pack = Batch(A, first.batch), layout.pack(first.batch)

    def later() -> None:
        again = batch([row(0), row(2, study=4)], sequence=1)  # a lower number that took its time
        other = row(0, source_digest=digest("other bytes"), modality="MR")
        arrives(again, batch([other, row(9, study=4)]), at=LATER)

    def damage_found() -> None:
        assert damage.found(place.store, damaged, "pack-bytes", LATER, damage.seen(pack.stat()))

    def replaced() -> None:
        arrives(first, at=LATER)
        assert pack.exists()

    def rebuilt() -> None:
        catalog_file.drop(layout)
        with Catalog(layout, place.store.settings):
            check.check(place.store, read_data=True)

    for change in (later, damage_found, replaced, rebuilt):
        change()
        assert as_of(place.root, day) == before, change.__name__
    assert as_of(place.root, "DATE '2999-12-24'") != before
    audit_kit.write(place.store, tmp_path / "kit", Choice(), LATER)
    assert as_of(tmp_path / "kit", day) == before


def test_who_searched_for_a_patient(eventful: Place) -> None:
    [found] = ask(eventful.root, "27-patient", token=f"'{PATIENT}'")
    assert (found["user"], found["kind"]) == ("user.hospital_b", "sql")
    assert ask(eventful.root, "27-patient", token=f"'{token('another')}'") == []


def test_gaps_and_grants_in_force(place: Place) -> None:
    place.a.sequence = 4
    place.put(place.a, place.a.batch([row(0)], place.card))
    place.a.sequence = 7
    place.put(place.a, place.a.batch([row(1)], place.card))
    place.work()
    grants.give(place.store.layout, A, B)
    audit_segments.close(place.store, NOW)
    assert [r["missing"] for r in ask(place.root, "08-gaps")] == [6, 7]
    found = ask(place.root, "15-grants", day="DATE '2999-01-01'")
    assert [(r["owner"], r["reader"]) for r in found] == [("clinic-a", "hospital_b")]


def test_what_does_not_verify_is_named(place: Place) -> None:
    made = [place.put(place.a, place.a.batch([row(n)], place.card)) for n in range(4)]
    place.work()
    audit_segments.close(place.store, NOW)
    folders = [place.store.layout.manifest(A, batch.batch) for batch in made]
    for path in (folders[0] / "manifest.parquet", folders[1] / "receipt.json", folders[2] / "statement.json"):
        path.chmod(0o644)
    (folders[0] / "manifest.parquet").write_bytes(made[3].table)
    text = (folders[1] / "receipt.json").read_text()
    (folders[1] / "receipt.json").write_text(text.replace('"objects":1', '"objects":2'))
    text = (folders[2] / "statement.json").read_text()
    (folders[2] / "statement.json").write_text(text.replace('"bytes":', '"bytes":1'))
    assert {r["batch_id"] for r in ask(place.root, "03-not-as-signed")} == {b.batch for b in made[:3]}
    assert ask(place.root, "26-no-event") == []
    for path in place.store.layout.audit.glob("00000001.*"):  # the log is cut off, and goes on
        path.unlink()
    audit.record(place.store.layout, "check")
    audit_segments.close(place.store, NOW)
    assert {r["batch_id"] for r in ask(place.root, "26-no-event")} == {b.batch for b in made}
    (folders[3] / "receipt.json").unlink()
    assert [r["batch_id"] for r in ask(place.root, "02-no-receipt")] == [made[3].batch]


# -- the folder to take along ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(eventful: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "for the auditor"
    assert audit_kit.write(eventful.store, folder, Choice(), NOW).batches == 5
    return folder


WITHOUT_US = """import sys
sys.modules.update(dict.fromkeys(("central_store", "facility_sync", "schemas")))
exec(compile(sys.stdin.read(), "stdin", "exec"))"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script where there is no command of ours, and Python has DuckDB but nothing of ours."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "python3").write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -c '{WITHOUT_US}'\n")
    (tools / "python3").chmod(0o755)
    system = [path for path in os.environ["PATH"].split(":") if not (Path(path) / "fstore").exists()]
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=100,
        env={"PATH": ":".join([str(tools), *system])},
    )  # fmt: skip


def test_every_command_of_the_kits_readme_works_from_the_folder_alone(kit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(kit, folder)
    shown = re.findall(r"^```sh\n(.*?)^```$", (folder / "README.md").read_text("utf-8"), re.M | re.S)
    assert len(shown) == 5
    sums, fingerprint, signatures, shell, python = (run(block, folder) for block in shown)
    assert run("fstore || python3 <<< 'import central_store'", folder).returncode != 0
    assert (sums.returncode, fingerprint.returncode, python.returncode) == (0, 0, 0), python.stderr
    assert "SHA256:" in fingerprint.stdout
    assert signatures.stdout.count("Good ") == 5 + 5 + len(list(folder.glob("audit/*.json")))
    assert "WRONG" not in signatures.stdout
    assert python.stdout.count("-- ") >= 25
    assert (shell.returncode == 0) == (shutil.which("duckdb") is not None)
    receipt = next(folder.glob("manifests/*/*/receipt.json"))
    receipt.chmod(0o644)
    receipt.write_bytes(receipt.read_bytes().replace(b"central", b"centra1"))
    assert "WRONG" in run(shown[2], folder).stdout
    assert run(shown[0], folder).returncode != 0


def test_the_kit_answers_as_the_store_does_and_holds_no_secret(eventful: Place, kit: Path) -> None:
    expected({name: ask(kit, name) for name in NAMES})
    files = [path for path in kit.rglob("*") if path.is_file()]
    secret = [path.read_bytes() for path in (eventful.root / "keys").iterdir()]
    assert len(secret) == 3
    for path in files:
        data = path.read_bytes()
        assert not any(key.strip() in data for key in secret)
        assert b"$argon2id$" not in data
    assert not list(kit.rglob("*.tar"))


def test_a_kit_of_one_facility_says_nothing_about_others_and_its_chain_holds(
    eventful: Place, tmp_path: Path
) -> None:
    made = audit_kit.write(eventful.store, tmp_path / "b", Choice(facility=B), NOW)
    assert (made.batches, made.withheld > 0) == (1, True)
    found = ask(tmp_path / "b", "22-chain")[0]
    assert (found["problem"], found["withheld"], found["events"]) == (None, made.withheld, made.events)
    searches = ask(tmp_path / "b", "10-searches")
    assert len(searches) == 2
    others = [path for path in (tmp_path / "b").rglob("*") if path.is_file() and path.name != "README.md"]
    assert not any("clinic-a" in str(path) for path in others)
    with chdir(tmp_path / "b"), duckdb.connect() as auditor:
        seen = auditor.sql(
            "SELECT DISTINCT facility FROM 'audit/*.parquet' WHERE facility IS NOT NULL"
        ).fetchall()
    # A grant names its owner; a kit of everything is of nobody in particular.
    assert set(seen) <= {("hospital_b",), ("clinic-a",), ("",)}
    owner = audit_kit.write(eventful.store, tmp_path / "a", Choice(facility=A), NOW)
    assert owner.batches == 4
    assert ask(tmp_path / "a", "22-chain")[0]["problem"] is None


def test_a_kit_of_a_period_has_its_segments_and_batches(eventful: Place, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    audit_segments.close(eventful.store, now)
    audit.record(eventful.store.layout, "check", now=LATER)
    december = Choice(since=datetime(2999, 12, 1, tzinfo=UTC), until=datetime(2999, 12, 31, tzinfo=UTC))
    assert audit_kit.write(eventful.store, tmp_path / "kit", december, LATER).batches == 2
    found = ask(tmp_path / "kit", "22-chain")[0]
    assert (found["problem"], found["first_event"] > 1) == (None, True)
    before = Choice(until=datetime(2000, 1, 1, tzinfo=UTC))
    assert audit_kit.write(eventful.store, tmp_path / "none", before, LATER).events == 0


def test_the_views_of_a_running_store_work_from_another_folder(eventful: Place, tmp_path: Path) -> None:
    text = audit_kit.views(eventful.root)
    with chdir(tmp_path), duckdb.connect() as auditor:
        auditor.execute(text)
        assert auditor.sql("SELECT count(*) FROM instances").fetchall() == [(18,)]
        assert auditor.sql("SELECT count(*) FROM checks").fetchall() == [(5,)]
        assert auditor.sql(f"SELECT count(*) FROM as_of(DATE '{NOW.date()}')").fetchall() == [(15,)]


def test_the_views_of_a_new_store_are_those_that_have_files(place: Place) -> None:
    with duckdb.connect() as auditor:
        auditor.execute(audit_kit.views(place.root))
        audit_segments.close(place.store, NOW)
        auditor.execute(audit_kit.views(place.root))
        assert auditor.sql("SELECT count(*) FROM events").fetchall() == [(5,)]


def test_the_signature_walk_through_works(eventful: Place, tmp_path: Path) -> None:
    command = next(block for block in blocks("sh") if "ssh-keygen" in block)
    folder = next((eventful.root / "manifests" / "clinic-a").iterdir())
    (tmp_path / "signers").write_text(f"clinic-a {eventful.a.card.ssh_key}\n")
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
