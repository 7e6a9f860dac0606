"""Whatever lies on a shelf: a signed refusal, quarantine, and the next good batch is taken."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

import pytest

from schemas import container, envelope, keys, messages, ustar
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, Facility, Made, digest, request_id, row, tar_of


def _good(place: Place, who: Facility | None = None) -> Made:
    return (who or place.a).batch([row(0), row(1)], place.card)


def _flipped(made: Made, seed: int) -> bytes:
    data = bytearray(made.sealed)
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    return bytes(data)


def _resealed(place: Place, plain: bytes) -> bytes:
    return envelope.seal_bytes(plain, [place.card.age_recipient])


def _other_recipient(place: Place) -> Made:
    made = _good(place)
    stranger = keys.recipient_of(keys.new_age_identity())
    return made._replace(sealed=envelope.seal_bytes(made.plain, [stranger]))


def _too_many(place: Place) -> Made:
    data = [b"first", b"second"]
    return place.a.batch([row(0), row(1)], place.card, data, members=[*data, b"third"])


def _same_object_twice(place: Place) -> Made:
    data = [b"first", b"second"]
    return place.a.batch([row(0), row(1)], place.card, data, members=[data[0], data[0]])


def _changed_object(place: Place) -> Made:
    made = _good(place)
    plain = bytearray(made.plain)
    plain[-3 * ustar.BLOCK] ^= 1
    return made._replace(sealed=_resealed(place, bytes(plain)))


def _other_table(place: Place) -> Made:
    made, other = _good(place), place.a.batch([row(5)], place.card)
    plain = (
        container.head_bytes(made.statement, other.table) + tar_of(list(made.objects.values())) + ustar.END
    )
    return made._replace(sealed=_resealed(place, plain))


def _a_request(place: Place) -> Made:
    asked = messages.HeldRequest(
        id=request_id(), facility=place.a.name, digests=(), created=messages.rfc3339(NOW)
    )
    return _good(place)._replace(sealed=place.a.request(asked, place.card))


HOSTILE: dict[str, tuple[Callable[[Place], Made], str]] = {
    "empty": (lambda p: _good(p)._replace(sealed=b""), "seal"),
    "random bytes": (lambda p: _good(p)._replace(sealed=random.Random(1).randbytes(5000)), "seal"),
    "cut in the header": (lambda p: (m := _good(p))._replace(sealed=m.sealed[:50]), "seal"),
    "cut in the middle": (lambda p: (m := _good(p))._replace(sealed=m.sealed[: len(m.sealed) // 2]), "seal"),
    "last byte missing": (lambda p: (m := _good(p))._replace(sealed=m.sealed[:-1]), "seal"),
    "a byte more": (lambda p: (m := _good(p))._replace(sealed=m.sealed + b"!"), "seal"),
    **{
        f"bit flip {n}": (lambda p, n=n: (m := _good(p))._replace(sealed=_flipped(m, n)), "seal")
        for n in range(6)
    },
    "sealed for somebody else": (_other_recipient, "seal"),
    "no tar": (lambda p: _good(p)._replace(sealed=_resealed(p, b"no tar at all")), "format"),
    "nothing in the seal": (lambda p: _good(p)._replace(sealed=_resealed(p, b"")), "format"),
    "signed by another facility": (lambda p: p.a.batch([row(0)], p.card, signer=p.b.key), "seal"),
    "another facility's batch": (lambda p: _good(p, p.b), "other-facility"),
    "speaks for another facility": (
        lambda p: p.a.batch([row(0)], p.card, facility=p.b.name), "other-facility",
    ),
    "manifest of another facility": (
        lambda p: p.a.batch([row(0)], p.card, table_facility=p.b.name), "format",
    ),
    "wrong count": (
        lambda p: p.a.batch([row(0)], p.card, objects=[b"x"], bytes=2), "manifest-mismatch",
    ),
    "wrong name": (
        lambda p: _good(p)._replace(batch=digest("another")), "other-name",  # type: ignore[arg-type]
    ),
    "an object too many": (_too_many, "manifest-mismatch"),
    "an object twice": (_same_object_twice, "manifest-mismatch"),
    "an object missing": (
        lambda p: p.a.batch([row(0), row(1)], p.card, [b"1", b"2"], members=[b"1"]), "manifest-mismatch",
    ),
    "objects in another order": (
        lambda p: p.a.batch([row(0), row(1)], p.card, [b"1", b"2"], members=[b"2", b"1"]),
        "manifest-mismatch",
    ),
    "a changed object": (_changed_object, "manifest-mismatch"),
    "another table": (_other_table, "seal"),
    "a request instead": (_a_request, "format"),
}  # fmt: skip


def test_every_hostile_batch_is_refused_and_the_good_one_beside_it_is_stored(place: Place) -> None:
    expected = {}
    for what, (make, reason) in HOSTILE.items():
        made = place.put(place.a, make(place))
        expected[made.batch] = (what, reason)
    good = place.put(place.a, place.a.batch([row(7)], place.card))
    other = place.put(place.b, place.b.batch([row(8)], place.card))

    counts = place.work()

    assert (counts.stored, counts.refused) == (2, len(expected))
    for batch, (what, reason) in expected.items():
        refusal = place.reply(place.a, f"{batch}.refusal")
        assert isinstance(refusal, messages.Refusal), what
        assert (refusal.reason, refusal.kind, refusal.subject) == (reason, "batch", batch), what
        kept = place.store.layout.quarantine(place.a.card.facility)
        assert (kept / f"{batch}.refused").is_file(), what
        assert (kept / f"{batch}.reason").read_text() == f"{reason}\n", what
        assert not (place.outbound(place.a) / f"{batch}.receipt").exists(), what
        assert not place.store.layout.pack(batch).exists(), what  # type: ignore[arg-type]
    assert isinstance(place.reply(place.a, f"{good.batch}.receipt"), messages.Receipt)
    assert isinstance(place.reply(place.b, f"{other.batch}.receipt"), messages.Receipt)
    assert not list(place.inbound(place.a).iterdir())
    assert not [path for path in place.store.layout.staging.iterdir() if path.name != "catalog"]
    assert not list(place.store.layout.journal.iterdir())


def test_a_batch_that_was_broken_on_the_way_is_taken_when_it_comes_whole(place: Place) -> None:
    made = place.a.batch([row(0)], place.card)
    place.put(place.a, made._replace(sealed=made.sealed[:-1]))
    place.work()
    assert (place.outbound(place.a) / f"{made.batch}.refusal").exists()
    place.put(place.a, made)
    place.work()
    assert (place.outbound(place.a) / f"{made.batch}.receipt").exists()
    assert not (place.outbound(place.a) / f"{made.batch}.refusal").exists()


def test_names_that_have_no_place_are_never_opened(place: Place) -> None:
    shelf, secret = place.inbound(place.a), place.root / "keys" / "signing_key"
    name = place.a.batch([row(0)], place.card).file
    (shelf / "..batch").write_bytes(b"x")
    (shelf / "evil\nname").write_bytes(b"x")
    (shelf / name.upper()).write_bytes(b"x")
    (shelf / f"{'0' * 64}.receipt").write_bytes(b"x")
    (shelf / f"{'1' * 64}.batch").symlink_to(secret)
    (shelf / f"{'2' * 64}.batch").mkdir()
    (shelf / f"{'2' * 64}.batch" / "inside").write_bytes(b"x")
    os.mkfifo(shelf / f"{'3' * 32}.request")
    os.mkfifo(shelf / "pipe.part")
    (shelf / f"{'4' * 64}.batch.0123.part").write_bytes(b"an upload under way")
    foreign = [entry.name for entry in shelf.iterdir() if not entry.name.endswith("0123.part")]

    assert place.work().refused == len(foreign) == 8

    assert [entry.name for entry in shelf.iterdir()] == [f"{'4' * 64}.batch.0123.part"]
    assert secret.is_file()
    for name in foreign:
        subject = hashlib.sha256(os.fsencode(name)).hexdigest()
        refusal = place.reply(place.a, f"{subject}.refusal")
        assert isinstance(refusal, messages.Refusal)
        assert refusal.reason == "foreign-name"
        kept = place.store.layout.quarantine(place.a.card.facility) / f"{subject}.refused"
        assert os.path.lexists(kept) == (name != f"{'2' * 64}.batch"), "a folder is not kept"
    assert place.work().refused == 0


@pytest.mark.parametrize(
    "what", ["cut", "stranger", "forged", "other-facility", "other-name", "batch", "junk"]
)
def test_hostile_requests_are_refused(place: Place, what: str) -> None:
    asked = place.search(place.a)
    sealed = place.a.request(asked, place.card)
    data, reason = {
        "cut": (sealed[:-1], "seal"),
        "stranger": (sealed[:20] + sealed[40:], "seal"),
        "forged": (place.a.request(asked, place.card, signer=place.b.key), "seal"),
        "other-facility": (place.b.request(place.search(place.b, id=asked.id), place.card), "other-facility"),
        "other-name": (place.a.request(place.search(place.a), place.card), "other-name"),
        "batch": (place.a.batch([row(0)], place.card).sealed, "format"),
        "junk": (_resealed(place, b"\0" * 2000), "format"),
    }[what]
    (place.inbound(place.a) / f"{asked.id}.request").write_bytes(data)
    assert place.work().refused == 1
    refusal = place.reply(place.a, f"{asked.id}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert (refusal.reason, refusal.kind, refusal.subject) == (reason, "request", asked.id)
    kept = place.store.layout.quarantine(place.a.card.facility) / f"{asked.id}.refused"
    assert kept.exists() == (reason == "seal"), "what was opened may hold a password and is not kept"
    assert not list(place.inbound(place.a).iterdir())
