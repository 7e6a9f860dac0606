"""What happens when a pack turns out damaged: it is set aside, its facility is told, and it may come back.

    damaged/<batch-id>.json  .sig                     the notice, signed by this store: while it is there, the
                                                      batch is not held, and its rows stand behind others
    quarantine/_packs/<batch-id>.<time>.tar  .reason  the damaged pack; its whole objects are still handed out

Order of `found`, and what a stop after each step leaves:

    1  the notice is recorded         the pack is there: the next check reads it again, and goes on from here
    2  the pack is set aside          the facility was not told: the next check tells it
    3  the notice lies on `out`       nothing

Guarantees: nothing is deleted; every step may be repeated. The batch is whole again when a pack that was
verified takes the place (`repaired`, by `central_store.ingest` or a check). It is made up for when every file
of it is in other batches of the same facility (`resent`): then nobody misses it.

Leaves to others: finding damage (`central_store.check`), what the catalog makes of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from central_store import audit, facilities, packs, replies, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.settings import Store
from schemas import container, manifest
from schemas.container import TABLE
from schemas.errors import Damaged, SyncError
from schemas.messages import Notice, rfc3339
from schemas.names import BatchId, FacilityName, ShelfName
from schemas.transit import durable

log = logging.getLogger("central_store")

Seen = tuple[int, int]
"""Device and inode: which file it was that was read."""


def seen(status: os.stat_result) -> Seen:
    """What makes a file the same file."""
    return status.st_dev, status.st_ino


def found(store: Store, batch: Batch, reason: str, now: datetime, at: Seen | None) -> bool:
    """A batch's pack is damaged, or missing.

    Args:
        store: an opened store.
        batch: which.
        reason: a code of `check.CODES`.
        now: when.
        at: the file that was read; None for a pack that is missing.

    Returns:
        False, and nothing was done, if another file has taken the place meanwhile, or the batch is erased.
    """
    layout, pack = store.layout, store.layout.pack(batch.batch)
    if tombstones.erased(layout, batch) or (seen(pack.stat()) if pack.exists() else None) != at:
        return False
    notice = Notice(
        store=store.name, facility=batch.facility, batch=batch.batch, reason=reason, found=rfc3339(now)
    )
    signed = container.sign(notice, store.keys.signing)
    details = {"reason": reason}
    audit.record(layout, "quarantine", facility=batch.facility, subject=batch.batch, details=details, now=now)
    durable.make_dirs(layout.damaged, mode=0o755)
    path = layout.damage(batch.batch)
    durable.publish(_sig(path), signed.armor.encode("ascii"), replace=True)
    durable.publish(path, signed.data, replace=True)
    set_aside(layout, batch.batch, reason, now)
    tell(store, batch)
    log.error("damaged facility=%s batch=%s reason=%s", batch.facility, batch.batch, reason)
    return True


def set_aside(layout: Layout, batch: BatchId, reason: str, now: datetime) -> None:
    """Move a pack into quarantine, if there is one, with the reason beside it."""
    if layout.pack(batch).exists():
        durable.make_dirs(layout.set_aside, mode=0o755)
        aside = layout.set_aside / f"{batch}.{now:%Y%m%dT%H%M%S%f}Z.tar"
        durable.publish(aside.with_suffix(".reason"), reason.encode("ascii") + b"\n", replace=True)
        durable.rename(layout.pack(batch), aside)


def tell(store: Store, batch: Batch) -> None:
    """Put the recorded notice on the facility's shelf, in the place of a receipt that is true no more."""
    card = facilities.load(store.layout, batch.facility)
    if card is None:
        return
    signed = notice(store, batch.batch)
    name = ShelfName(batch.batch, "notice")
    replies.put(store, card, name, replies.sealed_again(card, signed), lasting=True)
    durable.remove(store.layout.outbound(batch.facility) / str(ShelfName(batch.batch, "receipt")))


def notice(store: Store, batch: BatchId) -> container.Signed:
    """The recorded notice of a damaged batch; raises `Damaged`."""
    path = store.layout.damage(batch)
    try:
        return container.verify(path.read_bytes(), _sig(path).read_text("ascii"), store.card().signing_key)
    except (FileNotFoundError, UnicodeDecodeError, SyncError) as error:
        raise Damaged(f"the notice of batch {batch} cannot be read") from error


def repaired(layout: Layout, batch: Batch) -> None:
    """A verified pack is in its place again: forget the damage; harmless if there was none.

    The notice goes first: as long as the damage is on record, a stop here is made up for.
    """
    durable.remove(layout.outbound(batch.facility) / str(ShelfName(batch.batch, "notice")))
    path = layout.damage(batch.batch)
    if path.exists():
        audit.record(layout, "repair", facility=batch.facility, subject=batch.batch)
        durable.remove(path)
        log.info("repaired facility=%s batch=%s", batch.facility, batch.batch)
    _sig(path).unlink(missing_ok=True)


def forget(layout: Layout, batch: Batch) -> None:
    """A damaged batch is erased: nobody misses it any more."""
    durable.remove(layout.outbound(batch.facility) / str(ShelfName(batch.batch, "notice")))
    path = layout.damage(batch.batch)
    durable.remove(path)
    _sig(path).unlink(missing_ok=True)


def settle(layout: Layout) -> None:
    """Make lasting what a killed process may have forgotten here: a power cut would bring it back."""
    with suppress(FileNotFoundError):  # there never was any damage
        durable.fsync_dir(layout.damaged)


def resent(layout: Layout, known: Collection[Batch]) -> set[BatchId]:
    """The damaged batches of which every file is in another, undamaged batch of the same facility.

    Reads the manifests of facilities that have damage, and of no other.
    """
    damaged = packs.damaged(layout)
    wanted: dict[FacilityName, dict[BatchId, set[str]]] = {}
    for batch in known:
        if batch.batch in damaged:
            wanted.setdefault(batch.facility, {})[batch.batch] = _digests(layout, batch) or {"unknown"}
    for batch in known:
        if batch.facility in wanted and batch.batch not in damaged and layout.pack(batch.batch).is_file():
            held = _digests(layout, batch)
            for missing in wanted[batch.facility].values():
                missing.difference_update(held)
    return {batch for each in wanted.values() for batch, missing in each.items() if not missing}


def _digests(layout: Layout, batch: Batch) -> set[str]:
    """Source digests of a batch's rows; none if its manifest cannot be read."""
    try:
        table = manifest.from_parquet((layout.manifest(*batch) / TABLE).read_bytes(), facility=batch.facility)
    except (FileNotFoundError, SyncError):
        return set()
    return set(table.column("source_digest").to_pylist())


def _sig(path: Path) -> Path:
    return path.with_name(path.name + ".sig")
