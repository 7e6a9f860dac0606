"""Nothing in the audit log can be changed, left out, put in, moved, cut off or replaced unseen."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import audit, audit_segments, audit_verify
from central_store.audit_events import Event
from central_store.layout import Layout
from central_store.settings import Store
from schemas import audit_messages, container
from schemas.errors import Damaged
from tests.central_store.conftest import Place
from tests.central_store.test_audit import A, B, chain, problems
from tests.kit.batches import NOW


@pytest.fixture(scope="module")
def logged(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store's log with three segments and a journal."""
    store = replace(made_store.store, layout=Layout(tmp_path_factory.mktemp("logged")))
    shutil.copytree(made_store.store.layout.audit, store.layout.audit)
    for number in range(3):
        for step in range(4):
            details = {"n": number * 10 + step}
            audit.record(store.layout, "grant", facility=A, subject=B, details=details, now=NOW)
        audit_segments.close(store, NOW)
    audit.record(store.layout, "check", now=NOW)
    return store


@pytest.fixture
def whole(logged: Store, tmp_path: Path) -> Store:
    shutil.copytree(logged.layout.audit, tmp_path / "audit")
    return replace(logged, layout=Layout(tmp_path))


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    rows = pq.read_table(path).to_pylist()
    change(rows)
    path.chmod(0o644)
    pq.write_table(pa.Table.from_pylist(rows, audit_segments.SCHEMA), path)


def rechained(rows: list[dict[str, Any]]) -> None:
    """Hashes made again: what a forger does who knows the format."""
    rows[1]["details"] = '{"n":999}'
    last = rows[0]["hash"]
    for values in rows[1:]:
        values["previous"] = last
        given = {key: values[key] for key in values if key != "hash"}
        last = values["hash"] = Event(**given | {"time": audit.text_of(values["time"])}).hash


def put(rows: list[dict[str, Any]], **values: Any) -> None:
    rows[1] |= values


TAMPERING: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "sequence": lambda rows: put(rows, sequence=99),
    "time": lambda rows: put(rows, time=rows[1]["time"] + timedelta(microseconds=1)),
    "kind": lambda rows: put(rows, kind="revoke"),
    "facility": lambda rows: put(rows, facility="hospital_b"),
    "user": lambda rows: put(rows, user="kimura"),
    "subject": lambda rows: put(rows, subject="x"),
    "details": lambda rows: put(rows, details='{"n":5}'),
    "no details": lambda rows: put(rows, details=None),
    "previous": lambda rows: put(rows, previous="0" * 64),
    "hash": lambda rows: put(rows, hash="0" * 64),
    "deleted": lambda rows: rows.pop(1),
    "first deleted": lambda rows: rows.pop(0),
    "last deleted": lambda rows: rows.pop(),
    "inserted": lambda rows: rows.insert(1, dict(rows[1])),
    "swapped": lambda rows: rows.insert(1, rows.pop(2)),
    "reversed": lambda rows: rows.reverse(),
    "emptied": lambda rows: rows.clear(),
    "chained anew": rechained,
}


@pytest.mark.parametrize("how", TAMPERING)
@pytest.mark.parametrize("segment", [1, 3])
def test_a_changed_row_is_found(whole: Store, segment: int, how: str) -> None:
    rewritten(audit_segments.path(whole.layout, segment, "parquet"), TAMPERING[how])
    found = problems(whole)
    assert found[0].startswith(f"segment {segment}")
    assert any(word in found[0] for word in ("row 1:", "row 2:", "row 3:", "checkpoint names"))
    seen = chain(whole.layout.root)
    if how == "no details":
        assert seen["withheld"] == 1  # what a facility's kit may have, and a store may not
    elif (how, segment) in (("emptied", 1), ("first deleted", 1)):
        assert seen["first_event"] != 1 or seen["problem"]
    else:
        assert str(seen["problem"]).startswith(f"segment {segment}")


def other_key(layout: Layout) -> None:
    for ending in ("json", "json.sig"):
        audit_segments.path(layout, 2, ending).chmod(0o644)
    path = audit_segments.path(layout, 2, "json")
    signed = container.sign(audit.checkpoint(path), Ed25519PrivateKey.generate())
    audit_segments.path(layout, 2, "json.sig").write_text(signed.armor)


def swap(layout: Layout) -> None:
    one, two = (audit_segments.path(layout, number, "parquet") for number in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    for path, data in ((one, second), (two, first)):
        path.unlink()
        path.write_bytes(data)


def gone(*files: tuple[int, str]) -> Callable[[Layout], None]:
    def remove(layout: Layout) -> None:
        for number, ending in files:
            audit_segments.path(layout, number, ending).unlink()

    return remove


WHOLE = ("parquet", "json", "json.sig")
SEGMENTS: dict[str, tuple[Callable[[Layout], None], bool]] = {
    "segment gone": (gone((2, "parquet")), True),
    "last segment gone": (gone((3, "parquet")), True),
    "checkpoint gone": (gone((2, "json"), (2, "json.sig")), True),
    "both gone": (gone(*((2, ending) for ending in WHOLE)), True),
    "first gone": (gone(*((1, ending) for ending in WHOLE)), True),
    "swapped": (swap, True),
    "signed by another": (other_key, False),
}


@pytest.mark.parametrize("how", SEGMENTS)
def test_a_missing_or_other_segment_is_found(whole: Store, how: str) -> None:
    change, by_query = SEGMENTS[how]
    change(whole.layout)
    assert problems(whole) != []
    seen = chain(whole.layout.root)
    assert bool(seen["problem"] or seen["first_event"] != 1) == by_query  # signatures: `ssh-keygen` beside it


def test_a_log_cut_off_at_its_end_is_found_by_a_checkpoint_kept_elsewhere(whole: Store) -> None:
    layout, key = whole.layout, whole.card().signing_key
    kept = []
    for number in (2, 3):
        path = audit_segments.path(layout, number, "json")
        armor = audit_segments.path(layout, number, "json.sig").read_text()
        kept.append(container.verify(path.read_bytes(), armor, key))
    assert problems(whole, kept) == []
    gone(*((3, ending) for ending in WHOLE))(layout)
    audit.journal_path(layout).unlink()
    assert problems(whole) == []  # nothing here says that there was more
    assert chain(layout.root)["problem"] is None
    assert problems(whole, kept[:1]) == []
    assert [text.split(":")[0] for text in problems(whole, kept)] == ["segment 3"]
    audit.record(layout, "check", now=NOW)  # and written over with the store's own key
    audit_segments.close(whole, NOW)
    assert problems(whole) == []
    assert [text.split(":")[0] for text in problems(whole, kept)] == ["segment 3"]


def test_an_unchanged_log_holds_for_the_query_too(whole: Store) -> None:
    message = audit.checkpoint(audit_segments.path(whole.layout, 3, "json"))
    assert isinstance(message, audit_messages.Checkpoint)
    assert chain(whole.layout.root) == {
        "first_event": 1, "events": 17, "withheld": 0, "head": message.head, "problem": None
    }  # fmt: skip
    assert problems(whole) == []
    proof = audit_verify.verify(whole.layout, whole.card().signing_key)
    assert (proof.segments, proof.events, proof.journalled) == (3, 18, 1)


def test_a_checkpoint_that_cannot_be_read_stops_writers(whole: Store) -> None:
    path = audit_segments.path(whole.layout, 3, "json")
    path.chmod(0o644)
    path.write_bytes(b"{}")
    audit.journal_path(whole.layout).unlink()
    with pytest.raises(Damaged):
        audit.record(whole.layout, "check")


def resealed(whole: Store, number: int) -> None:
    """Another segment in the place of one, as whoever has the store's key and its disk can make it."""
    rewritten(audit_segments.path(whole.layout, number, "parquet"), rechained)
    table = audit_segments.path(whole.layout, number, "parquet")
    path = audit_segments.path(whole.layout, number, "json")
    head = audit_segments.table(table).column("hash").to_pylist()[-1]
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    signed = container.sign(replace(audit.checkpoint(path), head=head, table=digest), whole.keys.signing)
    for file, data in ((path, signed.data), (path.with_suffix(".json.sig"), signed.armor.encode())):
        file.chmod(0o644)
        file.write_bytes(data)


def test_a_segment_replaced_by_another_that_is_signed_is_found_by_the_next(whole: Store) -> None:
    resealed(whole, 2)
    assert problems(whole)[0].startswith("segment 3")
    assert str(chain(whole.layout.root)["problem"]).startswith("segment 3")


def test_a_log_that_was_forked_is_found_by_a_checkpoint_kept_elsewhere(whole: Store, tmp_path: Path) -> None:
    """The store's disk is copied; both go on. Each is whole, and each contradicts the other's checkpoint."""
    fork = replace(whole, layout=Layout(tmp_path / "fork"))
    shutil.copytree(whole.layout.audit, fork.layout.audit)
    heads = []
    for store, kind in ((whole, "check"), (fork, "repair")):
        audit.record(store.layout, kind, now=NOW)
        assert audit_segments.close(store, NOW) is not None
        assert problems(store) == []
        path = audit_segments.path(store.layout, 4, "json")
        armor = path.with_suffix(".json.sig").read_text()
        heads.append(container.verify(path.read_bytes(), armor, whole.card().signing_key))
    assert problems(whole, heads[:1]) == problems(fork, heads[1:]) == []
    for store, head in ((whole, heads[1]), (fork, heads[0])):
        assert [text.split(":")[0] for text in problems(store, [head])] == ["segment 4"]


JOURNAL: dict[str, Callable[[list[bytes]], object]] = {
    "changed": lambda lines: lines.insert(1, lines.pop(1).replace(b'"n":0', b'"n":9')),
    "deleted": lambda lines: lines.pop(1),
    "first deleted": lambda lines: lines.pop(0),
    "inserted": lambda lines: lines.insert(1, lines[1]),
    "swapped": lambda lines: lines.insert(1, lines.pop(2)),
    "reversed": lambda lines: lines.reverse(),
    "cut off within a line": lambda lines: lines.append(lines.pop()[:-20]),
}


@pytest.mark.parametrize("how", JOURNAL)
def test_a_changed_line_of_the_journal_is_found(whole: Store, how: str) -> None:
    for number in range(4):
        audit.record(whole.layout, "check", details={"n": number}, now=NOW)
    journal = audit.journal_path(whole.layout)
    lines = journal.read_bytes().splitlines(keepends=True)
    JOURNAL[how](lines)
    journal.write_bytes(b"".join(lines))
    assert [text.split(":")[0] for text in problems(whole)] == ["journal"]


def test_writers_do_not_wait_while_finished_segments_are_verified(
    whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = audit_segments.table

    def table(file: Path) -> pa.Table:
        if not file.stem.endswith("4"):
            audit.record(whole.layout, "check", now=NOW)  # would wait for ever for a lock that is held
        if file.stem.endswith("3"):
            audit_segments.close(whole, NOW)  # what comes meanwhile is verified, too
        return real(file)

    monkeypatch.setattr(audit_segments, "table", table)
    proof = audit_verify.verify(whole.layout, whole.card().signing_key)
    assert (proof.problems, proof.segments, proof.events) == ([], 4, 21)


def test_a_segment_that_was_begun_when_the_power_went_is_no_problem(whole: Store) -> None:
    layout = whole.layout
    for _ in range(3):
        audit.record(layout, "check", now=NOW)
    journal = audit.journal_path(layout).read_bytes()
    audit_segments.close(whole, NOW)
    audit.journal_path(layout).unlink()
    audit.journal_path(layout).write_bytes(journal)
    assert problems(whole) == []  # it has its checkpoint: the journal is passed over
    gone((4, "json"), (4, "json.sig"))(layout)
    assert problems(whole) == []
    rewritten(audit_segments.path(layout, 4, "parquet"), lambda rows: put(rows, kind="repair"))
    assert problems(whole) == ["segment 4: its checkpoint is missing"]
