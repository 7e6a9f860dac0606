"""Open a sealed batch into staging and check everything that can be known about it.

Order: opened for our key to its end; statement signed by the facility's enrolled key; the shelf, the
statement and the manifest name one facility; the name on the shelf is the batch's id; counts and sums
agree; every object hashed and in its place; everything fsynced; the manifest reads the same in DuckDB.

Guarantees: `verify` returns only if all of this holds, and then `staging/` has the pack and the batch's
folder, ready to be renamed. Whatever is wrong with the bytes, only `FormatError` or `SealError` come out
and nothing is left. Memory follows the manifest, not the objects.

Runs in a worker process: pyrage holds the interpreter lock, and a hostile file that ends the process ends
only this one. Leaves to others: the commit (`central_store.ingest`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from central_store import batches, facilities, inbox, plain_reader
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.replies import Refused
from schemas import container, envelope, manifest, ustar
from schemas.container import TABLE
from schemas.envelope import BUFFER
from schemas.errors import FormatError, SealError
from schemas.messages import FacilityCard, Message, Statement, StoreCard
from schemas.names import BatchId, FacilityName, ShelfName


class Verified(NamedTuple):
    """A batch in staging that is what it says."""

    batch: Batch
    sequence: int
    objects: int
    bytes: int
    shelf: FacilityName
    """Whose shelf it lay on: its facility's, or a peer's."""


def staged_pack(layout: Layout, batch: Batch) -> Path:
    """Where a batch's pack waits for its commit."""
    return layout.staging / f"{batch.facility}.{batch.batch}.tar"


def staged_folder(layout: Layout, batch: Batch) -> Path:
    """Where a batch's folder waits for its commit."""
    return layout.staging / f"{batch.facility}.{batch.batch}"


def clear(layout: Layout, batch: Batch) -> None:
    """Remove what an earlier attempt left in staging."""
    staged_pack(layout, batch).unlink(missing_ok=True)
    shutil.rmtree(staged_folder(layout, batch), ignore_errors=True)


def verify(layout: Layout, card: FacilityCard | StoreCard, identity: str, batch_id: BatchId) -> Verified:
    """Verify the batch of that name on a facility's, or a peer's, shelf.

    Args:
        layout: the store.
        card: whose shelf it lies on; a peer may bring the batches of every facility that is enrolled here.
        identity: the store's age identity.
        batch_id: the batch's name on the shelf.

    Raises:
        FormatError, SealError: refuse it; `replies.reason_of` has the code.
        FileNotFoundError: it is not on the shelf any more.
        OSError: our own disk failed.
    """
    shelf = card.facility if isinstance(card, FacilityCard) else card.store
    batch = Batch(shelf, batch_id)
    clear(layout, batch)
    try:
        arrived = inbox.open_arrival(layout, shelf, ShelfName(batch_id, "batch"))
        with arrived as sealed, staged_pack(layout, batch).open("xb", BUFFER) as pack:
            envelope.open_sealed(sealed, pack, [identity], limit=container.MAX_CONTENT)
        with staged_pack(layout, batch).open("rb") as pack:
            verified = _read(layout, card, batch, pack)
            os.fchmod(pack.fileno(), 0o444)
            os.fsync(pack.fileno())
    except BaseException:
        clear(layout, batch)
        raise
    return verified


def _read(layout: Layout, card: FacilityCard | StoreCard, batch: Batch, pack: BinaryIO) -> Verified:
    if isinstance(card, FacilityCard):
        tar, head = _head(pack, lambda message: _signer(message, card))
    else:
        tar, head = _head_by_any(layout, pack)
    statement, table = head.signed.message, head.table
    if not isinstance(statement, Statement) or table is None:
        raise FormatError("a container on the shelf of batches holds no batch")
    if statement.batch != batch.batch:
        raise Refused("other-name", "the name on the shelf is not the batch's id")
    read = manifest.from_parquet(table, facility=statement.facility)
    rows = list(manifest.objects(read))
    if (statement.objects, statement.bytes) != (len(rows), sum(size for _, size, _ in rows)):
        raise Refused("manifest-mismatch", "the statement's counts are not those of the manifest")
    try:
        count = sum(1 for _ in container.read_objects(tar, iter(rows)))
    except (FormatError, SealError) as error:
        raise Refused("manifest-mismatch", str(error)) from error
    batches.stage(staged_folder(layout, batch), table, head.signed)
    plain_reader.check(staged_folder(layout, batch) / TABLE, read)
    found = Batch(statement.facility, statement.batch)
    return Verified(found, statement.sequence, count, statement.bytes, batch.facility)


def _head(pack: BinaryIO, signer: Callable[[Message], str]) -> tuple[ustar.Reader, container.Head]:
    pack.seek(0)
    tar = ustar.Reader(pack, limit=container.MAX_CONTENT)
    return tar, container.read_head(tar, signer)


def _head_by_any(layout: Layout, pack: BinaryIO) -> tuple[ustar.Reader, container.Head]:
    """The head of a batch of any facility, signed by a key it has or had here."""

    def signers(message: Message) -> tuple[str, ...]:
        if not isinstance(message, Statement):
            raise FormatError("a container on the shelf of batches holds no batch")
        found = facilities.signers(layout, message.facility)
        if not found:
            raise Refused("unknown-facility", "the batch is of a facility that is not enrolled here")
        return found

    known: list[tuple[str, ...]] = []

    def first(message: Message) -> str:
        known.append(signers(message))
        return known[0][0]

    try:
        return _head(pack, first)
    except SealError:
        for key in known[0][1:] if known else ():
            with suppress(SealError):
                return _head(pack, lambda _, key=key: key)  # type: ignore[misc]
        raise


def _signer(message: Message, card: FacilityCard) -> str:
    # Asked before the signature is checked: a batch of another facility is told apart from a forged one.
    if isinstance(message, Statement) and message.facility != card.facility:
        raise Refused("other-facility", "the statement is another facility's than the shelf")
    return card.ssh_key
