"""Which batches are erased: the tombstones of their facilities, as files.

    erased/<facility>/<batch-id>.json  .sig         the tombstone: while it is there, the batch is erased
                      <batch-id>.erasure.json  .sig       our word that it is in no answer
                      <batch-id>.certificate.json  .sig   our word that its bytes are gone: with `purged`

A tombstone may be here before its batch, or without it. What is erased is a batch of a facility: a tombstone
that names another facility's batch lies under its signer's name, where nobody looks for that batch.

Guarantees: none of these files is ever removed, or changed while it can be read; its signature is lasting
before it counts.

Leaves to others: whose signature is believed, and what follows (`central_store.erasure`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from central_store.batches import Batch
from central_store.layout import Layout
from schemas import names
from schemas.container import Signed
from schemas.erasure_messages import Erasure, Tombstone
from schemas.errors import Damaged, FormatError
from schemas.messages import parse
from schemas.names import BatchId, FacilityName
from schemas.transit import durable


def erased(layout: Layout, batch: Batch) -> bool:
    """Whether a batch is erased, whether or not it ever was here."""
    return layout.tombstone(*batch).exists()


def of(layout: Layout, facility: FacilityName) -> frozenset[BatchId]:
    """A facility's erased batches."""
    found = set()
    with suppress(FileNotFoundError):
        for path in (layout.erased / facility).iterdir():
            with suppress(FormatError):  # signatures, and our own words
                found.add(names.batch_id(path.name.removesuffix(".json")))
    return frozenset(found)


def everything(layout: Layout) -> Iterator[Batch]:
    """All erased batches, by facility and id."""
    with suppress(FileNotFoundError):
        for folder in sorted(layout.erased.iterdir()):
            with suppress(FormatError):
                facility = names.facility_name(folder.name)
                yield from (Batch(facility, batch) for batch in sorted(of(layout, facility)))


def record(layout: Layout, batch: Batch, signed: Signed) -> None:
    """Erase a batch, for good: the one commit point of erasing."""
    path = layout.tombstone(*batch)
    durable.make_dirs(path.parent, mode=0o755)
    _publish(path, signed)


def load(layout: Layout, batch: Batch) -> tuple[Tombstone, Signed]:
    """The tombstone of an erased batch, unverified; raises `Damaged`."""
    signed = _read(layout.tombstone(*batch))
    if not isinstance(signed.message, Tombstone):
        raise Damaged(f"the tombstone of batch {batch.batch} is none")
    return signed.message, signed


def readable(layout: Layout, batch: Batch) -> bool:
    """Whether the tombstone of an erased batch can be read; a disk may have spoilt it."""
    try:
        load(layout, batch)
    except Damaged:
        return False
    return True


def say(layout: Layout, signed: Signed) -> None:
    """Keep our word about an erased batch."""
    message = signed.message
    assert isinstance(message, Erasure)  # noqa: S101  # callers sign nothing else
    place = layout.certificate if message.purged else layout.erasure
    _publish(place(message.facility, message.batch), signed)


def said(layout: Layout, batch: Batch) -> tuple[Erasure, Signed] | None:
    """Our last word about an erased batch, or None before it is done; raises `Damaged`."""
    path = next((p for p in (layout.certificate(*batch), layout.erasure(*batch)) if p.exists()), None)
    if path is None:
        return None
    signed = _read(path)
    if not isinstance(signed.message, Erasure):
        raise Damaged(f"what was said about erased batch {batch.batch} cannot be read")
    return signed.message, signed


def _publish(path: Path, signed: Signed) -> None:
    durable.publish(_sig(path), signed.armor.encode("ascii"), replace=True)
    durable.publish(path, signed.data, replace=True)


def _read(path: Path) -> Signed:
    try:
        data, armor = path.read_bytes(), _sig(path).read_text("ascii")
        return Signed(parse(data), data, armor)
    except (FileNotFoundError, UnicodeDecodeError, FormatError) as error:
        raise Damaged(f"erased/{path.parent.name}/{path.name} cannot be read") from error


def _sig(path: Path) -> Path:
    return path.with_name(path.name + ".sig")
