"""The operator's part of erasing: bytes are unlinked for good, and the store certifies it.

Order of `purge`, for each batch, and what a stop after each step leaves:

    1  audit log                             an event of an act that comes again
    2  quarantine/_erased/<batch> removed    the batch still waits: the next purge certifies it
    3  certificate in erased/                the terminal asks again with its tombstone, and gets it
    4  certificate on the facility's shelf   nothing

So a stolen terminal's key takes images out of answers and no further: what is gone for good went through the
operator's hands too. Works beside the service, which has nothing to do with what waits here.

Guarantees: only what the service is done with is purged; every step may be repeated.

Leaves to others: everything before (`central_store.erasure`). DuckDB's file may hold what erased rows said in
places it does not use any more, until `fstore rebuild` makes it from nothing: `traces` says so. Copies that
were made of the store's disk.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from central_store import audit, batches, erasure, facilities, quarantine, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.settings import Store
from schemas import container
from schemas.errors import Damaged
from schemas.messages import rfc3339
from schemas.names import BatchId, FacilityName
from schemas.transit import durable

UNREADABLE = "unreadable"
GRACE = timedelta(hours=24)
"""How long bytes wait unless the operator says otherwise."""


@dataclass(frozen=True)
class Waiting:
    """An erased batch whose bytes are not purged; `since` is empty while the service is not done with it.

    A record that cannot be read waits with the reason `UNREADABLE`, until the facility tells of it again.
    """

    facility: FacilityName
    batch: BatchId
    reason: str
    since: str
    images: int
    bytes: int


def waiting(store: Store) -> list[Waiting]:
    """What waits, by facility and batch."""
    found = []
    for batch in tombstones.everything(store.layout):
        since, reason = "", UNREADABLE
        with suppress(Damaged):  # one such record does not keep the others from being purged
            said = tombstones.said(store.layout, batch)
            if said is not None and said[0].purged:
                continue
            reason = tombstones.load(store.layout, batch)[0].reason
            since = said[0].taken if said is not None else ""
        images = 0
        if batches.committed(store.layout, batch):
            images = batches.statement(store.layout, batch)[0].objects
        size = sum(path.stat().st_size for path in _files(store.layout.erased_bytes(batch.batch)))
        found.append(Waiting(*batch, reason, since, images, size))
    return found


def purge(store: Store, older_than: timedelta, now: datetime) -> list[Waiting]:
    """Remove what has waited so long, for good, and certify it; returns what that was.

    Raises:
        OSError: the disk failed.
    """
    done = []
    for item in waiting(store):
        if item.since and datetime.fromisoformat(item.since) <= now - older_than:
            _purge(store, item, now)
            done.append(item)
    return done


def _purge(store: Store, item: Waiting, now: datetime) -> None:
    layout, batch = store.layout, Batch(item.facility, item.batch)
    details = audit.operator(reason=item.reason, bytes=item.bytes)
    audit.record(layout, "purge", facility=item.facility, subject=item.batch, details=details, now=now)
    folder = layout.erased_bytes(item.batch)
    if batches.committed(layout, batch) and folder.is_dir():
        quarantine.remove_tree(folder)
        durable.fsync_dir(folder.parent)
    said = tombstones.said(layout, batch)
    assert said is not None  # noqa: S101  # `since` came from it, and it is never removed
    word = replace(said[0], purged=rfc3339(now))
    tombstones.say(layout, container.sign(word, store.keys.signing))
    if facilities.via(layout, item.facility) is None:
        erasure.tell(store, batch)


def traces(layout: Layout) -> bool:
    """Whether the catalog's file may hold what erased rows said."""
    return layout.traces.exists()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
