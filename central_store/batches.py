"""Accepted batches: one immutable folder each, whose publication is the commit.

    manifests/<facility>/<batch-id>/manifest.parquet  statement.json  statement.json.sig
                                    receipt.json  receipt.json.sig

Guarantees: a folder appears with all five files or not at all; listing the folders is the inventory. The
receipt is made before the commit and lies inside it, so a batch seen again gets the same receipt.

Leaves to others: everything that must be true before (`central_store.ingest`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from central_store.layout import Layout
from schemas import names
from schemas.container import TABLE, Signed
from schemas.errors import Damaged, FormatError
from schemas.messages import Message, Receipt, Statement, parse
from schemas.names import BatchId, FacilityName
from schemas.transit import durable

STATEMENT, RECEIPT = "statement.json", "receipt.json"
FILES = (TABLE, STATEMENT, STATEMENT + ".sig", RECEIPT, RECEIPT + ".sig")


class Batch(NamedTuple):
    """Whose batch, and which."""

    facility: FacilityName
    batch: BatchId


def stage(folder: Path, table: bytes, statement: Signed) -> None:
    """Begin a batch's folder: table, statement and signature, the bytes of each lasting."""
    folder.mkdir(mode=0o755)
    durable.write_hidden(folder / TABLE, table)
    _write_signed(folder / STATEMENT, statement)


def _write_signed(path: Path, signed: Signed) -> None:
    """A message and, beside it, its signature."""
    durable.write_hidden(path, signed.data)
    durable.write_hidden(path.with_name(path.name + ".sig"), signed.armor.encode("ascii"))


def commit(layout: Layout, batch: Batch, folder: Path, receipt: Signed) -> None:
    """Put the receipt in and publish the folder: the one commit point of the store."""
    _write_signed(folder / RECEIPT, receipt)
    durable.publish_dir(folder, layout.manifest(*batch))


def settle(layout: Layout, batch: Batch) -> None:
    """Make a batch that was found committed lasting: whoever committed it may have died before that."""
    durable.fsync_dir(layout.pack(batch.batch).parent)
    durable.fsync_dir(layout.manifest(*batch).parent)


def committed(layout: Layout, batch: Batch) -> bool:
    """Whether a batch was accepted."""
    return layout.manifest(*batch).is_dir()


def find(layout: Layout, batch: BatchId) -> Batch | None:
    """A committed batch whose facility is not known, by its id."""
    for path in layout.manifests.glob(f"*/{batch}"):
        return Batch(names.facility_name(path.parent.name), batch)
    return None


def same(layout: Layout, batch: Batch, folder: Path) -> bool:
    """Whether a staged folder holds the very statement and table that were committed."""
    pairs = ((folder / name, layout.manifest(*batch) / name) for name in FILES[:3])
    return all(committed.is_file() and staged.read_bytes() == committed.read_bytes()
               for staged, committed in pairs)  # fmt: skip


def statement(layout: Layout, batch: Batch) -> tuple[Statement, Signed]:
    """A batch's statement and its signature, unverified; raises `Damaged`."""
    signed = _read(layout.manifest(*batch) / STATEMENT, batch)
    if not isinstance(signed.message, Statement):
        raise Damaged(f"statement.json of batch {batch.batch} is no statement")
    return signed.message, signed


def receipt(layout: Layout, batch: Batch) -> Signed:
    """A batch's receipt; raises `Damaged`."""
    signed = _read(layout.manifest(*batch) / RECEIPT, batch)
    if not isinstance(signed.message, Receipt):
        raise Damaged(f"receipt.json of batch {batch.batch} is no receipt")
    return signed


def stored(layout: Layout, batch: Batch) -> str | None:
    """When the batch was stored, as its receipt says; None if there is no receipt to read."""
    with suppress(Damaged):
        message = receipt(layout, batch).message
        if isinstance(message, Receipt):
            return message.stored
    return None


def _read(path: Path, batch: Batch) -> Signed:
    try:
        data = path.read_bytes()
        armor = path.with_name(path.name + ".sig").read_text("ascii")
        message: Message = parse(data)
    except (FileNotFoundError, UnicodeDecodeError, FormatError) as error:
        raise Damaged(f"{path.name} of batch {batch.batch} cannot be read") from error
    return Signed(message, data, armor)


def listing(layout: Layout) -> Iterator[Batch]:
    """Every accepted batch, by facility and id; what is no batch is skipped (`check` reports it)."""
    for folder in sorted(layout.manifests.iterdir()):
        with suppress(FormatError):
            facility = names.facility_name(folder.name)
            for entry in sorted(folder.iterdir()):
                with suppress(FormatError):
                    yield Batch(facility, names.batch_id(entry.name))
