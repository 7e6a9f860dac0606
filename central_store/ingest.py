"""The store's write order: from a verified batch in staging to a receipt on its facility's shelf.

Order, and what a crash after each step leaves:

    1  verify into staging/             staging, wiped at start; the batch is still in `in`
    2  journal/<batch>                  an entry without a commit: removed at start
    3  pack renamed into objects/       a pack nobody points at: removed at start, the journal names it
    4  folder renamed into manifests/   COMMIT. The journal names it: steps 5 to 8 are done at start
    4b entry in the log of receipts     the same; the journal says how long the log was before
    5  audit log, catalog               the same; the log says it again, the catalog takes a repeat as a no-op
    6  receipt into out/                the same; it is the receipt that lies in the folder
    7  removed from in/                 a journal entry: steps 5 to 8 are done again, harmlessly
    8  journal entry removed            nothing

A batch that is committed but whose pack is damaged or missing takes the same way when it comes again: step 3
sets aside what is there, puts the verified pack in its place and then forgets the damage; step 4 was done
before. A stop before the end of step 3 leaves the batch in `in` and the damage on record: it is verified
again.

Guarantees: a receipt is seen only when the batch is durable; a batch seen again gets the same receipt
again; what recovery costs follows the journal, not the store. A commit that is found, and not made, is made
lasting before its receipt: who made it may have died between the rename and its fsync. A catalog that fails
does not hold back the receipt (the catalog is derived): the journal entry stays, and the next start follows
it again.

A batch that a peer brought takes the same way. Its facility is told only if it was enrolled here: else it
lives elsewhere, and would never fetch what lies on its shelf; the peer learns of it from the log.

Leaves to others: when (`central_store.service`), refusals (`central_store.replies`).
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from datetime import datetime
from typing import Any

from central_store import (
    audit,
    batches,
    damage,
    facilities,
    receipt_log,
    replies,
    tombstones,
    verify,
)  # fmt: skip
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from central_store.layout import Layout
from central_store.receipt_log import ReceiptLog
from central_store.replies import Refused
from central_store.settings import Store
from central_store.verify import Verified
from schemas import container, names
from schemas.errors import Damaged, FormatError, SyncError
from schemas.messages import FacilityCard, Message, Receipt, rfc3339
from schemas.names import BatchId, FacilityName, ShelfName
from schemas.transit import durable

log = logging.getLogger("central_store")


def accepted(store: Store, batch: Batch) -> bool:
    """Whether a batch is committed and its pack is there undamaged: a receipt may be given (again)."""
    return (
        batches.committed(store.layout, batch)
        and store.layout.pack(batch.batch).is_file()
        and not store.layout.damage(batch.batch).exists()
        and not tombstones.erased(store.layout, batch)
    )


def settled(store: Store, batch: Batch) -> bool:
    """Whether nothing of a batch is missing here: it is accepted, or erased for good."""
    return accepted(store, batch) or tombstones.erased(store.layout, batch)


def accept(
    store: Store, catalog: Catalog, card: FacilityCard | None, verified: Verified, now: datetime
) -> None:
    """Steps 2 to 8 for a batch that `verify` left in staging.

    Args:
        store: an opened store.
        catalog: its catalog.
        card: who gets the receipt, or nobody.
        verified: what `verify` returned.
        now: the time of the receipt.

    Raises:
        Refused: the batch is erased, or it is stored under another statement, which the pack that came would
            not fit.
    """
    layout, batch = store.layout, verified.batch
    staged = Batch(verified.shelf, batch.batch)
    if tombstones.erased(layout, batch):
        verify.clear(layout, staged)
        raise Refused("erased", replies.REASONS["erased"])
    returned = batches.committed(layout, batch)  # its pack was damaged or lost, and it was sent again
    if returned and not batches.same(layout, batch, verify.staged_folder(layout, staged)):
        verify.clear(layout, staged)
        raise Refused("other-statement", replies.REASONS["other-statement"])
    if accepted(store, batch):  # it came from two sides at once
        verify.clear(layout, staged)
        again(store, catalog, card, batch, shelf=verified.shelf)
        return
    receipts = ReceiptLog(layout.log)
    entry = f"{batch.facility} {receipts.range().size}"
    durable.publish(layout.journal / batch.batch, entry.encode("ascii"), replace=True)
    if returned:
        damage.set_aside(layout, batch.batch, "replaced", now)
    durable.make_dirs(layout.pack(batch.batch).parent)
    durable.rename(verify.staged_pack(layout, staged), layout.pack(batch.batch))
    if returned:
        shutil.rmtree(verify.staged_folder(layout, staged))
        damage.repaired(layout, batch)
    else:
        receipt = _receipt(store, verified, now)
        batches.commit(layout, batch, verify.staged_folder(layout, staged), receipt)
        receipts.append([receipt_log.encode(receipt.data, receipt.armor)])
    finish(store, catalog, card, batch, shelf=verified.shelf)
    log.info(
        "stored facility=%s batch=%s sequence=%d objects=%d bytes=%d",
        batch.facility, batch.batch, verified.sequence, verified.objects, verified.bytes,
    )  # fmt: skip


def again(
    store: Store,
    catalog: Catalog,
    card: FacilityCard | None,
    batch: Batch,
    *,
    shelf: FacilityName | None = None,
) -> None:
    """Steps 5 to 8 for a batch that was found accepted; any number of times."""
    batches.settle(store.layout, batch)
    damage.settle(store.layout)
    finish(store, catalog, card, batch, shelf=shelf)


def told(store: Store, batch: Batch, shelf: FacilityName) -> FacilityCard | None:
    """Who gets the receipt of a batch from that shelf: its facility, unless that lives at another store."""
    home = shelf == batch.facility or facilities.via(store.layout, batch.facility) is None
    return facilities.load(store.layout, batch.facility) if home else None


def finish(
    store: Store,
    catalog: Catalog,
    card: FacilityCard | None,
    batch: Batch,
    *,
    shelf: FacilityName | None = None,
) -> None:
    """Steps 5 to 8 for a committed, lasting batch that lay on its facility's shelf, or on `shelf`."""
    layout, followed = store.layout, True
    signed = batches.receipt(layout, batch)
    _recorded(layout, batch, signed.message, shelf)
    try:
        catalog.follow(batch)
    except CatalogError as error:
        followed = False
        log.error("catalog facility=%s batch=%s: %s", batch.facility, batch.batch, error)
    if card is not None:
        receipt = replies.sealed_again(card, signed)
        replies.put(store, card, ShelfName(batch.batch, "receipt"), receipt, lasting=True)
        out = layout.outbound(card.facility)
        (out / str(ShelfName(batch.batch, "refusal"))).unlink(missing_ok=True)  # of an earlier, broken upload
    durable.remove(layout.inbound(shelf or batch.facility) / str(ShelfName(batch.batch, "batch")))
    if followed:
        (layout.journal / batch.batch).unlink(missing_ok=True)


def _recorded(layout: Layout, batch: Batch, receipt: Message, shelf: FacilityName | None) -> None:
    if isinstance(receipt, Receipt):
        details: dict[str, Any] = {
            "bytes": receipt.bytes,
            "objects": receipt.objects,
            "sequence": receipt.sequence,
        }
        if shelf not in (None, batch.facility):
            details |= {"peer": shelf}
        audit.record(layout, "ingest", facility=batch.facility, subject=batch.batch, details=details)


def _receipt(store: Store, verified: Verified, now: datetime) -> container.Signed:
    receipt = Receipt(
        store=store.name,
        facility=verified.batch.facility,
        batch=verified.batch.batch,
        sequence=verified.sequence,
        objects=verified.objects,
        bytes=verified.bytes,
        stored=rfc3339(now),
    )
    return container.sign(receipt, store.keys.signing)


def wipe(layout: Layout) -> None:
    """Empty the staging folder, first thing after a start; and what the log never came to speak of."""
    for part in layout.log.glob("**/*.part"):
        part.unlink()
    for leftover in layout.staging.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def recover(store: Store, catalog: Catalog) -> int:
    """Finish or undo what the journal names; returns how many entries it had."""
    entries = sorted(store.layout.journal.iterdir())
    for entry in entries:
        try:
            batch_id = names.batch_id(entry.name)
        except FormatError:  # the `.part` of an entry that never was
            entry.unlink()
            continue
        try:
            _replay(store, catalog, batch_id)
        except SyncError as error:  # one damaged batch does not keep the store from starting
            log.error("not recovered batch=%s: %s", batch_id, error)
    return len(entries)


def _replay(store: Store, catalog: Catalog, batch_id: BatchId) -> None:
    entry = store.layout.journal / batch_id
    facility, _, before = entry.read_text("ascii").partition(" ")
    batch = Batch(names.facility_name(facility), batch_id)
    if batches.committed(store.layout, batch):
        _log_once(store, batch, int(before) if before.isdigit() else 0)
    if accepted(store, batch):
        if facilities.load(store.layout, batch.facility) is not None:
            again(store, catalog, told(store, batch, batch.facility), batch)
        return
    if not batches.committed(store.layout, batch):
        store.layout.pack(batch_id).unlink(missing_ok=True)
    entry.unlink()


def _log_once(store: Store, batch: Batch, before: int) -> None:
    """The log's entry of a committed batch, unless it is there, at or behind the place the journal names."""
    receipts, receipt = ReceiptLog(store.layout.log), batches.receipt(store.layout, batch)
    entry = receipt_log.encode(receipt.data, receipt.armor)
    if entry not in receipts.entries(before, receipts.range().size):
        receipts.append([entry])


def complete_log(store: Store) -> int:
    """Add every batch that the log lacks, the oldest receipt first; returns how many.

    For a store that had no log yet, or was put back from a copy.
    """
    receipts = ReceiptLog(store.layout.log)
    present = set(receipts.entries(0, receipts.range().size))
    lacking = []
    for batch in batches.listing(store.layout):
        with suppress(Damaged):  # `fstore check` names it
            receipt = batches.receipt(store.layout, batch)
            entry = receipt_log.encode(receipt.data, receipt.armor)
            if entry not in present and isinstance(receipt.message, Receipt):
                lacking.append((receipt.message.stored, batch.batch, entry))
    if lacking or not receipts.exists:
        receipts.append([entry for _, _, entry in sorted(lacking)])
    return len(lacking)
