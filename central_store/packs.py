"""Packs: a batch's objects as the store keeps them, in the tar that came out of the seal.

Guarantees: what is read from a pack is re-hashed on the way, and `Damaged` comes out if a byte changed,
so no damaged object leaves the store looking whole. That is why a damaged pack is still read, from where it
was set aside: the objects in it that are whole are not lost with the others.

Leaves to others: how a pack comes into being (`central_store.ingest`), where an object lies
(`central_store.catalog`), what is done about damage (`central_store.damage`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from central_store.layout import Layout
from schemas import names
from schemas.errors import Damaged, FormatError
from schemas.names import BatchId, FacilityName, ObjectId

BLOCK = 1 << 20


class Place(NamedTuple):
    """Where an object lies: its pack, offset and length in bytes, its bytes' encoding, and whose it is."""

    object: ObjectId
    batch: BatchId
    offset: int
    length: int
    encoding: str
    facility: FacilityName


def find(layout: Layout, batch: BatchId) -> Path | None:
    """Where a batch's objects can be read: its pack, or what was set aside of it last, or nowhere."""
    pack = layout.pack(batch)
    if pack.is_file():
        return pack
    return max(layout.set_aside.glob(f"{batch}.*.tar"), default=None)  # by the time in its name


def damaged(layout: Layout) -> frozenset[BatchId]:
    """The batches whose pack is known to be damaged."""
    found = set()
    with suppress(FileNotFoundError):
        for path in layout.damaged.iterdir():
            with suppress(FormatError):
                found.add(names.batch_id(path.name.removesuffix(".json")))
    return frozenset(found)


def blocks(layout: Layout, place: Place) -> Iterator[bytes]:
    """The bytes of one object; the last block comes only if all of them fit the name.

    Raises:
        Damaged: the pack is missing or short, or the bytes are not those the name stands for.
    """
    digest, left = hashlib.sha256(), place.length
    pack = find(layout, place.batch)
    if pack is None:
        raise Damaged(f"the pack of batch {place.batch} is missing")
    file = pack.open("rb")
    with file:
        file.seek(place.offset)
        while left:
            block = file.read(min(BLOCK, left))
            if not block:
                raise Damaged(f"the pack of batch {place.batch} is shorter than it was")
            digest.update(block)
            left -= len(block)
            if left:
                yield block
    if digest.hexdigest() != place.object:
        raise Damaged(f"the bytes of object {place.object} in batch {place.batch} changed")
    if place.length:
        yield block
