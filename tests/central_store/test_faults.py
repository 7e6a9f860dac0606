"""The n-th operation on the disk fails, n = 1, 2, 3, … until a batch is taken in; then a new start.

Thirteen kinds of failure: create, write, fsync, rename, unlink and mkdir, each with EIO and with ENOSPC,
and a short write. After each, fresh objects and no fault: the invariants of `tests/kit` hold.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from central_store.settings import open_store
from schemas import names
from schemas.errors import SyncError
from tests.central_store.conftest import Place
from tests.central_store.test_crash import take_in
from tests.kit import invariants
from tests.kit.batches import Made, row
from tests.kit.faults import Disk, failing, shortening

ERRORS = (errno.EIO, errno.ENOSPC)
FAULTS = [
    *(
        (kind, number)
        for kind in ("create", "write", "fsync", "rename", "unlink", "mkdir")
        for number in ERRORS
    ),
    ("short", errno.ENOSPC),
]


def copy(origin: Place, root: Path) -> Place:
    shutil.copytree(origin.root, root)
    return Place(open_store(root), origin.a, origin.b)


def signers(place: Place) -> dict[str, str]:
    return {who.name: who.card.ssh_key for who in (place.a, place.b)}


def openers(place: Place) -> dict[str, invariants.Open]:
    card = place.card
    return {
        place.a.name: lambda sealed: place.a.open(sealed, card)[0],
        place.b.name: lambda sealed: place.b.open(sealed, card)[0],
    }


@pytest.fixture
def waiting(place: Place) -> tuple[Place, list[Made]]:
    """One batch stored and sent again, one the same whose pack was lost, one new."""
    made = [place.a.batch([row(0), row(1)], place.card), place.a.batch([row(2)], place.card)]
    for old in made:
        place.put(place.a, old)
    take_in(place)
    for old in made:
        (place.outbound(place.a) / f"{old.batch}.receipt").unlink()
        place.put(place.a, old)
    place.store.layout.pack(made[1].batch).unlink()
    fresh = place.a.batch([row(number, study=2) for number in range(5)], place.card)
    (place.outbound(place.a) / f"{fresh.batch}.refusal").write_bytes(b"of an earlier, broken upload")
    return place, [*made, place.put(place.a, fresh)]


def after(place: Place, all_made: list[Made]) -> None:
    """Everything is stored once, with a receipt, and nothing else is there."""
    assert invariants.at_rest(place.store, signers(place), openers(place)) == []
    facility = names.facility_name(place.a.name)
    wanted = sorted((facility, made.batch) for made in all_made)
    assert [(owner, folder.name) for owner, folder in invariants.accepted(place.store)] == wanted
    for made in all_made:
        assert (place.outbound(place.a) / f"{made.batch}.receipt").exists()
    assert not list(place.inbound(place.a).iterdir())


@pytest.mark.campaign("faults", small=6, large=100_000)
@pytest.mark.timeout(0)
def test_the_nth_operation_fails(
    waiting: tuple[Place, list[Made]], tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    origin, all_made = waiting
    place = copy(origin, tmp_path / "run")
    ops: list[str] = []
    with Disk(place.root, after=lambda op: ops.append(op.kind)):
        take_in(place)
    shutil.rmtree(place.root)
    every = [
        (kind, number, at)
        for kind, number in FAULTS
        for at in range(1, ops.count("write" if kind == "short" else kind) + 1)
    ]
    assert {kind for kind, _, _ in every} == {kind for kind, _ in FAULTS}, "an operation was not seen"
    chosen = random.Random(campaign_seed).sample(every, min(len(every), campaign_size))
    for kind, number, at in chosen:
        place = copy(origin, tmp_path / "run")
        fault = shortening(at) if kind == "short" else failing(at, OSError(number, os.strerror(number)), kind)
        with Disk(place.root, before=fault), suppress(OSError, SyncError):
            take_in(place)
        lost = f"batch {all_made[1].batch[:8]}: its pack does not open: FileNotFoundError"  # as it was before
        wrong = invariants.promises(place.store, signers(place), openers(place))
        assert [line for line in wrong if line != lost] == [], f"{kind} {number} {at}"
        take_in(place)
        after(place, all_made)
        shutil.rmtree(place.root)
    print(f"{len(chosen)} of {len(every)} faults")
