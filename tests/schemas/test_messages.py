"""Messages: canonical, versioned, strict."""

import dataclasses
import json
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import audit_messages, erasure_messages, messages, peer_messages, row_messages
from schemas.errors import FormatError, VersionError

SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIGcD/vUm1Gc8cV8aGTPm6aQbY+yBI5IbeQWvW3JQ7Ff"
AGE = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
H, R, T = "0a" * 32, "0b" * 16, "2026-11-24T08:30:00Z"

SAMPLES: dict[type[messages.Message], dict[str, object]] = {
    messages.FacilityCard: {"facility": "clinic-a", "ssh_key": SSH, "age_recipient": AGE},
    messages.StoreCard: {
        "store": "central", "host": "127.0.0.1", "port": 2222, "host_key": SSH, "signing_key": SSH,
        "age_recipient": AGE,
    },
    messages.Capsule: {
        "facility": "clinic-a", "original": H, "original_bytes": 9, "item": H, "pixels_at": 5, "created": T,
    },
    messages.Statement: {
        "facility": "clinic-a", "sequence": 1, "previous": "", "batch": H, "objects": 2, "bytes": 9,
        "created": T,
    },
    messages.Receipt: {
        "store": "central", "facility": "clinic-a", "batch": H, "sequence": 1, "objects": 2, "bytes": 9,
        "stored": T,
    },
    messages.Notice: {
        "store": "central", "facility": "clinic-a", "batch": H, "reason": "pack-bytes", "found": T,
    },
    messages.Refusal: {
        "store": "central", "facility": "clinic-a", "subject": H, "kind": "batch", "reason": "seal",
        "explanation": "altered", "refused": T,
    },
    messages.HeldRequest: {"id": R, "facility": "clinic-a", "digests": [H], "created": T},
    messages.HeldAnswer: {
        "store": "central", "request": R, "held": {H: H}, "sequence": 1, "head": H, "answered": T,
    },
    messages.SearchRequest: {
        "id": R, "facility": "clinic-a", "user": "kimura", "password": "pässwörd", "level": "study",
        "conditions": {"modality": ["CT"]}, "count_only": False, "limit": 10, "offset": 0,
        "order": ["menu:desc"], "created": T,
    },
    messages.SearchAnswer: {
        "store": "central", "request": R, "matches": 1, "instances": 2, "bytes": 3, "returned": 1, "table": H,
        "answered": T,
    },
    messages.SqlRequest: {
        "id": R, "facility": "clinic-a", "user": "kimura", "password": "x", "sql": "SELECT 'ä'", "created": T,
    },
    messages.SqlAnswer: {"store": "central", "request": R, "returned": 1, "table": H, "answered": T},
    messages.FetchRequest: {
        "id": R, "facility": "clinic-a", "user": "kimura", "password": "x", "objects": [H], "created": T,
    },
    messages.FetchAnswer: {
        "store": "central", "request": R, "objects": [H], "bytes": 3, "missing": [], "answered": T,
    },
    peer_messages.StoresRequest: {"id": R, "facility": "clinic-a", "created": T},
    audit_messages.Checkpoint: {
        "store": "central", "segment": 2, "events": 3, "sequence": 7, "head": H, "table": H, "previous": H,
        "created": T,
    },
    audit_messages.AuditRequest: {
        "id": R, "facility": "clinic-a", "user": "kimura", "password": "x", "since": T, "before": 0,
        "limit": 10, "created": T,
    },
    audit_messages.AuditAnswer: {
        "store": "central", "request": R, "returned": 1, "table": H, "more": 0, "checkpoint": "",
        "signature": "", "answered": T,
    },
}  # fmt: skip
SAMPLES |= {
    row_messages.RowsRequest: {
        "id": R, "facility": "clinic-a", "marks": {"clinic-a": [f"7:{R}", f"9:{R}"]}, "created": T,
    },
    row_messages.RowsAnswer: {
        "store": "central", "request": R, "owners": ["clinic-a", "b"], "agreed": {"clinic-a": [7]},
        "listed": {"b": [H]}, "until": {"b": 3}, "damaged": [H], "answered": T,
    },
    row_messages.ManifestsRequest: {"id": R, "facility": "clinic-a", "batches": [H], "created": T},
    row_messages.ManifestsAnswer: {
        "store": "central", "request": R, "missing": [H], "sizes": [9], "answered": T,
        "statements": [messages.Statement(**SAMPLES[messages.Statement]).to_bytes().decode()],
        "receipts": [messages.Receipt(**SAMPLES[messages.Receipt]).to_bytes().decode()],
    },
}  # fmt: skip
SAMPLES |= {
    erasure_messages.Tombstone: {"facility": "clinic-a", "batches": [H], "reason": "asked", "created": T},
    erasure_messages.Erasure: {
        "store": "central", "facility": "clinic-a", "batch": H, "tombstone": H, "taken": T, "purged": "",
    },
}  # fmt: skip
SAMPLES[peer_messages.StoresAnswer] = {
    "store": "central", "request": R, "answered": T,
    "cards": [messages.StoreCard(**SAMPLES[messages.StoreCard]).to_bytes().decode()],
}  # fmt: skip
RECEIPT = messages.Receipt(**SAMPLES[messages.Receipt]).to_bytes().decode()
CARD = messages.FacilityCard(**SAMPLES[messages.FacilityCard]).to_bytes().decode()
TOMBSTONE = erasure_messages.Tombstone(**SAMPLES[erasure_messages.Tombstone]).to_bytes().decode()
CHANGE: dict[str, object] = {"store": "central", "subject": "grants/a.b.json", "content": "", "changed": T}
SAMPLES |= {
    peer_messages.LogRequest: {
        "id": R, "store": "north", "start": 1, "wanted": 0, "size": 2, "root": H, "people": H,
        "created": T,
    },
    peer_messages.LogAnswer: {
        "store": "central", "request": R, "start": 1, "size": 2, "root": H, "receipts": [RECEIPT],
        "signatures": ["armor"], "people": H, "known": 1, "wanted": 0, "answered": T,
        "checkpoint": "", "checkpoint_signature": "", "notices": [], "notice_signatures": [],
    },
    peer_messages.BatchesRequest: {"id": R, "store": "north", "batches": [H], "created": T},
    peer_messages.BatchesAnswer: {"store": "central", "request": R, "missing": [H], "answered": T},
    peer_messages.Change: CHANGE,
    peer_messages.PeopleRequest: {
        "id": R, "store": "north", "tombstones": [H], "after": H, "created": T,
    },
    peer_messages.PeopleAnswer: {
        "store": "central", "request": R, "cards": [CARD], "answered": T,
        "keys": [SSH], "signatures": ["armor"], "tombstones": [TOMBSTONE], "tombstone_signatures": ["armor"],
        "more": False, "people": H,
        "changes": [peer_messages.Change(**CHANGE).to_bytes().decode()],
    },
}  # fmt: skip
KINDS = list(SAMPLES)


def test_every_message_has_a_sample():
    assert set(KINDS) == set(messages.Message.__subclasses__())


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind):
    message = kind(**SAMPLES[kind])
    assert kind.from_bytes(message.to_bytes()) == message
    assert messages.parse(message.to_bytes()).to_bytes() == message.to_bytes()


def test_golden_vector():
    """The bytes are the format: a change here is a change of version."""
    statement = messages.Statement(**SAMPLES[messages.Statement])
    assert statement.to_bytes() == (
        b'{"batch":"' + H.encode() + b'","bytes":9,"created":"2026-11-24T08:30:00Z","facility":"clinic-a",'
        b'"objects":2,"previous":"","sequence":1,"type":"statement","version":1}'
    )


def test_golden_vectors_of_erasing():
    tombstone = erasure_messages.Tombstone(**SAMPLES[erasure_messages.Tombstone])
    assert tombstone.to_bytes() == (
        b'{"batches":["' + H.encode() + b'"],"created":"2026-11-24T08:30:00Z","facility":"clinic-a",'
        b'"reason":"asked","type":"tombstone","version":1}'
    )
    name = "62cd1082b0565b93f97b6046477b734bbcf735f975d026653301b5afe969984d"
    assert erasure_messages.name_of(tombstone.to_bytes()) == name
    erasure = erasure_messages.Erasure(**SAMPLES[erasure_messages.Erasure])
    assert erasure.to_bytes() == (
        b'{"batch":"' + H.encode() + b'","facility":"clinic-a","purged":"","store":"central",'
        b'"taken":"2026-11-24T08:30:00Z","tombstone":"' + H.encode() + b'","type":"erasure","version":1}'
    )


def test_a_tombstone_names_a_reason_of_the_list_and_few_batches():
    values = SAMPLES[erasure_messages.Tombstone]
    with pytest.raises(FormatError, match="none of"):
        erasure_messages.Tombstone(**values | {"reason": "Müller asked"})
    with pytest.raises(FormatError, match="at most"):
        erasure_messages.Tombstone(**values | {"batches": [H] * (erasure_messages.MOST_BATCHES + 1)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_too_many_too_few_or_of_another_type_is_refused(kind):
    values = json.loads(kind(**SAMPLES[kind]).to_bytes())
    broken = [{**values, "extra": 1}]
    for field in dataclasses.fields(kind):
        broken.append({key: value for key, value in values.items() if key != field.name})
        broken += [
            {**values, field.name: value} for value in (None, -1, 1.5, [None], {"a": None}, "\ud800x" * 3)
        ]
    for case in broken:
        with pytest.raises(FormatError):
            messages.parse(json.dumps(case, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_is_refused_as_such(kind):
    values = json.loads(kind(**SAMPLES[kind]).to_bytes())
    with pytest.raises(VersionError):
        messages.parse(messages.canonical(values | {"version": kind.VERSION + 1}))


def test_another_spelling_is_refused():
    data = messages.Statement(**SAMPLES[messages.Statement]).to_bytes()
    for other in (
        data + b"\n",
        b" " + data,
        data.replace(b":", b": "),
        data.replace(b"clinic", b"\\u0063linic"),
    ):
        with pytest.raises(FormatError):
            messages.parse(other)


def test_another_type_than_expected_is_refused():
    with pytest.raises(FormatError, match="not a receipt"):
        messages.Receipt.from_bytes(messages.Statement(**SAMPLES[messages.Statement]).to_bytes())


def test_duplicate_keys_are_refused():
    data = messages.Statement(**SAMPLES[messages.Statement]).to_bytes()
    with pytest.raises(FormatError):
        messages.parse(data.replace(b'{"batch"', b'{"bytes":9,"batch"'))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"7", b"[" * 100_000, b'{"type":[]}', b"\xff", b"NaN"]
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(FormatError):
        messages.parse(data)


def test_size_is_checked_before_parsing():
    with pytest.raises(FormatError, match="larger"):
        messages.parse(b" " * (messages.MAX_BYTES + 1))


@given(st.binary(max_size=400), st.sampled_from(KINDS), st.data())
def test_only_our_error_comes_out(junk, kind, data):
    good = kind(**SAMPLES[kind]).to_bytes()
    at = data.draw(st.integers(0, len(good)))
    for case in (junk, good[:at] + junk + good[at:], good[:at] + junk + good[at + len(junk) :]):
        if case != good:
            try:
                assert messages.parse(case).to_bytes() == case
            except FormatError:
                continue


def test_a_password_is_not_in_the_repr():
    assert "pässwörd" not in repr(messages.SearchRequest(**SAMPLES[messages.SearchRequest]))


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'"ab",', b"[", b'{"a":', b"1.5,"])
def test_what_unfolds_to_gigabytes_is_refused_before_it_is_parsed(piece):
    data = b"[" + piece * (messages.MAX_BYTES // len(piece) - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="parts"):
        messages.parse(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "kilobytes"
