"""Packs: a batch's objects as the store keeps them, in the tar that came out of the seal.

Guarantees: what is read from a pack is re-hashed on the way, and `Damaged` comes out if a byte changed,
so no damaged object leaves the store looking whole.

Leaves to others: how a pack comes into being (`central_store.ingest`), where an object lies
(`central_store.catalog`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from central_store.layout import Layout
from schemas.errors import Damaged
from schemas.names import BatchId, ObjectId

BLOCK = 1 << 20


class Place(NamedTuple):
    """Where an object lies: its pack, offset and length in bytes, and the encoding of its bytes."""

    object: ObjectId
    batch: BatchId
    offset: int
    length: int
    encoding: str


def blocks(layout: Layout, place: Place) -> Iterator[bytes]:
    """The bytes of one object; the last block comes only if all of them fit the name.

    Raises:
        Damaged: the pack is missing or short, or the bytes are not those the name stands for.
    """
    digest, left = hashlib.sha256(), place.length
    try:
        file = layout.pack(place.batch).open("rb")
    except FileNotFoundError as error:
        raise Damaged(f"the pack of batch {place.batch} is missing") from error
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
