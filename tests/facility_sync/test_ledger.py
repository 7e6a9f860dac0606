"""The ledger: transitions, and what a file's state follows from."""

import os
import sqlite3

import pytest

from facility_sync.ledger import Entry, Known, Ledger
from schemas.errors import VersionError
from schemas.messages import Statement

A, B = "0a" * 32, "0b" * 32
T = "2026-11-24T08:30:00Z"


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    yield ledger
    ledger.close()


def statement(batch=A, sequence=1, previous=""):
    return Statement(
        facility="clinic-a", sequence=sequence, previous=previous, batch=batch, objects=1, bytes=5, created=T
    )


def entry(name="1.dcm", batch=A, **more):
    return Entry("/data", "ct", name, 10, 20, batch=batch, **more)


def state(ledger, name="1.dcm"):
    return ledger.folder("/data", "ct")[name].state


def test_a_file_is_stored_only_by_its_batch_being_stored(ledger):
    ledger.record([entry()], statement())
    assert state(ledger) == "ready"
    ledger.mark_sent(A)
    assert state(ledger) == "sent"
    ledger.mark_stored(A, T)
    assert ledger.folder("/data", "ct") == {"1.dcm": Known(10, 20, "stored", "")}
    assert list(ledger.not_stored()) == []
    assert ledger.counts("/data") == {"stored": 1}


def test_a_batch_with_a_receipt_cannot_be_refused_or_sent_again(ledger):
    ledger.record([entry()], statement())
    ledger.mark_stored(A, T)
    ledger.mark_refused(A, "store:seal")
    ledger.mark_sent(A)
    assert ledger.batch(A).state == "stored"


def test_a_refused_batch_can_be_forgotten_and_taken_anew(ledger):
    ledger.record([entry()], statement())
    ledger.mark_refused(A, "store:seal")
    assert list(ledger.not_stored()) == [("/data", "ct", "1.dcm", "refused", "store:seal")]
    assert ledger.forget_refused() == 1
    assert ledger.folder("/data", "ct") == {}


def test_a_refused_file_keeps_its_reason(ledger):
    ledger.record([entry(batch="", reason="not-dicom")])
    assert ledger.folder("/data", "ct")["1.dcm"] == Known(10, 20, "refused", "not-dicom")


def test_a_held_file_is_stored_without_a_batch_of_ours(ledger):
    ledger.record([entry(batch=B, held=True, digest="d")])
    assert state(ledger) == "stored"
    assert ledger.by_digest(["d", "e"]) == {"d": B}


def test_files_and_batch_are_one_transaction(ledger):
    ledger.record([entry()], statement())
    with pytest.raises(sqlite3.IntegrityError):
        ledger.record([entry("2.dcm", batch=B)], statement(B, sequence=1))
    assert ledger.batch(B) is None
    assert "2.dcm" not in ledger.folder("/data", "ct")


def test_digests_of_refused_batches_are_not_held(ledger):
    ledger.record([entry(digest="d")], statement())
    assert ledger.by_digest(["d"]) == {"d": A}
    ledger.mark_refused(A, "store:seal")
    assert ledger.by_digest(["d"]) == {}


def test_a_conflict_is_the_same_instance_with_other_bytes(ledger):
    ledger.record([entry(digest="d", instance="1.2")], statement())
    assert ledger.other_bytes("1.2", "e")
    assert not ledger.other_bytes("1.2", "d")
    assert not ledger.other_bytes("1.3", "e")


def test_the_head_goes_on_where_the_store_says(ledger):
    assert ledger.head() == (0, "")
    ledger.adopt_head(7, B)
    assert ledger.head() == (7, B)
    ledger.record([entry()], statement(sequence=8, previous=B))
    ledger.adopt_head(3, B)
    assert ledger.head() == (8, A)


def test_names_that_are_no_text_are_kept(ledger):
    name = os.fsdecode(b"\xff\xfe.dcm")
    ledger.record([entry(name, batch="", reason="not-dicom")])
    assert ledger.folder("/data", "ct")[name].reason == "not-dicom"
    assert [line[2] for line in ledger.not_stored()] == [name]


def test_what_was_written_is_there_after_a_restart(tmp_path):
    first = Ledger(tmp_path / "l")
    first.record([entry()], statement())
    second = Ledger(tmp_path / "l")  # the first is not closed: a killed process closes nothing
    assert state(second) == "ready"


def test_a_lost_batch_waits_again_until_its_files_are_taken_or_it_is_back(ledger):
    ledger.record([entry(digest="d"), entry("2.dcm", digest="e")], statement())
    ledger.mark_stored(A, T)
    ledger.record([entry("3.dcm", batch=A, held=True, digest="f")])
    assert ledger.mark_lost(A, T) == 3
    assert {state(ledger), state(ledger, "2.dcm"), state(ledger, "3.dcm")} == {"lost"}
    assert len(list(ledger.not_stored())) == 3
    assert ledger.by_digest(["d", "e", "f"]) == {}
    ledger.record([entry(batch=B, digest="d")], statement(B, sequence=2, previous=A))
    assert (state(ledger), state(ledger, "2.dcm")) == ("ready", "lost")
    ledger.mark_stored(A, T)
    assert (state(ledger), state(ledger, "2.dcm"), state(ledger, "3.dcm")) == ("ready", "stored", "stored")


def test_a_pruned_file_stays_stored(ledger):
    ledger.record([entry(), entry("2.dcm")], statement())
    ledger.mark_stored(A, T)
    ledger.mark_pruned("/data", "ct", ["1.dcm", "2.dcm"], T)
    ledger.mark_pruned("/data", "ct", ["2.dcm"], "")
    assert [(r.name, r.state, r.stored, r.pruned) for r in ledger.records("/data")] == [
        ("1.dcm", "stored", T, T),
        ("2.dcm", "stored", T, ""),
    ]
    assert list(ledger.records("/data", "other")) == []
    assert ledger.pruned("/data") == 1


VERSION_1 = """
CREATE TABLE batches (
    batch TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, previous TEXT NOT NULL,
    objects INTEGER NOT NULL, bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ready', 'sent', 'stored', 'refused')),
    reason TEXT NOT NULL DEFAULT '', created TEXT NOT NULL, stored TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE files (
    source TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('packed', 'held', 'refused')),
    reason TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT '', instance TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, folder, name)
) WITHOUT ROWID;
CREATE TABLE heads (sequence INTEGER PRIMARY KEY, batch TEXT NOT NULL);
INSERT INTO files VALUES ('/data', 'ct', '1.dcm', 10, 20, 'held', '', 'b', 'd', 'i');
PRAGMA user_version = 1;
"""


def test_a_ledger_of_the_first_version_is_taken_over(tmp_path):
    with sqlite3.connect(tmp_path / "l") as db:
        db.executescript(VERSION_1)
    ledger = Ledger(tmp_path / "l")
    assert state(ledger) == "stored"
    assert ledger.mark_lost("b", T) == 1
    ledger.close()
    again = Ledger(tmp_path / "l")
    assert state(again) == "lost"
    again.close()


def test_another_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "l") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(VersionError):
        Ledger(tmp_path / "l")
