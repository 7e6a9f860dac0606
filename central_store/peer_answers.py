"""What a store answers when a peer asks: its log, who its people are, what it does not have.

Guarantees: answers follow from the files alone, whoever asks and however often; nothing here changes but that
grants and accounts edited since the last look are signed (`central_store.people`).

Leaves to others: what was asked and what follows (`central_store.talk`).
"""

from __future__ import annotations

from datetime import datetime

from central_store import batches, damage, ingest, packs, people, receipt_log, tombstone_talk, witness
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog
from central_store.settings import Store
from schemas.messages import rfc3339
from schemas.peer_messages import (
    MOST_ENTRIES,
    MOST_NOTICES,
    BatchesAnswer,
    BatchesRequest,
    LogAnswer,
    LogRequest,
    PeopleAnswer,
    PeopleRequest,
)


def log_answer(
    store: Store, peer: Peer, request: LogRequest, known: int, wanted: int, now: datetime
) -> LogAnswer:
    """A piece of our log.

    Args:
        store: ours.
        peer: who asks.
        request: from where.
        known: how many entries of its log we followed.
        wanted: how many of its batches we wait for.
        now: the time.
    """
    log = ReceiptLog(store.layout.log)
    ours = log.range()
    entries = [
        receipt_log.decode(entry) for entry in log.entries(request.start, request.start + MOST_ENTRIES)
    ]
    checkpoint, checkpoint_signature = witness.ours(store.layout)
    notices = [damage.notice(store, batch) for batch in sorted(packs.damaged(store.layout))[:MOST_NOTICES]]
    return LogAnswer(
        store=store.name,
        request=request.id,
        start=request.start,
        size=ours.size,
        root=ours.root.hex(),
        receipts=tuple(entry.signed.data.decode() for entry in entries),
        signatures=tuple(entry.signed.armor for entry in entries),
        people=people.told(store, peer, now).digest,
        known=known,
        wanted=wanted,
        checkpoint=checkpoint,
        checkpoint_signature=checkpoint_signature,
        notices=tuple(notice.data.decode() for notice in notices),
        notice_signatures=tuple(notice.armor for notice in notices),
        answered=rfc3339(now),
    )


def batches_answer(
    store: Store, request: BatchesRequest, now: datetime
) -> tuple[list[Batch], BatchesAnswer | None]:
    """The batches asked for that are whole here, and the answer about the others, if there are any."""
    found = {batch: batches.find(store.layout, batch) for batch in request.batches}
    held = [batch for batch in found.values() if batch is not None and ingest.accepted(store, batch)]
    missing = tuple(batch for batch in request.batches if found[batch] not in held)
    if not missing:
        return held, None
    return held, BatchesAnswer(store=store.name, request=request.id, missing=missing, answered=rfc3339(now))


def people_answer(store: Store, peer: Peer, request: PeopleRequest, now: datetime) -> PeopleAnswer:
    """Cards, accounts, grants and tombstones of the facilities this peer takes part in."""
    told = people.told(store, peer, now)
    page = tombstone_talk.lacking(store.layout, told.shared, request.tombstones, request.after)
    return PeopleAnswer(
        store=store.name,
        request=request.id,
        cards=told.cards,
        changes=tuple(item.signed.data.decode() for item in told.changes),
        keys=tuple(item.key for item in told.changes),
        signatures=tuple(item.signed.armor for item in told.changes),
        tombstones=tuple(signed.data.decode() for signed in page.found),
        tombstone_signatures=tuple(signed.armor for signed in page.found),
        more=page.more,
        people=told.digest,
        answered=rfc3339(now),
    )
