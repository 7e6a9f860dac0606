"""What a terminal keeps of what it erased: files are the truth, the ledger an index of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import tombstones
from facility_sync.erased_files import ErasedFiles
from facility_sync.home import Home
from facility_sync.ledger import Entry, Ledger
from schemas import container, keys, messages, names
from schemas.erasure_messages import Erasure, Tombstone, name_of
from schemas.errors import Damaged, SealError
from tests.kit.batches import digest

A, B = names.batch_id("0a" * 32), names.batch_id("0b" * 32)
T = "2026-11-24T08:30:00Z"
STORE = Ed25519PrivateKey.generate()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create("clinic-a")
    card = messages.StoreCard(
        store="central", host="127.0.0.1", port=1, host_key=keys.ssh_line(STORE.public_key()),
        signing_key=keys.ssh_line(STORE.public_key()), age_recipient=made.card().age_recipient,
    )  # fmt: skip
    made.trust(card.to_bytes())
    return made


def bury(home: Home, *batches: names.BatchId, created: str = T) -> container.Signed:
    said = Tombstone(facility="clinic-a", batches=batches, reason="asked", created=created)
    signed = container.sign(said, home.ssh_key)
    tombstones.keep(home, signed, [digest("x"), digest("y")])
    return signed


def word(batch: names.BatchId, tombstone: str, **more: str) -> container.Signed:
    values = {"store": "central", "facility": "clinic-a", "batch": batch, "tombstone": tombstone,
              "taken": T, "purged": ""}  # fmt: skip
    return container.sign(Erasure(**(values | more)), STORE)


def test_a_lost_ledger_learns_again_what_is_erased(home: Home) -> None:
    bury(home, A)
    for _ in range(2):
        ledger = Ledger(home.ledger_path)
        tombstones.index(home, ledger)
        assert ErasedFiles(ledger).erased([digest("x"), digest("z")]) == {digest("x")}
        ledger.record([Entry("/data", "", "1.dcm", 1, 2, digest=digest("x"))])
        assert ledger.folder("/data", "")["1.dcm"].state == "erased"
        assert list(ledger.not_stored()) == []
        assert ledger.counts("/data") == {"erased": 1}
        ledger.close()
        for path in home.root.glob("ledger.sqlite3*"):
            path.unlink()


def test_half_a_tombstone_is_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tombstones.durable, "publish_dir", stop)
        with pytest.raises(KeyboardInterrupt):
            bury(home, A)
    assert list(tombstones.listing(home)) == []
    ledger = Ledger(home.ledger_path)
    tombstones.index(home, ledger)
    ledger.close()
    assert list(home.erased.iterdir()) == []


def test_a_damaged_one_is_loud(home: Home) -> None:
    signed = bury(home, A)
    path = home.erased / name_of(signed.data) / "sources"
    path.unlink()
    with pytest.raises(Damaged, match="tombstone"):
        list(tombstones.listing(home))


def test_what_is_in_an_erased_batch_is_not_safe_there(home: Home) -> None:
    """A file that stood behind another when its batch was erased: the next erasure must not rely on it."""
    ledger = Ledger(home.ledger_path)
    statement = messages.Statement(
        facility="clinic-a", sequence=1, previous="", batch=A, objects=1, bytes=5, created=T
    )
    ledger.record([Entry("/data", "", "1.dcm", 1, 2, batch=A, digest=digest("other"))], statement)
    ledger.mark_stored(A, T)
    assert ErasedFiles(ledger).stored_outside([digest("other")], {B}) == {digest("other")}
    bury(home, A)
    tombstones.index(home, ledger)
    assert ErasedFiles(ledger).stored_outside([digest("other")], {B}) == set()
    assert ledger.by_digest([digest("other")]) == {}
    for path in home.erased.iterdir():
        shutil.rmtree(path)
    tombstones.index(home, ledger)
    assert ledger.by_digest([digest("other")]) == {digest("other"): A}, "the folders are the truth"
    ledger.close()


def test_a_store_is_asked_until_it_certified_every_batch(home: Home) -> None:
    first, second = bury(home, A, B), bury(home, A, created="2026-11-24T09:30:00Z")
    name = name_of(first.data)
    assert [each.name for each in tombstones.waiting(home, "central")] == [name, name_of(second.data)]
    tombstones.heard(home, word(A, name))
    tombstones.heard(home, word(B, name, purged=T))
    assert [(one.batch, one.taken, one.purged) for one in tombstones.standings(home)] == [
        (A, T, ""), (B, T, T), (A, T, ""),
    ]  # fmt: skip
    tombstones.heard(home, word(A, name, purged=T))
    assert tombstones.waiting(home, "central") == [], "a word about a batch counts for each tombstone of it"
    with pytest.raises(SealError):
        tombstones.heard(home, word(A, name, facility="other"))


def test_a_refusal_is_shown_until_a_word_comes(home: Home) -> None:
    name = name_of(bury(home, A).data)
    tombstones.refused(home, name, "central", "seal")
    assert [one.refused for one in tombstones.standings(home)] == ["seal"]
    tombstones.heard(home, word(A, name))
    assert [one.refused for one in tombstones.standings(home)] == [""]


def test_files_that_were_sent_again_leave_their_batch(home: Home) -> None:
    ledger = Ledger(home.ledger_path)
    files = ErasedFiles(ledger)

    def statement(batch: names.BatchId, sequence: int) -> messages.Statement:
        return messages.Statement(
            facility="clinic-a", sequence=sequence, previous="", batch=batch, objects=1, bytes=5, created=T
        )

    two = [Entry("/data", "", name, 1, 2, batch=A, digest=digest("x")) for name in ("1.dcm", "2.dcm")]
    ledger.record(two, statement(A, 1))
    ledger.mark_stored(A, T)
    assert files.stored_outside([digest("x")], {A}) == set()
    ledger.record([Entry("/back", "", "x.dcm", 1, 2, batch=B, digest=digest("x"))], statement(B, 2))
    assert files.stored_outside([digest("x")], {A}) == set(), "sent is not stored"
    ledger.mark_stored(B, T)
    assert files.stored_outside([digest("x")], {A}) == {digest("x")}
    assert len(list(files.places(digest("x")))) == 3
    files.moved([digest("x")], {A})
    files.forget("/back")
    assert {record.batch for record in ledger.records("/data")} == {B}
    assert ledger.counts("/back") == {}
    assert ledger.by_digest([digest("x")]) == {digest("x"): B}
    assert ledger.by_digest([digest("x")], {B}) == {}
    ledger.close()
