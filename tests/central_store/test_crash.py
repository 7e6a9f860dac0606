"""Die before the n-th step on the disk, then start again: every n in the campaign, some in the default run.

A dead process cleans nothing up: from the n-th step on every further step fails too.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from central_store import batches, ingest, receipt_log, verify
from central_store.catalog import Catalog
from central_store.check import check
from central_store.receipt_log import ReceiptLog
from central_store.settings import open_store
from schemas import messages, names
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, Made, row

STEPS = ("fsync", "rename", "replace", "unlink", "link", "mkdir", "rmdir", "fchmod")


class Dead(BaseException):
    """The process ended here."""


@contextmanager
def dying(at: int) -> Iterator[list[int]]:
    """Let `at` - 1 steps happen and none after them; gives the number of steps that were begun."""
    begun = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            begun[0] += 1
            if begun[0] >= at:
                raise Dead
            return real(*args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield begun


def take_in(place: Place) -> None:
    """What the service does with one shelf, in this process."""
    store, card = place.store, place.a.card
    ingest.wipe(store.layout)
    with Catalog(store.layout, store.settings) as catalog:
        ingest.recover(store, catalog)
        for path in sorted(place.inbound(place.a).glob("*.batch")):
            batch = batches.Batch(card.facility, names.batch_id(path.stem))
            if ingest.accepted(store, batch):
                ingest.again(store, catalog, card, batch)
            else:
                verified = verify.verify(store.layout, card, store.keys.age_identity, batch.batch)
                ingest.accept(store, catalog, card, verified, NOW)


def promises_hold(place: Place, made: Made) -> None:
    """At any moment: a receipt means a commit, a commit means the pack with every byte."""
    folder = place.store.layout.manifest(place.a.card.facility, made.batch)
    if (place.outbound(place.a) / f"{made.batch}.receipt").exists():
        assert folder.is_dir()
    if folder.is_dir():
        assert sorted(path.name for path in folder.iterdir()) == sorted(batches.FILES)
        assert place.store.layout.pack(made.batch).read_bytes() == made.plain


def all_is_done(place: Place, all_made: list[Made]) -> None:
    """After a start: everything stored once, nothing left over."""
    for made in all_made:
        promises_hold(place, made)
        receipt = place.reply(place.a, f"{made.batch}.receipt")
        assert isinstance(receipt, messages.Receipt)
        assert receipt.batch == made.batch
    with Catalog(place.store.layout, place.store.settings, rebuild=False) as catalog:
        rows = catalog.rows_of_batches()
    assert rows == {made.batch: len(made.objects) for made in all_made}
    receipts = ReceiptLog(place.store.layout.log)
    logged = [receipt_log.decode(entry).receipt.batch for entry in receipts.entries(0, 1000)]
    assert sorted(logged) == sorted(rows), "each batch has one entry in the log"
    report = check(place.store, read_data=True)
    assert (report.problems, report.catalog, report.batches) == ([], "checked", len(all_made))
    assert not list(place.inbound(place.a).iterdir())
    assert not list(place.store.layout.journal.iterdir())
    assert not [path for path in place.store.layout.staging.iterdir() if path.name != "catalog"]
    parts = [path for path in place.root.rglob("*.part") if path.parent != place.outbound(place.a)]
    assert not parts, "only `out` may keep one, until it is swept by age"


@pytest.fixture
def prepared(place: Place) -> tuple[Place, list[Made]]:
    """One batch stored and sent again, one new."""
    old = place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    take_in(place)
    (place.outbound(place.a) / f"{old.batch}.receipt").unlink()
    place.put(place.a, old)
    return place, [old, place.put(place.a, place.a.batch([row(2, study=2), row(3)], place.card))]


def die(origin: Place, all_made: list[Made], root: Path, *at: int) -> int:
    """On a copy of the store: die at each of these steps in turn, then finish; the steps begun at first."""
    shutil.copytree(origin.root, root)
    place = Place(open_store(root), origin.a, origin.b)
    steps = 0
    for step in at:
        with dying(step) as begun, suppress(Dead):
            take_in(place)
        steps = steps or begun[0]
        for made in all_made:
            promises_hold(place, made)
    take_in(place)
    all_is_done(place, all_made)
    shutil.rmtree(root)
    return steps


@pytest.mark.campaign("faults", small=8, large=1000)
def test_no_moment_to_die_breaks_a_promise(
    prepared: tuple[Place, list[Made]], tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    steps = die(*prepared, tmp_path / "run", 1000)
    assert 40 < steps < 1000, "the steps were not seen"
    for at in random.Random(campaign_seed).sample(range(1, steps + 1), min(campaign_size, steps)):
        die(*prepared, tmp_path / "run", at)


@pytest.mark.campaign("faults", small=3, large=12)
def test_dying_twice_in_recovery_is_no_worse(
    prepared: tuple[Place, list[Made]], tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    for at in random.Random(campaign_seed).sample(range(12, 60, 4), campaign_size):
        die(*prepared, tmp_path / "run", at, 3, 1)


def test_a_pack_that_was_lost_is_taken_from_the_batch_sent_again(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    take_in(place)
    first = (place.store.layout.manifest(place.a.card.facility, made.batch) / "receipt.json").read_bytes()
    place.store.layout.pack(made.batch).unlink()
    assert [p.code for p in check(place.store, read_data=False).problems] == ["pack-missing"]
    place.put(place.a, made)
    take_in(place)
    all_is_done(place, [made])
    again = (place.store.layout.manifest(place.a.card.facility, made.batch) / "receipt.json").read_bytes()
    assert again == first


def test_a_catalog_that_fails_does_not_hold_back_a_receipt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from central_store.catalog_file import CatalogError

    made = place.put(place.a, place.a.batch([row(0)], place.card))

    def fail(*_: object) -> None:
        raise CatalogError("the catalog failed")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "follow", fail)
        take_in(place)
    assert isinstance(place.reply(place.a, f"{made.batch}.receipt"), messages.Receipt)
    assert [path.name for path in place.store.layout.journal.iterdir()] == [made.batch]
    take_in(place)
    all_is_done(place, [made])
