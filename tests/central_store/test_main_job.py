"""The store's whole job over real shelves: batch, receipt, search, fetch."""

from __future__ import annotations

import io

import pyarrow.parquet as pq

from central_store import peers, settings
from schemas import container, envelope, messages, names, peer_messages, ustar
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, digest, request_id, row


def test_a_batch_becomes_a_receipt_and_its_rows_are_found(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0), row(1), row(0, study=2)], place.card))
    assert place.work().stored == 1
    receipt = place.reply(place.a, f"{made.batch}.receipt")
    assert isinstance(receipt, messages.Receipt)
    assert (receipt.batch, receipt.objects, receipt.store) == (made.batch, 3, "central")
    assert not list(place.inbound(place.a).iterdir())
    assert place.store.layout.pack(made.batch).read_bytes() == made.plain

    study = place.search(place.a)
    instance = place.search(place.a, "instance", conditions={"modality": ("ct",)})
    place.ask(place.a, study)
    place.ask(place.a, instance)
    assert place.work().answered == 2
    answer, table, _ = place.a.open((place.outbound(place.a) / f"{study.id}.answer").read_bytes(), place.card)
    assert isinstance(answer, messages.SearchAnswer)
    assert (answer.matches, answer.instances, answer.returned) == (2, 3, 2)
    rows = pq.read_table(io.BytesIO(table or b"")).to_pylist()
    assert [(r["study_uid"], r["n_series"], r["n_instances"]) for r in rows] == [
        ("1.2.2", 1, 1),
        ("1.2.1", 1, 2),
    ]
    _, table, _ = place.a.open((place.outbound(place.a) / f"{instance.id}.answer").read_bytes(), place.card)
    rows = pq.read_table(io.BytesIO(table or b"")).to_pylist()
    assert {r["object_sha256"] for r in rows} == set(made.objects)

    wanted = [r["object_sha256"] for r in rows]
    fetch = messages.FetchRequest(
        id=request_id(), facility=place.a.name, user=study.user, password=study.password,
        objects=(*wanted, digest("unknown")), created=messages.rfc3339(NOW),
    )  # fmt: skip
    place.ask(place.a, fetch)
    assert place.work().answered == 1
    sealed = (place.outbound(place.a) / f"{fetch.id}.answer").read_bytes()
    plain = envelope.open_bytes(sealed, [place.a.identity], limit=1 << 24)
    tar = ustar.Reader(io.BytesIO(plain), limit=1 << 24)
    message = container.read_head(tar, lambda _: place.card.signing_key).signed.message
    assert isinstance(message, messages.FetchAnswer)
    assert (list(message.objects), list(message.missing)) == (wanted, [digest("unknown")])
    expected = ((name, len(made.objects[name]), "age") for name in message.objects)
    assert len(list(container.read_objects(tar, expected))) == 3


def test_what_is_held_is_answered_by_digest(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    place.work()
    for who, held in ((place.a, {row(0)["source_digest"]: made.batch}), (place.b, {})):
        asked = messages.HeldRequest(
            id=request_id(), facility=who.name, digests=(row(0)["source_digest"], digest("other")),
            created=messages.rfc3339(NOW),
        )  # fmt: skip
        place.ask(who, asked)
        place.work()
        answer = place.reply(who, f"{asked.id}.answer")
        assert isinstance(answer, messages.HeldAnswer)
        assert answer.held == held
        assert (answer.sequence, answer.head) == ((1, made.batch) if held else (0, ""))


def test_a_terminal_learns_the_cards_of_the_stores_that_hold_replicas(place: Place) -> None:
    def asked() -> tuple[str, ...]:
        request = peer_messages.StoresRequest(
            id=request_id(), facility=names.facility_name(place.a.name), created=messages.rfc3339(NOW)
        )
        place.ask(place.a, request)
        place.work()
        answer = place.reply(place.a, f"{request.id}.answer")
        assert isinstance(answer, peer_messages.StoresAnswer)
        return answer.cards

    assert asked() == ()
    north = settings.init(place.root.parent / "north", name="north", host="127.0.0.1", port=2223).card()
    peers.add(place.store.layout, peers.Peer(card=north, host="127.0.0.1", port=2223))
    assert [messages.StoreCard.from_bytes(card.encode()) for card in asked()] == [north]
