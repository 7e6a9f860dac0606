"""From files to one sealed batch in the outbox, in two steps that may run in worker processes.

Order: `take_files` reads each file once and leaves sealed objects in a spool; the round then knows the
digests and asks the store what it holds; `seal_batch` writes manifest, statement and the objects still
wanted as one container, sealed for the store, into the outbox.

Guarantees: a batch appears in the outbox whole or not at all; every object in it was opened again and
compared with its file before (`facility_sync.capture`); a bad file is a refusal beside the others, never
the end of the step. A crash leaves a spool in `staging/`, wiped by the next round.

Leaves to others: sequence numbers and what the ledger learns (`facility_sync.rounds`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import capture
from facility_sync.dicom_file import Refused
from facility_sync.identity.domains import Domain
from facility_sync.plan import Wanted
from schemas import container, envelope, manifest, messages, names, ustar
from schemas.transit import durable


class Spooled(NamedTuple):
    """One taken file: its manifest row, and where its sealed object lies in the spool."""

    wanted: Wanted
    row: dict[str, Any]
    offset: int
    length: int


class Left(NamedTuple):
    """One file that was not taken, with the stable reason code."""

    wanted: Wanted
    reason: str


class Context(NamedTuple):
    """What every file of a round is taken with."""

    facility: str
    domains: tuple[Domain, ...]
    menu: Mapping[str, Mapping[str, str]]
    captured: datetime
    max_file: int


def take_files(
    batch: Sequence[Wanted], spool: Path, context: Context, progress: Callable[[int], None] | None = None
) -> tuple[list[Spooled], list[Left]]:
    """Read each file once; seal each into `spool`."""
    taken: list[Spooled] = []
    left: list[Left] = []
    with spool.open("w+b") as sink:
        for item in batch:
            start = sink.seek(0, io.SEEK_END)
            result = capture.take(
                Path(item.source, item.fact.folder, item.fact.name),
                facility=context.facility,
                domains=context.domains,
                site_map=context.menu,
                captured_at=context.captured,
                max_bytes=context.max_file,
                sink=sink,
            )
            if isinstance(result, Refused):
                sink.truncate(start)
                left.append(Left(item, result.reason))
            else:
                taken.append(Spooled(item, result.row, start, result.row["object_bytes"]))
            if progress is not None:
                progress(item.fact.size)
    return taken, left


class Manifest(NamedTuple):
    """A batch's table and its name."""

    batch: names.BatchId
    table: bytes
    objects: int
    bytes: int


def write_manifest(objects: Sequence[Spooled], facility: str) -> Manifest:
    """The manifest of these objects, in this order."""
    table = manifest.to_parquet([item.row for item in objects], facility=facility)
    batch = names.BatchId(hashlib.sha256(table).hexdigest())
    return Manifest(batch, table, len(objects), sum(item.length for item in objects))


def state(
    made: Manifest, *, facility: str, sequence: int, previous: str, created: datetime, key: Ed25519PrivateKey
) -> container.Signed:
    """The facility's signed statement about a batch."""
    statement = messages.Statement(
        facility=names.facility_name(facility),
        sequence=sequence,
        previous=previous,
        batch=made.batch,
        objects=made.objects,
        bytes=made.bytes,
        created=messages.rfc3339(created),
    )
    return container.sign(statement, key)


def seal_batch(
    head: bytes, objects: Sequence[tuple[str, str, int, int]], spool: Path, outbox: Path, recipient: str
) -> None:
    """Write one sealed container to `outbox` and remove the spool.

    Args:
        head: `container.head_bytes` of the statement and manifest.
        objects: object id, encoding, offset and length in the spool, in manifest order.
        spool: what `take_files` left.
        outbox: the final path; appears whole or not at all.
        recipient: the store's age recipient.
    """
    with spool.open("rb") as source:
        members = _members(head, objects, source)

        def write(sink: BinaryIO) -> None:
            envelope.seal_pieces(members, sink, [recipient])

        durable.publish(outbox, write, mode=0o600, replace=True)
    durable.remove(spool)


def _members(head: bytes, objects: Sequence[tuple[str, str, int, int]], source: BinaryIO) -> Iterator[bytes]:
    yield head
    for identifier, encoding, offset, length in objects:
        yield ustar.header(container.object_name(names.ObjectId(identifier), encoding), length)
        source.seek(offset)
        left = length
        while left:
            block = source.read(min(left, 256 * 1024))
            if not block:
                raise OSError("the spool is shorter than it was")
            left -= len(block)
            yield block
        yield ustar.padding(length)
    yield ustar.END
