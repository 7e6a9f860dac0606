"""What a facility erased is out of every answer at once, gone by the operator's hand, and never back.

It is long because each test tells one whole story of a store, from the tombstone to the certificate.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from central_store import batches, changes, damage, erasure, ingest, purge, sql_rows, tombstones
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.check import check
from central_store.cli.root import fstore
from central_store.settings import open_store
from schemas import container, envelope, messages, names, ustar
from schemas.erasure_messages import Erasure, Tombstone, name_of
from schemas.messages import rfc3339
from schemas.names import ShelfName
from schemas.row_messages import ManifestsRequest, RowsAnswer, RowsRequest
from schemas.transit import durable
from tests.central_store.conftest import Place
from tests.central_store.test_crash import Dead, dying, take_in
from tests.central_store.test_crash_states import distinct
from tests.kit.batches import NOW, Facility, Made, request_id, row
from tests.kit.crash_states import Recorder


def tombstone(
    who: Facility, *erased: Made, signer: Facility | None = None, **values: Any
) -> container.Signed:
    given: dict[str, Any] = {
        "facility": who.name, "batches": [made.batch for made in erased], "reason": "asked",
        "created": rfc3339(NOW),
    }  # fmt: skip
    return container.sign(Tombstone(**(given | values)), (signer or who).key)


def bury(place: Place, who: Facility, signed: container.Signed, name: str = "") -> str:
    """Put a tombstone on a facility's shelf; its name there."""
    sealed = envelope.seal_bytes(container.whole(signed), [place.card.age_recipient])
    name = f"{name or name_of(signed.data)}.tombstone"
    (place.inbound(who) / name).write_bytes(sealed)
    return name


def both(place: Place) -> tuple[Made, Made]:
    """Two batches that are stored: of study 1, and of study 2."""
    made = (
        place.put(place.a, place.a.batch([row(0), row(1)], place.card)),
        place.put(place.a, place.a.batch([row(2, study=2), row(3, study=2)], place.card)),
    )
    place.work()
    return made


def of(who: Facility, made: Made) -> Batch:
    return Batch(names.facility_name(who.name), made.batch)


def studies(place: Place) -> set[str]:
    with Catalog(place.store.layout, place.store.settings, rebuild=False) as catalog:
        return {uid for (uid,) in catalog.rows("SELECT DISTINCT study_uid FROM instances", {})}


def bytes_below(root: Path, needle: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_an_erased_batch_is_out_of_every_answer_and_the_others_are_not(place: Place) -> None:
    gone, kept = both(place)
    layout = place.store.layout
    with sql_rows.reading(layout, [names.facility_name("clinic-a")], 128) as (view,):
        assert bytes_below(view.parent, b"1.2.1.1.0")
    name = bury(place, place.a, tombstone(place.a, gone))
    place.work()
    assert not (place.inbound(place.a) / name).exists()
    said = place.reply(place.a, f"{gone.batch}.erasure")
    assert isinstance(said, Erasure)
    assert (said.batch, said.tombstone, said.purged) == (gone.batch, name.partition(".")[0], "")
    assert not (place.outbound(place.a) / f"{gone.batch}.receipt").exists()
    assert studies(place) == {"1.2.2"}
    assert not layout.view(names.facility_name("clinic-a")).exists(), "rows for SQL are made again without it"

    held = messages.HeldRequest(
        id=request_id(), facility=place.a.name, created=rfc3339(NOW),
        digests=[row(n, study=s)["source_digest"] for n, s in ((0, 1), (1, 1), (2, 2))],
    )  # fmt: skip
    search = place.search(place.a, "instance")
    fetch = messages.FetchRequest(
        id=request_id(), facility=place.a.name, user=search.user, password=search.password,
        objects=[*gone.objects, *kept.objects], created=rfc3339(NOW),
    )  # fmt: skip
    rows = RowsRequest(id=request_id(), facility=place.a.name, marks={}, created=rfc3339(NOW))
    manifests = ManifestsRequest(
        id=request_id(), facility=place.a.name, batches=[gone.batch, kept.batch], created=rfc3339(NOW)
    )
    for request in (held, search, fetch, rows, manifests):
        place.ask(place.a, request)
    place.work()
    answers: list[Any] = [
        place.reply(place.a, f"{request.id}.answer") for request in (held, search, fetch, rows)
    ]
    assert set(answers[0].held.values()) == {kept.batch}
    assert answers[0].sequence == 2
    assert answers[1].matches == 2
    assert (set(answers[2].objects), set(answers[2].missing)) == (set(kept.objects), set(gone.objects))
    assert isinstance(answers[3], RowsAnswer)
    assert answers[3].listed == {"clinic-a": (kept.batch,)}
    sealed = (place.outbound(place.a) / f"{manifests.id}.answer").read_bytes()
    given: Any = place.a.open(sealed, place.card)[0]
    assert (len(given.statements), given.missing) == (1, (gone.batch,))

    folder = layout.manifest(*of(place.a, gone))
    assert sorted(path.name for path in folder.iterdir()) == sorted(batches.FILES[1:])
    assert layout.pack(kept.batch).is_file()
    assert not layout.pack(gone.batch).exists()
    assert [c["kind"] for c in changes.since(layout, 0)] == ["added", "added", "erased"]
    report = check(place.store, read_data=True)
    assert (report.problems, report.erased, report.catalog) == ([], 1, "checked")
    said_then = (place.outbound(place.a) / f"{gone.batch}.erasure").read_bytes()
    with Catalog(layout, place.store.settings) as catalog:
        catalog.rebuild()
    assert studies(place) == {"1.2.2"}
    assert [c["kind"] for c in changes.since(layout, 0)] == ["added", "added", "erased"]
    bury(place, place.a, tombstone(place.a, gone))
    place.work()
    assert place.a.open(said_then, place.card)[0] == place.reply(place.a, f"{gone.batch}.erasure")


@pytest.mark.parametrize("first", ["batch", "tombstone"])
def test_what_is_erased_is_never_taken_again(place: Place, first: str) -> None:
    made = place.a.batch([row(0)], place.card)
    if first == "batch":
        place.put(place.a, made)
        place.work()
    bury(place, place.a, tombstone(place.a, made))
    place.work()
    assert isinstance(place.reply(place.a, f"{made.batch}.erasure"), Erasure)
    place.put(place.a, made)
    place.work()
    refusal: Any = place.reply(place.a, f"{made.batch}.refusal")
    assert (refusal.reason, refusal.kind) == ("erased", "batch")
    assert not list(place.inbound(place.a).iterdir())
    assert not list(place.store.layout.quarantine(names.facility_name("clinic-a")).iterdir()), (
        "no copy is kept"
    )
    assert not ingest.accepted(place.store, of(place.a, made))
    assert check(place.store, read_data=True).problems == []


def test_only_the_facilitys_own_word_erases(place: Place) -> None:
    gone, kept = both(place)
    forged = bury(place, place.a, tombstone(place.a, gone, signer=place.b))
    foreign = bury(place, place.b, tombstone(place.a, gone))
    misnamed = bury(place, place.a, tombstone(place.a, kept), "ab" * 32)
    rubbish = place.inbound(place.a) / f"{'cd' * 32}.tombstone"
    rubbish.write_bytes(b"rubbish")
    huge = place.inbound(place.a) / f"{'ef' * 32}.tombstone"
    huge.write_bytes(envelope.seal_bytes(bytes(100_000), [place.card.age_recipient]))
    bury(place, place.b, tombstone(place.b, gone))  # its own word, about a batch that is not its own
    place.work()
    reasons = []
    for who, name in ((place.a, forged), (place.b, foreign), (place.a, misnamed)):
        refusal: Any = place.reply(who, name.replace("tombstone", "refusal"))
        assert refusal.kind == "tombstone"
        reasons.append(refusal.reason)
    assert reasons == ["seal", "other-facility", "other-name"]
    assert not list(place.inbound(place.a).iterdir())
    assert list(tombstones.everything(place.store.layout)) == [of(place.b, gone)]
    assert studies(place) == {"1.2.1", "1.2.2"}
    assert ingest.accepted(place.store, of(place.a, gone))
    assert purge.purge(place.store, timedelta(0), NOW)[0].images == 0
    report = check(place.store, read_data=True)
    assert (report.problems, report.erased) == ([], 1)


def test_the_operator_removes_it_for_good_after_the_grace_period(place: Place) -> None:
    gone, _ = both(place)
    bury(place, place.a, tombstone(place.a, gone, reason="wrong-patient"))
    place.work()
    (waits,) = purge.waiting(place.store)
    assert (waits.batch, waits.reason, waits.since, waits.images) == (
        gone.batch, "wrong-patient", rfc3339(NOW), 2,
    )  # fmt: skip
    assert waits.bytes > sum(map(len, gone.objects.values()))
    command = ["--root", str(place.root)]
    said = json.loads(CliRunner().invoke(fstore, [*command, "erase", "list", "--json"]).output)
    assert [item["batch"] for item in said["waiting"]] == [gone.batch]
    assert "erased batches wait" in CliRunner().invoke(fstore, [*command, "status"]).output
    assert purge.purge(place.store, purge.GRACE, NOW + timedelta(hours=23)) == []
    assert bytes_below(place.root, next(iter(gone.objects.values())))
    assert len(purge.purge(place.store, purge.GRACE, NOW + timedelta(hours=25))) == 1
    for data in gone.objects.values():
        assert bytes_below(place.root, data) == []
    certificate = place.reply(place.a, f"{gone.batch}.erasure")
    assert isinstance(certificate, Erasure)
    assert certificate.purged == rfc3339(NOW + timedelta(hours=25))
    assert purge.waiting(place.store) == []
    assert purge.traces(place.store.layout)
    assert "rebuild" in CliRunner().invoke(fstore, [*command, "erase", "list"]).output
    assert CliRunner().invoke(fstore, [*command, "rebuild"]).exit_code == 0
    assert not purge.traces(place.store.layout)
    for needle in (b"1.2.1.1.0", b"1.2.1.1.1", row(0)["patient_id_tokens"][0].encode()):
        assert bytes_below(place.root, needle) == []
    assert check(place.store, read_data=True).problems == []


def test_the_commands_say_what_they_did(place: Place) -> None:
    gone, _ = both(place)
    bury(place, place.a, tombstone(place.a, gone))
    place.work()
    command = ["--root", str(place.root), "erase"]
    assert "0 batches removed" in CliRunner().invoke(fstore, [*command, "purge"]).output
    done = json.loads(CliRunner().invoke(fstore, [*command, "purge", "--older-than", "0s", "--json"]).output)
    assert [item["batch"] for item in done["purged"]] == [gone.batch]
    assert "nothing waits" in CliRunner().invoke(fstore, [*command, "list"]).output
    assert CliRunner().invoke(fstore, [*command, "purge", "--older-than", "soon"]).exit_code == 2


def test_a_record_the_disk_spoilt_keeps_no_other_from_being_purged_and_is_told_again(place: Place) -> None:
    gone, other = both(place)
    bury(place, place.a, tombstone(place.a, gone))
    bury(place, place.a, tombstone(place.a, other))
    place.work()
    path = place.store.layout.tombstone(*of(place.a, other))
    path.chmod(0o644)
    path.write_bytes(b"{")
    assert sorted(each.reason for each in purge.waiting(place.store)) == ["asked", purge.UNREADABLE]
    assert [each.batch for each in purge.purge(place.store, timedelta(0), NOW)] == [gone.batch]
    bury(place, place.a, tombstone(place.a, other))  # `fsync erasures --ask`
    place.work()
    assert tombstones.readable(place.store.layout, of(place.a, other))
    assert [each.batch for each in purge.purge(place.store, timedelta(0), NOW)] == [other.batch]
    assert check(place.store, read_data=True).problems == []


def test_of_an_erased_batch_no_damage_is_left(place: Place) -> None:
    gone, _ = both(place)
    layout = place.store.layout
    at = damage.seen(layout.pack(gone.batch).stat())
    assert damage.found(place.store, of(place.a, gone), "pack-bytes", NOW, at)
    bury(place, place.a, tombstone(place.a, gone))
    place.work()
    assert not list(layout.damaged.iterdir())
    assert not list(layout.set_aside.iterdir())
    assert not (place.outbound(place.a) / f"{gone.batch}.notice").exists()
    assert not damage.found(place.store, of(place.a, gone), "pack-missing", NOW, None)
    kinds = [c["kind"] for c in changes.since(layout, 0) if c["batch"] == gone.batch]
    assert kinds in (["added", "erased"], ["added", "set-aside", "erased"])
    assert ingest.settled(place.store, of(place.a, gone))
    purge.purge(place.store, timedelta(0), NOW)
    assert bytes_below(place.root, next(iter(gone.objects.values()))) == []


def put_in_place(path: Path, signed: container.Signed) -> None:
    for one, data in ((path, signed.data), (path.with_suffix(".json.sig"), signed.armor.encode())):
        one.unlink()
        one.write_bytes(data)


def test_a_check_says_what_is_wrong_with_an_erased_batch(place: Place) -> None:
    gone, kept = both(place)
    bury(place, place.a, tombstone(place.a, gone))
    place.work()
    layout, batch = place.store.layout, of(place.a, gone)
    layout.pack(gone.batch).write_bytes(b"a copy put back")
    assert [p.code for p in check(place.store, read_data=True).problems] == ["erased-left"]
    layout.pack(gone.batch).unlink()
    forged = tombstone(place.a, gone, signer=place.b)
    put_in_place(layout.tombstone(*batch), forged)
    assert [p.code for p in check(place.store, read_data=False).problems] == ["tombstone"]
    put_in_place(layout.tombstone(*batch), tombstone(place.a, kept))
    assert [p.code for p in check(place.store, read_data=False).problems] == ["tombstone"]


def test_a_catalog_that_fails_holds_back_our_word_until_the_next_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from central_store.catalog_file import CatalogError

    gone, _ = both(place)
    bury(place, place.a, tombstone(place.a, gone))

    def fail(*_: object) -> None:
        raise CatalogError("the catalog failed")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "_erase", fail)
        place.work()
    assert not (place.outbound(place.a) / f"{gone.batch}.erasure").exists()
    assert not ingest.accepted(place.store, of(place.a, gone)), "it is erased all the same"
    assert purge.purge(place.store, timedelta(0), NOW) == [], "nothing is purged before it is done"
    place.work()
    assert isinstance(place.reply(place.a, f"{gone.batch}.erasure"), Erasure)
    assert studies(place) == {"1.2.2"}


# -- dying at each step ------------------------------------------------------------------------------


def erase(place: Place, *, purging: bool = True) -> None:
    """What the service does with tombstones on one shelf, in this process; then the operator."""
    store, card = place.store, place.a.card
    ingest.wipe(store.layout)
    with Catalog(store.layout, store.settings) as catalog:
        ingest.recover(store, catalog)
        erasure.recover(store, catalog, NOW)
        for path in sorted(place.inbound(place.a).glob("*.tombstone")):
            signed = erasure.arrived(store, card, ShelfName(path.stem, "tombstone"))
            erasure.take(store, catalog, signed, NOW)
    if purging:
        purge.purge(store, timedelta(0), NOW)


def nothing_is_half_erased(place: Place, gone: Made, kept: Made) -> None:
    """At any moment: what was not erased is whole; a word is given only when it is true."""
    layout, batch = place.store.layout, of(place.a, gone)
    assert ingest.accepted(place.store, of(place.a, kept))
    assert layout.pack(kept.batch).read_bytes() == kept.plain
    if not tombstones.erased(layout, batch):
        assert layout.pack(gone.batch).read_bytes() == gone.plain
        assert (layout.manifest(*batch) / container.TABLE).read_bytes() == gone.table
        return
    assert not ingest.accepted(place.store, batch)
    with suppress(FileNotFoundError):
        said = place.reply(place.a, f"{gone.batch}.erasure")
        assert isinstance(said, Erasure)
        assert not layout.pack(gone.batch).exists()
        assert not (layout.manifest(*batch) / container.TABLE).exists()
        if said.purged:
            assert bytes_below(place.root, next(iter(gone.objects.values()))) == []


def all_is_erased(place: Place, gone: Made, kept: Made) -> None:
    nothing_is_half_erased(place, gone, kept)
    certificate = place.reply(place.a, f"{gone.batch}.erasure")
    assert isinstance(certificate, Erasure)
    assert certificate.purged
    assert studies(place) == {"1.2.2"}
    assert not list(place.inbound(place.a).iterdir())
    assert [c["kind"] for c in changes.since(place.store.layout, 0)] == ["added", "added", "erased"]
    report = check(place.store, read_data=True)
    assert (report.problems, report.catalog, report.erased) == ([], "checked", 1)
    swept = (place.outbound(place.a), place.store.layout.erased / "clinic-a")  # by age
    assert [path for path in place.root.rglob("*.part") if path.parent not in swept] == []


def die(origin: Place, root: Path, made: tuple[Made, Made], *at: int) -> int:
    shutil.copytree(origin.root, root)
    place = Place(open_store(root), origin.a, origin.b)
    steps = 0
    for step in at:
        with dying(step) as begun, suppress(Dead):
            erase(place)
        steps = steps or begun[0]
        nothing_is_half_erased(place, *made)
    erase(place)
    bury(place, place.a, tombstone(place.a, made[0]))  # the terminal asks until it has the certificate
    erase(place)
    all_is_erased(place, *made)
    shutil.rmtree(root)
    return steps


def buried(place: Place) -> tuple[Made, Made]:
    """Two stored batches, the first with a tombstone on the shelf and an older pack that was set aside."""
    gone, kept = (
        place.put(place.a, place.a.batch([row(0)], place.card)),
        place.put(place.a, place.a.batch([row(2, study=2)], place.card)),
    )
    take_in(place)
    layout = place.store.layout
    damage.set_aside(layout, gone.batch, "replaced", NOW)  # it was damaged once, and came again
    layout.pack(gone.batch).write_bytes(gone.plain)
    bury(place, place.a, tombstone(place.a, gone))
    return gone, kept


@pytest.mark.campaign("faults", small=4, large=1_000_000)
def test_a_power_cut_leaves_a_batch_whole_or_erased(
    place: Place, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    made = buried(place)
    layout = place.store.layout
    for folder in (layout.damaged, layout.erased / "clinic-a", layout.erased_bytes(made[0].batch).parent):
        durable.make_dirs(folder)
    work = tmp_path / "work"
    shutil.copytree(place.root, work)
    shutil.copytree(place.root, tmp_path / "before")
    touched = ("shelves", "manifests", "quarantine", "damaged", "erased", "objects/packs")
    with Recorder(place.root, touched) as recorder:
        erase(place, purging=False)
    states = list(distinct(recorder.states()))
    assert len(states) > 30, "the operations were not seen"
    for state in random.Random(campaign_seed).sample(states, min(len(states), campaign_size)):
        state.build(work)
        there = Place(open_store(work), place.a, place.b)
        nothing_is_half_erased(there, *made)
        erase(there)
        bury(there, there.a, tombstone(there.a, made[0]))
        erase(there)
        all_is_erased(there, *made)
        for name in ("changes.jsonl", "audit"):  # they are not part of a state
            path, origin = work / name, tmp_path / "before" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            (shutil.copytree if origin.is_dir() else shutil.copy2)(origin, path)


@pytest.mark.campaign("faults", small=3, large=1000)
def test_no_moment_to_die_leaves_a_batch_half_erased(
    place: Place, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    made = buried(place)
    steps = die(place, tmp_path / "run", made, 1000)
    assert 30 < steps < 1000, "the steps were not seen"
    for step in random.Random(campaign_seed).sample(range(1, steps + 1), min(campaign_size, steps)):
        die(place, tmp_path / "run", made, step)
    die(place, tmp_path / "run", made, steps // 2, 3, 1)


def test_what_lies_on_the_shelf_is_read_strictly(place: Place) -> None:
    made = place.a.batch([row(0)], place.card)
    signed = tombstone(place.a, made)
    more = container.whole(signed)[: -len(ustar.END)] + ustar.header("more", 0) + ustar.END
    name = place.inbound(place.a) / f"{name_of(signed.data)}.tombstone"
    name.write_bytes(envelope.seal_bytes(more, [place.card.age_recipient]))
    place.work()
    refusal: Any = place.reply(place.a, f"{name_of(signed.data)}.refusal")
    assert refusal.reason == "format"
    assert (
        container.read_unverified(ustar.Reader(io.BytesIO(container.whole(signed)), limit=1 << 16)) == signed
    )
