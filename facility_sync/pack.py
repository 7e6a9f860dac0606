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
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import capture
from facility_sync.dicom_file import Refused
from facility_sync.home import Home
from facility_sync.identity import cms, decide, domain_files, objects, protect
from facility_sync.identity.domains import Domain, Keyring
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
    """What every file of a round is taken with; crosses to worker processes.

    Attributes:
        facility: whose images they are.
        domains: who may read them.
        key: the facility's Ed25519 key, 32 bytes.
        escrow: certificate in PEM of who may open protected objects too, if anybody.
        menu: from descriptions to the menu.
        captured: written into the rows.
        max_file: largest file taken, in bytes.
        rules: what is sealed whole.
    """

    facility: str
    domains: tuple[Domain, ...]
    key: bytes
    escrow: bytes | None
    menu: Mapping[str, Mapping[str, str]]
    captured: datetime
    max_file: int
    rules: decide.Rules


def context(home: Home, captured: datetime) -> Context:
    """The context of a terminal; raises `SettingsError` when a domain or the escrow is missing."""
    settings = home.settings
    return Context(
        facility=settings.facility,
        domains=domain_files.load(home.domains).sealing(settings.consortia),
        key=home.ssh_key.private_bytes_raw(),
        escrow=domain_files.escrow_certificate(settings.escrow_certificate),
        menu=settings.menu,
        captured=captured,
        max_file=settings.max_file_mib * 1024 * 1024,
        rules=decide.Rules(settings.release, settings.seal_all, frozenset(settings.seal_body_parts)),
    )


def capturing(context: Context, more: Sequence[bytes] = ()) -> capture.Context:
    """For one batch: its protected objects share a content key, so that it is wrapped and opened once.

    Args:
        context: of the terminal.
        more: certificates in PEM of further readers of the protected objects.
    """
    certificates = [domain.current.certificate for domain in context.domains] + list(more)
    if context.escrow is not None:
        certificates.append(context.escrow)
    writer = protect.Writer(
        facility=context.facility,
        key=Ed25519PrivateKey.from_private_bytes(context.key),
        content_key=cms.content_key(os.urandom(cms.KEY_BYTES), certificates),
        domain_keys=objects.domain_keys(Keyring(context.domains)),
        created=messages.rfc3339(context.captured),
    )
    return capture.Context(
        context.domains, context.menu, context.captured, context.max_file, writer, context.rules
    )


def take_files(
    batch: Sequence[Wanted], spool: Path, context: Context, progress: Callable[[int], None] | None = None
) -> tuple[list[Spooled], list[Left]]:
    """Read each file once; store each in `spool`, protected or sealed."""
    taken: list[Spooled] = []
    left: list[Left] = []
    how = capturing(context)
    with spool.open("w+b") as sink:
        for item in batch:
            start = sink.seek(0, io.SEEK_END)
            path = Path(item.source, item.fact.folder, item.fact.name)
            result = capture.take(path, how, sink)
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
    head: bytes,
    objects: Sequence[tuple[str, str, int, int]],
    spool: Path,
    outbox: Path,
    recipients: Sequence[str],
) -> None:
    """Write one sealed container to `outbox` and remove the spool.

    Args:
        head: `container.head_bytes` of the statement and manifest.
        objects: object id, encoding, offset and length in the spool, in manifest order.
        spool: what `take_files` left.
        outbox: the final path; appears whole or not at all.
        recipients: age recipients of every store it may go to, and this terminal's own.
    """
    with spool.open("rb") as source:
        members = _members(head, objects, source)

        def write(sink: BinaryIO) -> None:
            envelope.seal_pieces(members, sink, recipients)

        durable.publish(outbox, write, mode=0o600, replace=True)
    durable.remove(spool)


def reseal(outbox: Path, identity: str, recipients: Sequence[str]) -> None:
    """Seal a waiting batch for others; what is in it stays byte for byte.

    The plaintext goes through a file without a name beside it, as long as this takes.

    Raises:
        SealError: it is not sealed for this terminal, or damaged; it stays as it is.
    """
    limit = container.MAX_CONTENT + ustar.BLOCK
    with tempfile.TemporaryFile(dir=outbox.parent) as plain:
        with outbox.open("rb", buffering=envelope.BUFFER) as source:
            envelope.open_sealed(source, plain, [identity], limit=limit)
        plain.seek(0)

        def write(sink: BinaryIO) -> None:
            envelope.seal(plain, sink, recipients)

        durable.publish(outbox, write, mode=0o600, replace=True)


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
