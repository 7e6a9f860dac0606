"""A peer's log that is long: what one step reads of it, and that the end is the same as of one great step."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from central_store import (
    batches,
    damage,
    inbox,
    missing,
    peer_answers,
    peer_shelf,
    peers,
    receipt_log,
    replicas,
    replication,
    settings,
)
from central_store.batches import Batch
from central_store.missing import Unseen
from central_store.receipt_log import ReceiptLog
from central_store.service import Clock, Service
from schemas import names
from schemas.errors import FormatError
from schemas.messages import Notice, Receipt
from schemas.names import BatchId
from schemas.peer_messages import MOST_BATCHES, MOST_ENTRIES, BatchesRequest, LogAnswer
from tests.central_store.test_peers_campaign import entries_of, synthetic
from tests.kit.batches import NOW, Facility, row
from tests.kit.peering import Node, carry, made_whole, rounds


def promise(node: Node, count: int) -> list[BatchId]:
    """So many batches that a store gave receipts for, and does not have; in the log's order."""
    made = [names.batch_id(f"{number:064x}") for number in range(count)]
    ReceiptLog(node.layout.log).append(list(entries_of(node, "clinic-a", made)))
    return made


def has(node: Node, batch: BatchId) -> None:
    """Let a store have a batch, as far as a comparison asks."""
    node.layout.manifest(names.facility_name("clinic-a"), batch).mkdir(parents=True)
    node.layout.pack(batch).parent.mkdir(exist_ok=True)
    node.layout.pack(batch).write_bytes(b"")


def asked(a: Node, b: Node, check: Any = lambda: None) -> list[BatchId]:
    """Let them talk until they come to rest; returns what `b` asks `a` for, what it wants most first."""
    found: list[BatchId] = []
    known = peers.load(a.layout, b.name)
    assert known is not None
    for _ in range(3000):
        for node in (a, b):
            node.step()
            check()
        moved = carry(a, b)
        for name in inbox.look(a.layout.inbound(b.name)).requests:
            message = peer_shelf.read(a.store, known, name)
            if isinstance(message, BatchesRequest):
                found += message.batches
        if not moved and not a.talk.working and not b.talk.working:
            return found
    raise AssertionError("they do not come to rest")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_what_is_unseen_is_given_out_once_and_the_newest_first(steps: list[tuple[bool, int]]) -> None:
    unseen, left, size = Unseen(), set[int](), 0
    for adding, count in [*steps, *[(False, 9)] * 60]:
        if adding:
            unseen.add(size, size + count)
            left |= set(range(size, size + count))
            size += count
        elif count:
            start, stop = unseen.take(count)
            found = set(range(start, stop))
            assert len(found) <= count
            assert found <= left
            assert (max(found, default=-1) == max(left)) if left else not found
            left -= found
        assert len(unseen) == len(left)
    assert not left


def test_a_step_reads_a_bounded_number_of_entries(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = pair
    made = promise(a, 3 * missing.SLICE)
    read = {"decode": 0, "verified": 0}

    def counted(name: str) -> Any:
        real = getattr(receipt_log, name)

        def count(*given: Any) -> Any:
            read[name] += 1
            return real(*given)

        return count

    for name in read:
        monkeypatch.setattr(receipt_log, name, counted(name))
    most = dict.fromkeys(read, 0)
    total = dict.fromkeys(read, 0)

    def note() -> None:
        for name, count in read.items():
            most[name], total[name] = max(most[name], count), total[name] + count
            read[name] = 0
        state = b.talk._states.get(a.name)
        assert state is None or len(state.missing._wanted) < MOST_BATCHES + missing.SLICE

    found = asked(a, b, note)
    assert found == made[::-1], "all of them, the newest first"
    assert total["verified"] == len(made)
    assert most["verified"] <= MOST_ENTRIES, "one answer"
    assert most["decode"] <= MOST_ENTRIES + missing.SLICE + replicas.SLICE, "one answer, or one slice"
    b.close()
    b.open()
    note()
    assert list(dict.fromkeys(asked(a, b, note))) == made[::-1], "after a start the same"
    assert most["decode"] <= MOST_ENTRIES + missing.SLICE + replicas.SLICE


def test_an_answer_with_more_entries_is_no_message(pair: tuple[Node, Node, Facility]) -> None:
    a, _, _ = pair
    (entry,) = map(receipt_log.decode, synthetic(a, 1))
    for count in (MOST_ENTRIES, MOST_ENTRIES + 1):
        words: dict[str, Any] = {
            "store": a.name, "request": names.request_id("0" * 32), "start": 0, "size": count,
            "root": "0" * 64, "receipts": (entry.signed.data.decode(),) * count,
            "signatures": (entry.signed.armor,) * count, "people": "0" * 64, "known": 0, "wanted": 0,
            "checkpoint": "", "checkpoint_signature": "", "notices": (), "notice_signatures": (),
            "answered": "2026-11-24T08:30:00Z",
        }  # fmt: skip
        if count > MOST_ENTRIES:
            with pytest.raises(FormatError):
                LogAnswer(**words)
        else:
            LogAnswer(**words)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 10, 11, 74, 75, 150])
@pytest.mark.parametrize("slice_size", [5, 10_000])
def test_slices_find_what_one_great_step_finds(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch, size: int, slice_size: int
) -> None:
    monkeypatch.setattr(missing, "SLICE", slice_size)
    monkeypatch.setattr(peer_answers, "MOST_ENTRIES", min(slice_size + 2, MOST_ENTRIES))
    a, b, _ = pair
    made, choice = promise(a, size), random.Random(size)
    held = set(choice.sample(made, size // 2))
    for batch in held:
        has(b, batch)
    assert asked(a, b) == [batch for batch in made[::-1] if batch not in held]
    settled = peers.settled(b.layout, a.name)
    assert settled == (0 if len(held) < size else size), "what was refused is not settled"


def test_a_log_that_is_not_proved_to_its_end_counts_for_nothing(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces lie on the disk already when the last of them gives another root; and after a stop."""
    monkeypatch.setattr(peer_answers, "MOST_ENTRIES", 100)
    a, b, _ = pair
    made = promise(a, 700)
    mirror = b.layout.peer(a.name) / "log"
    while not (mirror / "tile").exists():
        b.step()
        carry(a, b)
        a.step()
    assert ReceiptLog(mirror).range().size == 0
    b.close()
    b.open()  # in the middle
    assert asked(a, b) == made[::-1]
    assert ReceiptLog(mirror).range() == ReceiptLog(a.layout.log).range()
    assert list(ReceiptLog(mirror).entries(0, 701)) == list(ReceiptLog(a.layout.log).entries(0, 701))

    ReceiptLog(a.layout.log).append(synthetic(a, 2)[1:])  # one entry more, whose signature is not its own
    a.ask()
    b.ask()
    for _ in range(4):
        a.step()
        b.step()
        carry(a, b)
    assert b.refused
    assert ReceiptLog(mirror).range().size == 700


def test_a_damaged_copy_of_a_log_is_brought_again(pair: tuple[Node, Node, Facility]) -> None:
    a, b, _ = pair
    made = promise(a, 600)
    assert asked(a, b) == made[::-1]
    for name in ("tile/entries/001", "head"):
        path = b.layout.peer(a.name) / "log" / name
        path.chmod(0o600)
        path.write_bytes(b"\xff" * 10)
        b.close()
        b.open()
        assert asked(a, b)[-600:] == made[::-1]
        assert ReceiptLog(b.layout.peer(a.name) / "log").range() == ReceiptLog(a.layout.log).range()
    assert peers.alarms(b.layout, a.name) == [], "the disk's doing, not the peer's"


def told(node: Node, clinic: Facility, peer: Node) -> dict[str, type]:
    """Which replicas lie on the facility's shelf."""
    found = {}
    for path in node.layout.outbound(names.facility_name(clinic.name)).glob("*.replica"):
        found[path.name.partition(".")[0]] = type(clinic.open(path.read_bytes(), peer.store.card())[0])
    return found


def test_every_replica_is_passed_on_though_the_store_stops_all_the_time(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "MOST", 2)
    monkeypatch.setattr(replicas, "SLICE", 4)
    a, b, clinic = pair
    made = [clinic.batch([row(number)], a.store.card()) for number in range(7)]
    for one in made:
        a.upload(clinic, one)
    while ReceiptLog(a.layout.peer(b.name) / "log").range().size < len(made):
        b.step()
        carry(a, b)
        a.step()
    before = len(told(a, clinic, b))
    for _ in range(10):
        a.step()
        now = len(told(a, clinic, b))
        assert now <= before + 2, "so many with one step"
        before = now
        a.close()
        a.open()
    assert told(a, clinic, b) == {one.batch: Receipt for one in made}


def test_a_peer_is_level_when_all_was_passed_on(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "MOST", 1)
    a, b, clinic = pair
    for number in range(4):
        a.upload(clinic, clinic.batch([row(number)], a.store.card()))
    level = False
    for _ in range(60):
        for node in (b, a):
            node.step()
        level = bool(replication.note(a.layout, b.name).get("level"))
        assert not level or len(told(a, clinic, b)) == 4
        carry(a, b)
    assert level
    assert replication.note(a.layout, b.name)["passed"] == 4, "whoever waits sees it grow"


@pytest.mark.parametrize("way", ["one pass", "serving"])
def test_the_service_goes_on_until_a_long_log_is_done(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """At once, and not a slice with each look; and then it rests."""
    monkeypatch.setattr(replicas, "SLICE", 16)
    a, b, _ = pair
    entries = synthetic(a, 320)
    ReceiptLog(b.layout.peer(a.name) / "log").append(entries)
    (b.layout.peer(a.name) / "settled").write_text("320")
    text = b.layout.settings.read_text()
    b.layout.settings.write_text(text.replace("look_seconds = 2", "look_seconds = 3600"))
    passed = b.layout.peer(a.name) / "passed"
    service = Service(settings.open_store(b.root), Clock(lambda: NOW, time.monotonic))
    if way == "one pass":
        service.one_pass()
    else:
        thread = threading.Thread(target=service.run)
        thread.start()
        until = time.monotonic() + 60
        while not (passed.exists() and passed.read_text() == "320"):
            assert time.monotonic() < until
            time.sleep(0.05)
        service.stop()
        thread.join()
    assert passed.read_text() == "320"
    assert not service._peers.working


def test_no_receipt_goes_past_a_notice_and_all_come_when_the_batches_are_whole(
    pair: tuple[Node, Node, Facility], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "MOST", 2)
    monkeypatch.setattr(replicas, "SCAN", 3)
    a, b, clinic = pair
    made = [clinic.batch([row(number)], a.store.card()) for number in range(7)]
    for one in made:
        a.upload(clinic, one)
    rounds([a, b])
    packs = {}
    for one in made[:5]:
        batch = Batch(names.facility_name("clinic-a"), one.batch)
        packs[one.batch] = b.layout.pack(one.batch)
        damage.found(b.store, batch, "pack-bytes", NOW, damage.seen(packs[one.batch].stat()))
        a.layout.pack(one.batch).rename(a.root / one.batch)  # so that nothing can be repaired yet
    peers.forget(a.layout, b.name)  # all of its log comes again
    for node in (a, b):
        node.ask()
    rounds([a, b])
    kinds = {one.batch: Notice if one.batch in packs else Receipt for one in made}
    assert told(a, clinic, b) == kinds
    for batch_id in packs:
        (a.root / batch_id).rename(a.layout.pack(batch_id))
    made_whole(a, b)
    assert len(b.held()) == 7
    assert told(a, clinic, b) == {one.batch: Receipt for one in made}
    assert batches.committed(a.layout, Batch(names.facility_name("clinic-a"), made[0].batch))
    assert not list((a.layout.peer(b.name) / "notices").iterdir())


def test_peers_take_turns_and_a_removed_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "SLICE", 1)
    b = Node(tmp_path / "b", "north")
    others = [Node(tmp_path / name, name) for name in ("south", "west")]
    for other in others:
        b.knows(other)
        promise(other, 10)
        entries = list(ReceiptLog(other.layout.log).entries(0, 10))
        ReceiptLog(b.layout.peer(other.name) / "log").append(entries)
    for _ in range(4):
        b.talk.tick()
    assert [len(b.talk._states[other.name].missing._unseen) for other in others] == [8, 8]
    for other in others:
        assert peers.remove(b.layout, other.name)
    b.talk.tick()
    assert not b.talk.working
    for node in (b, *others):
        node.close()
