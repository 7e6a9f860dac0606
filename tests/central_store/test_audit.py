"""The audit log: what is recorded, that it is lasting first, and that nothing in it can be changed unseen."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
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

from central_store import (
    accounts,
    audit,
    audit_answers,
    audit_segments,
    audit_verify,
    check,
    facilities,
    grants,
)
from central_store.audit_events import START, Event, following, from_line
from central_store.layout import Layout
from central_store.settings import Store
from schemas import audit_messages, container, messages, names
from schemas.audit_messages import Checkpoint
from schemas.container import Signed
from schemas.errors import Damaged, FormatError
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
        "account-removed", "check",
    ])  # fmt: skip
    by = {event.subject: event for event in found}
    assert (by[made.batch].facility, detail(by[made.batch])["objects"]) == ("clinic-a", 2)
    assert detail(by[search.id]) == {
        "conditions": {"patient_id_tokens": 1}, "count_only": False, "level": "instance", "matches": 2,
        "owners": ["clinic-a"], "returned": 2, "rows": {"clinic-a": 2},
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
    for secret in (patient, "YAMADA", "not the password", "passw0rd", PASSWORD):
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
    assert problems(place.store) == []


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


# -- nothing can be changed unseen ----------------------------------------------------------------------


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
    assert Checkpoint.from_bytes(answer.checkpoint.encode()).segment == 1
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
