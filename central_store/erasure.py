"""A tombstone arrives: the batch is out of every answer, and its bytes wait for the operator.

Order, for each batch that the tombstone names, and what a stop after each step leaves:

    1  audit log                          the tombstone lies where it came from, and is read again
    2  tombstone recorded                 COMMIT. Steps 3 to 6 are done at start
    3  rows leave the catalog and SQL     the same; the catalog takes a repeat as a no-op
    4  damage forgotten, copies under
       way to peers removed               the same
    5  packs and table set aside          the same: what was moved is not there any more
    6  our word recorded                  the tombstone, or the next start, puts it on the shelf
    7  our word on the facility's shelf   the tombstone is read again, and answered again
    8  tombstone removed from `in`        nothing

Statement and receipt stay where they are, and the log keeps its entry: they say nothing of a person, and
without them the facility's sequence would have gaps.

Guarantees: nothing is erased that the facility's key, present or former, did not sign; nothing is unlinked;
every step may be repeated; a tombstone that came before is answered with the same word. A batch that comes
after its tombstone is refused (`central_store.ingest`). If the catalog fails, our word is not given: the next
start goes on.

Leaves to others: unlinking (`central_store.purge`), forgetting rows (`central_store.catalog`), which peer is
told (`central_store.people`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from central_store import audit, batches, damage, facilities, inbox, peers, replies, sql_rows, tombstones
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from central_store.layout import Layout
from central_store.replies import Refused
from central_store.settings import Store
from schemas import container, envelope, ustar
from schemas.container import TABLE, Signed
from schemas.erasure_messages import Erasure, Tombstone, name_of
from schemas.errors import FormatError, SealError, SyncError
from schemas.messages import FacilityCard, rfc3339
from schemas.names import FacilityName, ShelfName
from schemas.transit import durable

log = logging.getLogger("central_store")

LIMIT = 64 * 1024
"""Most bytes of a tombstone in its container."""


def arrived(store: Store, card: FacilityCard, name: ShelfName) -> Signed:
    """The tombstone of that name on a facility's shelf.

    Raises:
        FormatError, SealError: refuse it.
        FileNotFoundError: it is not there any more.
    """
    with inbox.open_arrival(store.layout, card.facility, name) as file:
        sealed = file.read(envelope.sealed_size(LIMIT, LIMIT) + 1)  # one more is refused
    plain = envelope.open_bytes(sealed, [store.keys.age_identity], limit=LIMIT)
    signed = container.read_unverified(ustar.Reader(io.BytesIO(plain), limit=LIMIT))
    if not isinstance(signed.message, Tombstone):
        raise FormatError("a container on the shelf of tombstones holds none")
    if signed.message.facility != card.facility:
        raise Refused("other-facility", "the tombstone is another facility's than the shelf")
    if name_of(signed.data) != name.id:
        raise Refused("other-name", "the name on the shelf is not the tombstone's SHA-256")
    return container.verify(signed.data, signed.armor, card.ssh_key)


def brought(store: Store, data: str, armor: str) -> Signed:
    """A tombstone that a peer tells of; raises `FormatError`, `SealError` if its facility did not sign it."""
    message = Tombstone.from_bytes(data.encode("utf-8", "replace"))
    for key in facilities.signers(store.layout, message.facility):
        try:
            return container.verify(data.encode("utf-8"), armor, key)
        except SealError:
            continue
    raise SealError("a tombstone is not signed by a key of its facility")


def take(
    store: Store, catalog: Catalog, signed: Signed, now: datetime, *, peer: FacilityName | None = None
) -> int:
    """Erase what a verified tombstone names; returns how many batches were not erased before.

    Args:
        store: an opened store.
        catalog: its catalog.
        signed: from `arrived` or `brought`.
        now: the time.
        peer: who told of it; None for the facility itself, which is answered on its shelf.
    """
    message, fresh = signed.message, 0
    assert isinstance(message, Tombstone)  # noqa: S101  # so `arrived` and `brought` say
    details: dict[str, Any] = {"reason": message.reason, "tombstone": name_of(signed.data)}
    details |= {"peer": peer} if peer else {}
    for batch in (Batch(message.facility, each) for each in message.batches):
        if not tombstones.erased(store.layout, batch):
            audit.record(
                store.layout, "erase", facility=batch.facility, subject=batch.batch, details=details, now=now
            )
            tombstones.record(store.layout, batch, signed)
            fresh += 1
        elif not tombstones.readable(store.layout, batch):
            tombstones.record(store.layout, batch, signed)  # this one says the same
        finish(store, catalog, batch, now)
        if peer is None:
            tell(store, batch)
    if peer is None:
        name = ShelfName(name_of(signed.data), "tombstone")
        durable.remove(store.layout.inbound(message.facility) / str(name))
    return fresh


def recover(store: Store, catalog: Catalog, now: datetime) -> int:
    """Finish what a stop left undone; returns how many batches."""
    open_ones = [
        batch for batch in tombstones.everything(store.layout) if not store.layout.erasure(*batch).exists()
    ]
    for batch in open_ones:
        try:
            finish(store, catalog, batch, now)
            if facilities.via(store.layout, batch.facility) is None:
                tell(store, batch)
        except SyncError as error:  # one that cannot be read does not keep the store from starting
            log.error("not erased facility=%s batch=%s: %s", batch.facility, batch.batch, error)
    return len(open_ones)


def finish(store: Store, catalog: Catalog, batch: Batch, now: datetime) -> None:
    """Steps 3 to 6 for a recorded tombstone; nothing if our word was given."""
    layout = store.layout
    if layout.erasure(*batch).exists():
        return
    try:
        catalog.erase(batch)
    except CatalogError as error:
        log.error("catalog facility=%s batch=%s: %s", batch.facility, batch.batch, error)
        return
    sql_rows.forget(layout, batch.facility)
    if batches.committed(layout, batch):
        damage.forget(layout, batch)
        for peer in peers.names_of(layout):
            durable.remove(layout.outbound(peer) / str(ShelfName(batch.batch, "batch")))
        set_aside(layout, batch)
    _, signed = tombstones.load(layout, batch)
    word = Erasure(
        store=store.name,
        facility=batch.facility,
        batch=batch.batch,
        tombstone=name_of(signed.data),
        taken=rfc3339(now),
        purged="",
    )
    tombstones.say(layout, container.sign(word, store.keys.signing))
    log.info("erased facility=%s batch=%s", batch.facility, batch.batch)


def set_aside(layout: Layout, batch: Batch) -> None:
    """Move everything that holds bytes or rows of a batch to where the operator purges it."""
    folder = layout.erased_bytes(batch.batch)
    pack, table = layout.pack(batch.batch), layout.manifest(*batch) / TABLE
    before = sorted(layout.set_aside.glob(f"{batch.batch}.*"))
    if pack.exists() or table.exists() or before:
        durable.make_dirs(folder)
    for path in before:
        durable.rename(path, folder / path.name)
    for path, name in ((pack, "pack.tar"), (table, TABLE)):
        if path.exists():
            durable.rename(path, folder / name)


def tell(store: Store, batch: Batch) -> None:
    """Put our word on the facility's shelf, in the place of a receipt or notice that is true no more."""
    card, said = facilities.load(store.layout, batch.facility), tombstones.said(store.layout, batch)
    out = store.layout.outbound(batch.facility)
    if card is None or said is None or not out.is_dir():
        return
    sealed = replies.sealed_again(card, said[1])
    replies.put(store, card, ShelfName(batch.batch, "erasure"), sealed, lasting=True)
    for kind in _UNTRUE:
        durable.remove(out / f"{batch.batch}.{kind}")


_UNTRUE: Sequence[str] = ("receipt", "notice")
