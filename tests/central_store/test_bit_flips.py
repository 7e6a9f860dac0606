"""One bit flipped, or the end cut off, anywhere in anything we write: refused or found, nothing committed.

What travels is read by whoever receives it; what lies in the store is read by `check --read-data`. Batches
and receipts are also damaged inside their seal, as a sender with a broken memory would send them.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from central_store import verify
from central_store.check import check
from schemas import container, envelope, names, ustar
from schemas.errors import FormatError, SealError
from tests.central_store.conftest import Place
from tests.central_store.test_crash import take_in
from tests.kit.batches import Made, row

Damage = Callable[[bytes], bytes]


def damage(rng: random.Random) -> tuple[str, Damage]:
    """A flipped bit (three times of four), or a cut."""
    if rng.random() < 0.75:
        where, bit = rng.random(), 1 << rng.randrange(8)

        def flip(data: bytes) -> bytes:
            at = int(where * len(data))
            return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

        return f"bit {bit} at {where}", flip
    share = rng.random()
    return f"cut at {share}", lambda data: data[: int(share * len(data))]


@pytest.fixture
def sent(place: Place) -> Made:
    objects = [random.Random(number).randbytes(70_000 if number == 0 else 3_000) for number in range(3)]
    return place.a.batch([row(number) for number in range(3)], place.card, objects)


@pytest.mark.campaign("faults", small=25, large=2_500)
@pytest.mark.parametrize("inside", [False, True], ids=["sealed", "inside the seal"])
def test_a_damaged_batch_is_refused(
    place: Place, sent: Made, campaign_size: int, campaign_seed: int, inside: bool
) -> None:
    layout, rng = place.store.layout, random.Random(campaign_seed)
    shelf = place.inbound(place.a) / sent.file
    for _ in range(campaign_size):
        what, harm = damage(rng)
        if inside:
            shelf.write_bytes(envelope.seal_bytes(harm(sent.plain), [place.card.age_recipient]))
        else:
            shelf.write_bytes(harm(sent.sealed))
        try:
            verify.verify(layout, place.a.card, place.store.keys.age_identity, sent.batch)
        except (FormatError, SealError):
            assert list(layout.staging.iterdir()) == [], what
        else:
            raise AssertionError(f"{what}: taken")
    assert list((layout.manifests / place.a.name).iterdir()) == []
    shelf.write_bytes(sent.sealed)
    take_in(place)
    assert (place.outbound(place.a) / f"{sent.batch}.receipt").exists(), "the batch as it was is refused too"


@pytest.mark.campaign("faults", small=100, large=2_500)
@pytest.mark.parametrize("inside", [False, True], ids=["sealed", "inside the seal"])
def test_a_damaged_receipt_is_not_believed(
    place: Place, sent: Made, campaign_size: int, campaign_seed: int, inside: bool
) -> None:
    place.put(place.a, sent)
    take_in(place)
    sealed = (place.outbound(place.a) / f"{sent.batch}.receipt").read_bytes()
    whole = envelope.open_bytes(sealed, [place.a.identity], limit=1 << 20)
    rng = random.Random(campaign_seed)

    def read(plain: bytes) -> None:
        tar = ustar.Reader(io.BytesIO(plain), limit=1 << 20)
        container.read_head(tar, lambda _: place.card.signing_key)
        assert tar.next() is None

    read(whole)
    for _ in range(campaign_size):
        what, harm = damage(rng)
        with pytest.raises((FormatError, SealError)):
            read(
                harm(whole)
                if inside
                else envelope.open_bytes(harm(sealed), [place.a.identity], limit=1 << 20)
            )
            raise AssertionError(what)


KEPT = (
    "manifest.parquet",
    "statement.json",
    "statement.json.sig",
    "receipt.json",
    "receipt.json.sig",
    "pack",
)


@pytest.mark.campaign("faults", small=4, large=500)
@pytest.mark.parametrize("name", KEPT)
def test_damage_in_the_store_is_found(
    place: Place, sent: Made, campaign_size: int, campaign_seed: int, name: str
) -> None:
    place.put(place.a, sent)
    take_in(place)
    layout, rng = place.store.layout, random.Random(campaign_seed)
    folder = layout.manifest(names.facility_name(place.a.name), sent.batch)
    path = layout.pack(sent.batch) if name == "pack" else folder / name
    right = path.read_bytes()
    for _ in range(campaign_size):
        what, harm = damage(rng)
        replace(path, harm(right))
        assert check(place.store, read_data=True).problems, f"{name} {what}"
        replace(path, right)
        for left in (layout.damaged, layout.set_aside, layout.checks):
            shutil.rmtree(left, ignore_errors=True)
    assert check(place.store, read_data=True).problems == []


def replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
