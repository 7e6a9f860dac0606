"""The audit log: what is recorded, that it is lasting first, and that nothing in it can be changed unseen.

Over 400 lines: each kind of event is caused once, by what really causes it, on one kind of place.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import (
    accounts,
    audit,
    audit_answers,
    audit_kit,
    audit_segments,
    audit_verify,
    check,
    facilities,
    grants,
    inbox,
    quarantine,
)
from central_store.audit_events import START, Event, following, from_line
from central_store.layout import Layout
from central_store.service import Clock, Service
from central_store.settings import Store
from schemas import audit_messages, container, messages, names
from schemas.audit_messages import Checkpoint
from schemas.container import Signed
from schemas.errors import FormatError
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import NOW, Facility, request_id, row, token
from tests.kit.cookbook import ask
from tests.kit.faults import Disk, Op, Verdict

A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")


def events(layout: Layout) -> list[Event]:
    """All events, of segments and the journal."""
    found: list[Event] = []
    for number in audit_segments.numbers(layout):
        rows = audit_segments.rows(audit_segments.table(audit_segments.path(layout, number, "parquet")))
        found += [event for event in rows if event is not None]
    return found + audit.read(layout)[0]


def kinds(layout: Layout) -> list[str]:
    return [event.kind for event in events(layout)]


def detail(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(event.details)
    return found


def problems(store: Store, kept: list[Signed] | None = None) -> list[str]:
    return audit_verify.verify(store.layout, store.card().signing_key, kept or []).problems


def chain(root: Path) -> dict[str, Any]:
    """What the one query of the cook-book says."""
    return ask(root, "22-chain")[0]


# -- what is recorded ---------------------------------------------------------------------------------


def test_each_act_is_one_event_without_any_identity_or_password(place: Place) -> None:
    layout = place.store.layout
    made = place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    place.work()
    grants.give(layout, A, B)
    patient = token("patient 1")
    place.ask(
        place.b, place.search(place.b, conditions={"patient_id_tokens": (patient,), "menu": ("*YAMADA*",)})
    )
    search = place.search(place.b, "instance", conditions={"patient_id_tokens": (patient,)})
    place.ask(place.b, search)
    place.ask(place.b, place.search(place.b, password="not the password"))
    place.ask(place.b, place.search(place.b, user="passw0rd-in-the-wrong-field"))
    fetch = messages.FetchRequest(
        id=request_id(), facility=B, user=search.user, password=PASSWORD,
        objects=tuple(names.object_id(name) for name in made.objects), created=messages.rfc3339(NOW),
    )  # fmt: skip
    place.ask(place.b, fetch)
    (place.inbound(place.a) / "no-name").write_bytes(b"x")
    place.work()
    grants.revoke(layout, A, B)
    accounts.remove(layout, B, names.user_name("user.hospital_b"))
    check.check(place.store, read_data=True)
    found = events(layout)[5:]  # the store, two facilities and their people
    assert sorted(event.kind for event in found) == sorted([
        "ingest", "grant", "search", "search", "refusal", "refusal", "fetch", "refusal", "revoke",
        "account-removed", "check-begun", "check",
    ])  # fmt: skip
    by = {event.subject: event for event in found}
    assert (by[made.batch].facility, detail(by[made.batch])["objects"]) == ("clinic-a", 2)
    assert detail(by[search.id]) == {
        "conditions": {"patient_id_tokens": [patient]}, "count_only": False, "level": "instance",
        "matches": 2, "owners": ["clinic-a"], "returned": 2, "rows": {"clinic-a": 2},
    }  # fmt: skip
    assert by[search.id].user == "user.hospital_b"
    given = detail(by[fetch.id])
    assert (given["objects"], given["missing"], given["bytes"]) == (
        {"clinic-a": 2}, 0, sum(map(len, made.objects.values())),
    )  # fmt: skip
    refused = [(e.facility, e.user, detail(e)["reason"]) for e in found if e.kind == "refusal"]
    assert sorted(refused) == [
        ("clinic-a", "", "foreign-name"), ("hospital_b", "", "access-denied"),
        ("hospital_b", "user.hospital_b", "access-denied"),
    ]  # fmt: skip
    written = audit.journal_path(layout).read_bytes()
    for secret in ("YAMADA", "not the password", "passw0rd", PASSWORD):
        assert secret.encode() not in written
    assert problems(place.store) == []


def test_the_first_events_are_the_store_and_its_people(made_store: Place) -> None:
    found = events(made_store.store.layout)
    assert [event.kind for event in found] == ["init", "enrol", "account", "enrol", "account"]
    assert detail(found[0])["by"]
    assert found[1].subject.startswith("SHA256:")
    assert (found[2].facility, found[2].user, detail(found[2])["new"]) == ("clinic-a", "user.clinic-a", True)


def failing_log(op: Op) -> Verdict:
    if op.kind == "write" and op.path.endswith("journal.jsonl"):
        raise OSError(errno.ENOSPC, "no space left on device")
    return None


def test_what_cannot_be_recorded_does_not_happen(place: Place) -> None:
    layout = place.store.layout
    before = kinds(layout)
    request = place.search(place.a)
    place.ask(place.a, request)
    acts: list[Callable[[], object]] = [
        lambda: grants.give(layout, A, B),
        lambda: accounts.add(layout, names.user_name("new"), A, PASSWORD),
        lambda: accounts.remove(layout, A, names.user_name("user.clinic-a")),
        place.work,
    ]
    for act in acts:
        with Disk(place.root, before=failing_log), pytest.raises(OSError, match="no space"):
            act()
    assert grants.given(layout) == ()
    assert [account.user for account in accounts.everyone(layout)] == ["user.clinic-a", "user.hospital_b"]
    assert not list(place.outbound(place.a).iterdir())
    assert kinds(layout) == before
    assert place.work().answered == 1


def many(root: Path, who: int) -> None:
    for number in range(25):
        audit.record(Layout(root), "check", subject=f"{who}.{number}")


def test_many_processes_write_one_chain(place: Place) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=many, args=(place.root, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for _ in range(5):
        audit_segments.close(place.store, NOW)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {event.subject for event in events(place.store.layout)} >= {
        f"{who}.{number}" for who in range(4) for number in range(25)
    }
    assert problems(place.store) == []


# -- the journal and its segments -----------------------------------------------------------------------


def test_a_line_is_an_event_in_its_one_spelling() -> None:
    event = Event(
        sequence=1, time="2026-11-24T08:30:00.000001Z", kind="check", facility="clinic-a", user="",
        subject="", details='{"a":1}', previous=START.hash,
    )  # fmt: skip
    line = event.line()
    assert from_line(line) == event
    assert following(line, START) == ([event], len(line))
    for other in (
        line[:-1], b" " + line, line.replace(b'"a":1', b'"a":2'), line.replace(b"clinic-a", b"clinic-b"),
        line.replace(b"}\n", b',"more":1}\n'), b"{}\n", b"[]\n", b"null\n", b"\xff\n",
    ):  # fmt: skip
        with pytest.raises(FormatError):
            from_line(other)
    with pytest.raises(FormatError):
        Event(**{**event.__dict__, "facility": 'a","kind":"x'})


def test_half_a_line_is_cut_off_and_a_damaged_one_set_aside(place: Place) -> None:
    layout = place.store.layout
    journal = audit.journal_path(layout)
    before = events(layout)
    with journal.open("ab") as file:
        file.write(before[-1].line()[:40])
    audit.record(layout, "check")
    assert kinds(layout) == [*(event.kind for event in before), "check"]
    with journal.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    audit.record(layout, "check")
    assert kinds(layout)[-2:] == ["journal-damaged", "check"]
    [kept] = layout.audit.glob("*.damaged")
    assert kept.read_bytes() == b"\0" * 100 + b"\n"
    data = journal.read_bytes()
    journal.write_bytes(data.replace(b'"init"', b'"enro"', 1))
    assert problems(place.store) != []
    audit_segments.close(place.store, NOW)
    assert kinds(layout) == ["journal-damaged"]
    aside = f"audit/{NOW:%Y%m%dT%H%M%S}.000000Z.damaged"
    damaged = [f"event 1: damaged lines of the journal, see {aside}"]
    assert problems(place.store) == damaged  # from now on, whatever comes behind it
    audit.record(layout, "check")
    audit_segments.close(place.store, NOW)
    assert problems(place.store) == damaged
    assert (
        chain(place.root)["problem"] == "segment 1, row 1: lines of the journal were damaged, and set aside"
    )


def test_a_segment_may_be_begun_again_at_any_step(place: Place) -> None:
    layout = place.store.layout
    written = events(layout)
    journal = audit.journal_path(layout).read_bytes()
    audit_segments.close(place.store, NOW)
    for left in (("parquet",), ("parquet", "json.sig"), ("parquet", "json.sig", "json")):
        for ending in {"parquet", "json", "json.sig"} - set(left):
            audit_segments.path(layout, 1, ending).unlink(missing_ok=True)
        audit.journal_path(layout).unlink()
        audit.journal_path(layout).write_bytes(journal)
        audit_segments.close(place.store, NOW)
        assert audit_segments.numbers(layout) == [1]
        assert events(layout) == written
        assert problems(place.store) == []
    audit.record(layout, "check")
    assert audit_segments.close(place.store, NOW) is not None
    assert audit_segments.numbers(layout) == [1, 2]
    assert (events(layout)[:-1], problems(place.store)) == (written, [])


def test_the_service_closes_a_journal_of_another_day_and_a_large_one(place: Place) -> None:
    layout = place.store.layout
    audit_segments.close(place.store, NOW)
    audit.record(layout, "check", now=NOW - timedelta(days=1))
    place.work()
    assert audit_segments.numbers(layout) == [1, 2]
    assert not audit_segments.due(layout, NOW)
    for _ in range(2):  # the second line is written behind one longer than a look at the end
        audit.record(layout, "check", details={"large": "x" * (audit_segments.LARGE // 2)}, now=NOW)
    assert audit_segments.due(layout, NOW)
    place.work()
    assert audit_segments.numbers(layout) == [1, 2, 3]
    assert problems(place.store) == []


def test_what_is_removed_for_its_age_or_number_is_an_event_first(place: Place) -> None:
    layout = place.store.layout
    before = len(events(layout))
    old = layout.outbound(A) / "old.answer"
    names_refused = ("1" * 64, "2" * 64)
    for subject in names_refused:
        (place.inbound(place.a) / subject).write_bytes(b"x")
        quarantine.take(layout, A, subject, subject, "foreign-name", limit=1 << 20)
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    year = 366 * 86400.0
    with Disk(place.root, before=failing_log), pytest.raises(OSError, match="no space"):
        inbox.sweep(layout, A, answers=1, refused=1, parts=1, now=time.time() + year)
    assert old.exists()
    assert inbox.sweep(layout, A, answers=1, refused=1, parts=1, now=time.time() + year) == 3
    for subject in names_refused:
        (place.inbound(place.a) / subject).write_bytes(b"x")
        quarantine.take(layout, A, subject, subject, "foreign-name", limit=4096)
    found = [(e.kind, e.facility, detail(e)) for e in events(layout)[before:]]
    assert found[:2] == [("prune", A, {"replies": 1}), ("prune", A, {"quarantine": 2})]
    assert {kind for kind, _, _ in found} == {"prune"}
    assert not list(layout.quarantine(A).glob("*.refused"))


def test_changed_settings_are_an_event_once(place: Place) -> None:
    layout = place.store.layout
    before = len(events(layout))
    place.work()
    assert len(events(layout)) == before
    changed = replace(place.store, settings=replace(place.store.settings, answer_days=3))
    for _ in range(2):
        Service(changed, Clock(lambda: NOW, time.monotonic)).one_pass()
    [event] = events(layout)[before:]
    assert (event.kind, detail(event)["settings"]["answer_days"]) == ("settings", 3)
    assert detail(events(layout)[0])["settings"]["answer_days"] == place.store.settings.answer_days


def test_a_facility_sees_that_everything_was_copied(place: Place, tmp_path: Path) -> None:
    audit_kit.write(place.store, tmp_path / "all", audit_kit.Choice(), NOW)
    audit_kit.write(place.store, tmp_path / "b", audit_kit.Choice(facility=B), NOW)
    _, rows = asked(place, place.a)
    assert [(r["kind"], r["facility"]) for r in rows[:2]] == [("log-read", A), ("kit", "")]


def test_enrolling_again_is_no_event_and_a_new_key_is(place: Place) -> None:
    layout = place.store.layout
    before = len(events(layout))
    facilities.enrol(layout, place.a.card)
    assert len(events(layout)) == before
    place.a.key = Ed25519PrivateKey.generate()
    facilities.enrol(layout, place.a.card, replace_key=True)
    assert [detail(event)["replaced"] for event in events(layout)[before:]] == [True]


# -- what a facility may read of it ---------------------------------------------------------------------


def asked(
    place: Place, who: Facility, **values: Any
) -> tuple[audit_messages.AuditAnswer, list[dict[str, Any]]]:
    """What a facility is answered, and its rows."""
    given = {"since": "", "before": 0, "limit": 1000} | values
    request = audit_messages.AuditRequest(
        id=request_id(), facility=names.facility_name(who.name), user=names.user_name(f"user.{who.name}"),
        password=PASSWORD, created=messages.rfc3339(NOW), **given,
    )  # fmt: skip
    place.ask(who, request)
    assert place.work().answered == 1
    answer, table, _ = who.open((place.outbound(who) / f"{request.id}.answer").read_bytes(), place.card)
    assert isinstance(answer, audit_messages.AuditAnswer)
    return answer, pq.read_table(io.BytesIO(table or b"")).to_pylist()


def test_a_facility_reads_what_concerns_its_own_data_and_no_more(place: Place) -> None:
    layout = place.store.layout
    place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    place.put(place.b, place.b.batch([row(0, study=3)], place.card))
    place.work()
    own = place.search(place.b)
    place.ask(place.b, own)
    place.work()
    grants.give(layout, A, B)
    seen = place.search(place.b, conditions={"modality": ("CT",)})
    place.ask(place.b, seen)
    place.ask(place.b, place.search(place.b, password="wrong"))
    place.work()
    audit_segments.close(place.store, NOW)
    answer, rows = asked(place, place.a)
    assert [r["kind"] for r in rows] == ["log-read", "search", "grant", "ingest", "account", "enrol"]
    assert (answer.returned, answer.more) == (6, 0)
    assert (rows[1]["facility"], rows[1]["user"], rows[1]["subject"]) == (
        "hospital_b",
        "user.hospital_b",
        seen.id,
    )
    assert json.loads(rows[1]["details"]) == {
        "conditions": {"modality": 1}, "count_only": False, "level": "study", "owners": ["clinic-a"],
        "rows": {"clinic-a": 1},
    }  # fmt: skip
    assert [r["sequence"] for r in rows] == sorted((r["sequence"] for r in rows), reverse=True)
    newest = audit.newest(layout)
    assert newest is not None
    assert answer.checkpoint.encode() == newest.read_bytes()
    assert Checkpoint.from_bytes(newest.read_bytes()).segment >= 1  # one more on another day than `NOW`
    container.verify(answer.checkpoint.encode(), answer.signature, place.card.signing_key)
    _, rows = asked(place, place.b)
    assert [r["kind"] for r in rows] == [
        "log-read", "refusal", "search", "grant", "search", "ingest", "account", "enrol"
    ]  # fmt: skip
    assert detail_of(rows[2])["rows"] == {"clinic-a": 1, "hospital_b": 1}
    assert own.id in {r["subject"] for r in rows}


def detail_of(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(values["details"])
    return found


def test_pages_follow_each_other_over_many_segments(place: Place) -> None:
    layout = place.store.layout
    for number in range(2 * audit_answers.SEGMENTS + 3):
        audit.record(layout, "ingest", facility=A, subject=str(number), now=NOW)
        audit_segments.close(place.store, NOW)
    pages, found, before = 0, list[str](), 0
    while True:
        answer, rows = asked(place, place.a, before=before)
        found += [r["subject"] for r in rows if r["kind"] == "ingest"]
        pages, before = pages + 1, answer.more
        if not before:
            break
    assert pages == 3
    assert found == [str(number) for number in reversed(range(2 * audit_answers.SEGMENTS + 3))]
    answer, rows = asked(place, place.a, limit=4, before=before)
    assert (len(rows), answer.more) == (4, rows[-1]["sequence"])
    assert asked(place, place.a, since="2999-01-01T00:00:00Z")[1] == []
    assert len(asked(place, place.a, since=messages.rfc3339(NOW))[1]) > 15


def test_nobody_reads_it_without_the_password(place: Place) -> None:
    request = audit_messages.AuditRequest(
        id=request_id(), facility=A, user=names.user_name("user.clinic-a"), password="wrong", since="",
        before=0, limit=10, created=messages.rfc3339(NOW),
    )  # fmt: skip
    place.ask(place.a, request)
    assert place.work().refused == 1
    refusal = place.reply(place.a, f"{request.id}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert refusal.reason == "access-denied"
