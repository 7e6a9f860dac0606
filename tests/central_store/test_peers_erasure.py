"""Tombstones travel between stores; they count because the facility signed them, whoever tells them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from central_store import erasure, facilities, ingest, peers, purge, replication, tombstone_talk, tombstones
from central_store.batches import Batch
from schemas import container, envelope, names
from schemas.erasure_messages import Erasure, Tombstone
from schemas.messages import rfc3339
from tests.central_store.test_peers import logged, reply
from tests.central_store.test_peers_campaign import buried
from tests.kit.batches import NOW, Facility, Made, row
from tests.kit.peering import Node, rounds

Pair = tuple[Node, Node, Facility]


def signed(who: Facility, *made: Made, by: Facility | None = None) -> container.Signed:
    said = Tombstone(
        facility=names.facility_name(who.name), batches=tuple(each.batch for each in made), reason="asked",
        created=rfc3339(NOW),
    )  # fmt: skip
    return container.sign(said, (by or who).key)


def named(who: Facility, made: Made) -> Batch:
    return Batch(names.facility_name(who.name), made.batch)


def test_what_is_erased_at_one_store_is_erased_at_the_other(pair: Pair) -> None:
    a, b, clinic = pair
    gone, kept = (clinic.batch([row(n)], a.store.card()) for n in range(2))
    for made in (gone, kept):
        a.upload(clinic, made)
    rounds([a, b])
    a.bury(clinic, signed(clinic, gone))
    rounds([a, b])
    assert a.held() == b.held() == {named(clinic, kept)}
    assert buried(a) == buried(b) == {named(clinic, gone)}
    assert isinstance(reply(a, clinic, f"{gone.batch}.erasure", a), Erasure)
    assert not (b.layout.outbound(names.facility_name(clinic.name)) / f"{gone.batch}.erasure").exists()
    assert logged(a, "erase") == [("erase", clinic.name, "", gone.batch, None)]
    assert logged(b, "erase") == [("erase", clinic.name, "", gone.batch, "south")]
    for node in (a, b):
        (line,) = replication.status(node.store, NOW)
        assert (line.behind, line.missing, line.refused) == (0, 0, 0)
        assert replication.lacking(node.store) == 0
    assert len(purge.purge(b.store, timedelta(0), NOW)) == 1, "each store by its own operator"
    assert len(purge.waiting(a.store)) == 1
    assert rounds([a, b]) == 0, "and then there is nothing to say"


def test_a_tombstone_before_its_batch_ends_in_the_same_state(pair: Pair) -> None:
    a, b, clinic = pair
    made = clinic.batch([row(0)], a.store.card())
    a.upload(clinic, made)
    a.bury(clinic, signed(clinic, made))
    rounds([a, b])
    assert a.held() == b.held() == set()
    assert buried(b) == {named(clinic, made)}
    assert b.refused == [], "it was not even asked for"
    assert peers.settled(b.layout, a.name) == 1
    (line,) = replication.status(b.store, NOW)
    assert (line.missing, line.refused) == (0, 0)


def test_a_batch_on_its_way_is_dropped_when_it_arrives(pair: Pair) -> None:
    a, b, clinic = pair
    made = clinic.batch([row(0)], a.store.card())
    b.enrol(clinic)
    b.bury(clinic, signed(clinic, made))
    a.upload(clinic, made)
    sealed = envelope.seal_bytes(made.plain, [b.store.card().age_recipient])
    b.layout.inbound(a.name).joinpath(made.file).write_bytes(sealed)
    b.step()
    assert not b.layout.inbound(a.name).joinpath(made.file).exists()
    assert not ingest.accepted(b.store, named(clinic, made))
    rounds([a, b])
    assert a.held() == b.held() == set()
    assert buried(a) == {named(clinic, made)}


def test_a_peer_cannot_erase_what_the_facility_did_not_sign(pair: Pair) -> None:
    a, b, clinic = pair
    made = clinic.batch([row(0)], a.store.card())
    a.upload(clinic, made)
    rounds([a, b])
    thief = Facility(clinic.name)
    tombstones.record(b.layout, named(clinic, made), signed(clinic, made, by=thief))
    b.ask()
    a.ask()
    rounds([a, b])
    assert a.held() == {named(clinic, made)}
    assert buried(a) == set()


def test_what_a_former_key_signed_counts_at_the_peer(pair: Pair) -> None:
    a, b, clinic = pair
    made = clinic.batch([row(0)], a.store.card())
    a.upload(clinic, made)
    rounds([a, b])
    a.bury(clinic, signed(clinic, made))
    renewed = Facility(clinic.name)
    facilities.enrol(a.layout, renewed.card, replace_key=True)
    rounds([a, b])
    assert facilities.load(b.layout, names.facility_name(clinic.name)) == renewed.card
    assert buried(b) == {named(clinic, made)}


def test_many_tombstones_come_in_pages_and_half_of_one_comes_again(
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b, clinic = pair
    monkeypatch.setattr(tombstone_talk, "MOST_TOMBSTONES", 2)
    made = [clinic.batch([row(n)], a.store.card()) for n in range(12)]
    for one in made:
        a.upload(clinic, one)
    rounds([a, b])
    whole = signed(clinic, *made[:4])
    a.bury(clinic, whole)
    b.enrol(clinic)
    tombstones.record(b.layout, named(clinic, made[0]), whole)  # a stop came before the others
    for one in made[4:11]:
        a.bury(clinic, signed(clinic, one))
    rounds([a, b])
    b.close()
    b.open()
    assert a.held() == b.held() == {named(clinic, made[11])}
    assert buried(a) == buried(b)
    assert tombstone_talk.have(a.layout) == tombstone_talk.have(b.layout)
    assert erasure.recover(b.store, b.catalog, NOW) == 0
