"""Two and three stores that replicate: what arrives, who is told, who is believed.

Over 400 lines: every rule between two stores is tried on the same few stores in one process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from central_store import (
    accounts,
    audit,
    audit_segments,
    audit_verify,
    batches,
    damage,
    facilities,
    grants,
    ingest,
    peer_shelf,
    peers,
    people,
    replication,
)
from central_store import carry as carrier
from central_store.batches import Batch
from central_store.receipt_log import ReceiptLog
from schemas import container, keys, messages, names
from schemas.errors import SettingsError
from schemas.peer_messages import BatchesRequest
from tests.kit.batches import NOW, Facility, row
from tests.kit.peering import Node, carry, made_whole, rounds


def reply(node: Node, who: Facility, name: str, signer: Node) -> messages.Message:
    path = node.layout.outbound(names.facility_name(who.name)) / name
    return who.open(path.read_bytes(), signer.store.card())[0]


def logged(node: Node, *kinds: str) -> list[tuple[str, str, str, str, Any]]:
    """Kind, facility, user, subject and peer of these events; the log holds."""
    assert audit_verify.verify(node.layout, node.store.card().signing_key).problems == []
    return [
        (event.kind, event.facility, event.user, event.subject, json.loads(event.details).get("peer"))
        for event in audit.read(node.layout)[0]
        if event.kind in kinds
    ]


def test_a_batch_is_replicated_and_its_facility_told(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    made = [clinic.batch([row(number)], a.store.card()) for number in range(3)]
    for one in made:
        a.upload(clinic, one)
    rounds([a, b])
    assert a.set_hash() == b.set_hash()
    assert {batch.batch for batch in b.held()} == {one.batch for one in made}
    for one in made:
        batch = Batch(names.facility_name("clinic-a"), one.batch)
        assert b.layout.pack(one.batch).read_bytes() == one.plain, "the very bytes"
        assert batches.statement(b.layout, batch)[1].armor == one.statement.armor
        receipt = reply(a, clinic, f"{one.batch}.north.replica", b)
        assert isinstance(receipt, messages.Receipt)
        assert (receipt.store, receipt.batch) == ("north", one.batch)
    assert facilities.via(b.layout, names.facility_name("clinic-a")) == "south"
    assert not list(b.layout.outbound(names.facility_name("clinic-a")).iterdir()), "it lives at south"
    assert not list(a.layout.outbound(b.name).iterdir())
    sent = {("replicate", "clinic-a", "", one.batch, "north") for one in made}
    assert set(logged(a, "replicate")) == sent
    taken = {("ingest", "clinic-a", "", one.batch, "south") for one in made}
    assert set(logged(b, "ingest")) == taken
    key = keys.fingerprint(clinic.card.ssh_key)
    assert logged(b, "peer", "enrol") == [
        ("peer", "", "", "south", None), ("enrol", "clinic-a", "", key, "south")
    ]  # fmt: skip


def test_nothing_new_costs_nothing_and_a_restart_asks_for_nothing(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    a.upload(clinic, clinic.batch([row(1)], a.store.card()))
    rounds([a, b])
    for node in (a, b):
        node.close()
        node.open()
    sent: list[str] = []
    for _ in range(6):
        for node, other in ((a, b), (b, a)):
            node.step()
            sent += [path.name for path in node.layout.outbound(other.name).iterdir()]
        carry(a, b)
    assert not [name for name in sent if name.endswith(".batch")]
    assert peers.alarms(a.layout, b.name) == peers.alarms(b.layout, a.name) == []


def test_the_same_batch_at_both_and_forks_of_one_facility_are_kept(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    b.enrol(clinic)
    first = clinic.batch([row(1)], a.store.card())
    a.upload(clinic, first)
    twin = Facility("clinic-a", clinic.key, clinic.identity, clinic.sequence, clinic.previous)
    here, there = clinic.batch([row(2)], a.store.card()), twin.batch([row(3)], b.store.card())
    a.upload(clinic, here)
    b.upload(twin, there)
    rounds([a, b])
    assert a.set_hash() == b.set_hash()
    assert len(a.held()) == 3
    from central_store.report import status

    for node in (a, b):
        assert status(node.store)[0].forks == 1, "shown, not lost"


def test_a_damaged_and_a_lost_pack_come_back_from_the_peer(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    made = [clinic.batch([row(number)], a.store.card()) for number in range(3)]
    for one in made:
        a.upload(clinic, one)
    rounds([a, b])
    pack = a.layout.pack(made[0].batch)
    at = damage.seen(pack.stat())
    damage.found(a.store, Batch(names.facility_name("clinic-a"), made[0].batch), "pack-bytes", NOW, at)
    assert len(a.held()) == 2
    a.ask()
    rounds([a, b])
    assert len(a.held()) == 3
    assert pack.read_bytes() == made[0].plain

    shutil.rmtree(a.layout.packs)  # the whole folder
    assert not a.held()
    peers.look_again(a.layout, b.name)
    a.close()
    a.open()
    rounds([a, b])
    assert len(a.held()) == 3
    assert peers.alarms(b.layout, a.name) == []


def test_a_store_that_lost_its_disk_is_rebuilt_with_its_keys(
    pair: tuple[Node, Node, Facility], tmp_path: Path
) -> None:
    a, b, clinic = pair
    user, home = names.user_name("kimura"), names.facility_name("clinic-a")
    accounts.add(a.layout, user, home, "correct horse")
    a.upload(clinic, clinic.batch([row(1)], a.store.card()))
    rounds([a, b])
    a.close()
    keys = tmp_path / "keys"
    shutil.copytree(a.root / "keys", keys)
    shutil.rmtree(a.root)
    fresh = Node(tmp_path / "a", "south")
    fresh.close()
    shutil.rmtree(fresh.root / "keys")
    shutil.copytree(keys, fresh.root / "keys")
    fresh.open()
    fresh.knows(b)
    rounds([fresh, b])
    people.adopt(fresh.layout, b.name)
    assert fresh.set_hash() == b.set_hash()
    assert facilities.load(fresh.layout, home) == clinic.card
    assert facilities.via(fresh.layout, home) is None
    assert accounts.load(fresh.layout, home, user) is not None
    assert [kind for _, kind in peers.alarms(b.layout, fresh.name)], "a new log is not passed over in silence"
    fresh.upload(clinic, clinic.batch([row(2)], fresh.store.card()))
    rounds([fresh, b])
    assert fresh.set_hash() == b.set_hash()
    fresh.close()
    a.open()


def test_a_hostile_peer_replaces_no_key_and_grants_itself_nothing(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    forger = Facility("clinic-a")
    b.enrol(forger)  # the same name, its own key
    evil = Facility("evil")
    b.enrol(evil)
    a.upload(clinic, clinic.batch([row(1)], a.store.card()))
    b.upload(forger, forger.batch([row(2)], b.store.card()))
    grants.give(b.layout, names.facility_name("clinic-a"), names.facility_name("evil"))
    rounds([a, b])
    assert facilities.load(a.layout, names.facility_name("clinic-a")) == clinic.card
    assert facilities.load(b.layout, names.facility_name("clinic-a")) == forger.card
    assert len(a.held()) == len(b.held()) == 1
    assert a.refused, "signed by a key that is not clinic-a's here"
    assert grants.given(a.layout) == (), "b's word on clinic-a does not count at a"
    assert facilities.via(a.layout, names.facility_name("evil")) == "north"


def test_the_last_change_of_a_grant_wins_and_both_are_kept(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    other = Facility("hospital_b")
    owner, reader = names.facility_name("clinic-a"), names.facility_name("hospital_b")
    for node in (a, b):
        node.enrol(clinic)
        node.enrol(other)
    a.knows(b, shared=("clinic-a", "hospital_b"))
    b.knows(a, shared=("clinic-a", "hospital_b"))
    grants.give(a.layout, owner, reader)
    os.utime(a.layout.grant(owner, reader), (NOW.timestamp() - 100,) * 2)
    rounds([a, b])
    assert grants.given(b.layout) == grants.given(a.layout) != ()
    grants.revoke(b.layout, owner, reader)  # at b, now
    a.ask()
    rounds([a, b])
    assert grants.given(a.layout) == grants.given(b.layout) == ()
    assert len(list(a.layout.people.iterdir())) == 2
    assert logged(b, "grant", "revoke") == [
        ("grant", "clinic-a", "", "hospital_b", "south"), ("revoke", "clinic-a", "", "hospital_b", None)
    ]  # fmt: skip
    assert logged(a, "revoke") == [("revoke", "clinic-a", "", "hospital_b", "north")]
    grants.give(a.layout, owner, reader)
    os.utime(a.layout.grant(owner, reader), (NOW.timestamp() - 10_000_000,) * 2)  # a's clock is behind
    a.ask()
    b.ask()
    rounds([a, b])
    assert grants.given(b.layout) != (), "a change follows what it changed, whatever the clock says"


def test_an_account_is_taken_only_in_our_own_form(pair: tuple[Node, Node, Facility]) -> None:
    a, b, _ = pair
    rounds([a, b])
    home = names.facility_name("clinic-a")
    made = accounts.add(a.layout, names.user_name("kimura"), home, "correct horse")
    path = a.layout.account(home, names.user_name("heavy"))
    phc = made.phc.replace("m=65536", "m=99999999")
    path.write_bytes(
        messages.canonical(made._asdict() | {"user": "heavy", "phc": phc, "type": "account", "version": 1})
    )
    path.chmod(0o600)
    a.ask()
    b.ask()
    rounds([a, b])
    assert [account.user for account in accounts.everyone(b.layout)] == ["kimura"]
    accounts.remove(a.layout, home, names.user_name("kimura"))
    b.ask()
    rounds([a, b])
    assert logged(b, "account", "account-removed") == [
        ("account", "clinic-a", "kimura", "", "south"), ("account-removed", "clinic-a", "kimura", "", "south")
    ]  # fmt: skip


def test_passwords_set_at_both_sides_at_once_the_last_counts_and_both_are_kept(
    pair: tuple[Node, Node, Facility],
) -> None:
    a, b, _ = pair
    user, home = names.user_name("kimura"), names.facility_name("clinic-a")
    a.knows(b, shared=("clinic-a",))
    b.knows(a, shared=("clinic-a",))
    accounts.add(a.layout, user, home, "the first one")
    os.utime(a.layout.account(home, user), (NOW.timestamp() - 1000,) * 2)
    rounds([a, b])
    words = {}
    for node, password, age in (
        (a, "of the south", 100),
        (b, "of the north", 50),
    ):  # nobody carries meanwhile
        accounts.add(node.layout, user, home, password)
        path = node.layout.account(home, user)
        os.utime(path, (NOW.timestamp() - age,) * 2)
        words[node.name] = path.read_bytes()
    for node in (a, b):
        node.ask()
    rounds([a, b])
    for node in (a, b):
        assert node.layout.account(home, user).read_bytes() == words["north"]
        kept = [known.change.content.encode() for known in people.everything(node.layout)]
        assert len(kept) == 3
        assert kept[1:] == [words["south"], words["north"]]


def test_a_clock_that_is_ahead_is_waited_for(tmp_path: Path) -> None:
    moment = [NOW]
    a, b = Node(tmp_path / "a", "south"), Node(tmp_path / "b", "north", lambda: moment[0])
    for node, other in ((a, b), (b, a)):
        node.enrol(Facility("clinic-a"))
        node.knows(other, shared=("clinic-a",))
    user, home = names.user_name("kimura"), names.facility_name("clinic-a")
    accounts.add(a.layout, user, home, "of tomorrow")
    ahead = NOW + people.AHEAD * 2
    os.utime(a.layout.account(home, user), (ahead.timestamp(),) * 2)
    rounds([a, b])
    assert accounts.load(b.layout, home, user) is None
    moment[0] = ahead
    b.ask()
    rounds([a, b])
    assert accounts.load(b.layout, home, user) is not None
    for node in (a, b):
        node.close()


def test_checkpoints_of_a_peer_are_kept_and_show_that_its_audit_log_was_cut_off(
    pair: tuple[Node, Node, Facility], tmp_path: Path
) -> None:
    a, b, _ = pair
    shutil.copytree(a.layout.audit, tmp_path / "audit")
    first = audit_segments.close(a.store, NOW)
    rounds([a, b])
    (kept,) = (b.layout.peer(a.name) / "checkpoints").glob("*.json")
    assert kept.read_bytes() == audit.newest(a.layout).read_bytes()  # type: ignore[union-attr]
    signed = container.verify(
        kept.read_bytes(), kept.with_suffix(".json.sig").read_text(), a.store.card().signing_key
    )
    assert signed.message == first
    assert peers.alarms(b.layout, a.name) == []

    shutil.rmtree(a.layout.audit)  # as if nothing had happened since
    shutil.copytree(tmp_path / "audit", a.layout.audit)
    audit.record(a.layout, "check", details={"other": 1})
    for _ in range(3):
        a.ask()
        b.ask()
        rounds([a, b])
    assert [kind for _, kind in peers.alarms(b.layout, a.name)] == ["audit"], "said once"
    peers.clear(b.layout, a.name)
    audit_segments.close(a.store, NOW)  # the first segment again, with another content
    a.ask()
    b.ask()
    rounds([a, b])
    assert [kind for _, kind in peers.alarms(b.layout, a.name)] == ["audit"]
    assert audit_verify.verify(a.layout, a.store.card().signing_key, [signed]).problems


def test_the_newest_batches_are_asked_for_first(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    sent = [clinic.batch([row(number)], a.store.card()) for number in range(4)]
    for one in sent:
        a.upload(clinic, one)
    known, asked = peers.load(a.layout, b.name), list[names.BatchId]()
    assert known is not None
    for _ in range(20):
        for node in (a, b):
            node.step()
        carry(a, b)
        for path in a.layout.inbound(b.name).glob("*.request"):
            message = peer_shelf.read(a.store, known, names.shelf_name(path.name))
            if isinstance(message, BatchesRequest):
                asked += message.batches
    assert asked == [one.batch for one in sent][::-1]
    assert len(b.held()) == 4


@pytest.mark.parametrize(
    ("begin", "end", "hours"),
    [(0, 24, set(range(24))), (22, 6, {22, 23, *range(6)}), (1, 5, {1, 2, 3, 4}), (7, 7, set())],
)
def test_hours_in_which_batches_travel(
    pair: tuple[Node, Node, Facility], begin: int, end: int, hours: set[int]
) -> None:
    found = dataclasses.replace(pair[0].store.settings, replicate_from_hour=begin, replicate_to_hour=end)
    assert {hour for hour in range(24) if carrier.open_hours(found, NOW.replace(hour=hour))} == hours


def test_a_rate_is_kept_by_all_streams_together() -> None:
    waited: list[float] = []
    rate = carrier.Rate(1000, lambda: 0.0, waited.append)
    for _ in range(3):
        rate(500)
    assert waited == [0.5, 1.0, 1.5]
    carrier.Rate(0, lambda: 0.0, waited.append)(10**9)
    assert len(waited) == 3


def test_names_of_peers_and_facilities_do_not_meet(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    with pytest.raises(SettingsError):
        a.enrol(Facility("north"))
    with pytest.raises(SettingsError):
        b.enrol(Facility("South"))
    card = dataclasses.replace(b.store.card(), store=clinic.name)
    with pytest.raises(SettingsError):
        peers.add(a.layout, peers.Peer(card=card, host="127.0.0.1", port=1))
    stranger = dataclasses.replace(b.store.card(), signing_key=clinic.card.ssh_key)
    with pytest.raises(SettingsError, match="another key"):
        peers.add(a.layout, peers.Peer(card=stranger, host="127.0.0.1", port=1))
    assert peers.remove(a.layout, b.name)
    assert not peers.remove(a.layout, b.name)
    assert logged(a, "peer", "peer-removed") == [
        ("peer", "", "", "north", None), ("peer-removed", "", "", "north", None)
    ]  # fmt: skip
    assert not a.layout.shelves.joinpath("north").exists()


def test_a_store_put_back_from_an_old_copy_is_alarmed_and_completed(
    pair: tuple[Node, Node, Facility], tmp_path: Path
) -> None:
    a, b, clinic = pair
    a.upload(clinic, clinic.batch([row(1)], a.store.card()))
    rounds([a, b])
    a.close()
    shutil.copytree(a.root, tmp_path / "copy")
    a.open()
    a.upload(clinic, clinic.batch([row(2)], a.store.card()))
    rounds([a, b])
    a.close()
    shutil.rmtree(a.root)
    (tmp_path / "copy").rename(a.root)
    a.open()
    a.ask()
    b.ask()
    rounds([a, b])
    assert [kind for _, kind in peers.alarms(b.layout, a.name)] == ["rollback"]
    assert a.set_hash() == b.set_hash()
    assert len(a.held()) == 2, "what the copy lacks came back"
    assert peers.clear(b.layout, a.name) == 1
    assert [event[0] for event in logged(b, "peer-alarm", "peer-cleared")] == ["peer-alarm", "peer-cleared"]
    assert ingest.complete_log(a.store) == 0


def test_a_fork_is_alarmed_and_holds_up_nobody(pair: tuple[Node, Node, Facility]) -> None:
    """A peer that tells another story of the same length."""
    a, b, clinic = pair
    for number in range(3):
        a.upload(clinic, clinic.batch([row(number)], a.store.card()))
    rounds([a, b])
    entries = list(ReceiptLog(b.layout.log).entries(0, 10))
    shutil.rmtree(b.layout.log)
    ReceiptLog(b.layout.log).append(entries[::-1])
    a.upload(clinic, clinic.batch([row(4)], a.store.card()))
    for node in (a, b):
        node.ask()
    rounds([a, b])
    assert [kind for _, kind in peers.alarms(a.layout, b.name)] == ["fork"]
    assert a.set_hash() == b.set_hash()
    assert len(a.held()) == 4


def test_status_says_how_far_a_peer_is_behind(pair: tuple[Node, Node, Facility]) -> None:
    a, b, clinic = pair
    rounds([a, b])
    for number in range(2):
        a.upload(clinic, clinic.batch([row(number)], a.store.card()))
    (line,) = replication.status(a.store, NOW + timedelta(minutes=5, seconds=59))
    assert (line.peer, line.held, line.behind, line.behind_minutes) == ("north", 0, 2, 5)
    assert line.behind_bytes == 2 * 1500
    a.ask()
    rounds([a, b])
    (line,) = replication.status(a.store, NOW + timedelta(minutes=5))
    assert (line.held, line.behind, line.behind_bytes, line.behind_minutes, line.level) == (2, 0, 0, 0, True)


def test_a_notice_of_a_peer_takes_the_replica_back_until_the_batch_is_whole(
    pair: tuple[Node, Node, Facility],
) -> None:
    a, b, clinic = pair
    made = clinic.batch([row(1)], a.store.card())
    a.upload(clinic, made)
    rounds([a, b])
    batch, name = Batch(names.facility_name("clinic-a"), made.batch), f"{made.batch}.north.replica"
    assert isinstance(reply(a, clinic, name, b), messages.Receipt)
    at = damage.seen(b.layout.pack(made.batch).stat())
    damage.found(b.store, batch, "pack-bytes", NOW, at)
    saved = a.layout.pack(made.batch).rename(a.root / "aside")  # so that nothing can be repaired yet
    a.ask()
    b.ask()
    rounds([a, b])
    notice = reply(a, clinic, name, b)
    assert isinstance(notice, messages.Notice)
    assert (notice.store, notice.batch) == ("north", made.batch)
    saved.rename(a.layout.pack(made.batch))
    made_whole(a, b)
    assert b.held() == {batch}
    assert isinstance(reply(a, clinic, name, b), messages.Receipt), "whole again"


def test_what_arrived_before_the_first_look_after_a_start_settles_nothing(
    pair: tuple[Node, Node, Facility],
) -> None:
    a, b, clinic = pair
    for number in range(2):
        a.upload(clinic, clinic.batch([row(number)], a.store.card()))
    out = a.layout.outbound(b.name)
    while len(sent := sorted(out.glob("*.batch"))) < 2:
        a.step()
        b.step()
        if len(list(out.glob("*.batch"))) < 2:
            carry(a, b)
    sent[0].rename(b.layout.inbound(a.name) / sent[0].name)
    sent[1].unlink()
    b.close()
    b.open()
    rounds([a, b])
    assert len(b.held()) == 2
