"""What a store asks a peer: its log, its people, batches.

Guarantees: a question follows from the files and what is given here; nothing changes but that grants and
accounts edited since the last look are signed (`central_store.people`).

Leaves to others: when, and what follows (`central_store.talk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from central_store import peer_shelf, people, tombstone_talk
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog
from central_store.settings import Store
from schemas.messages import rfc3339
from schemas.names import BatchId
from schemas.peer_messages import BatchesRequest, LogRequest, PeopleRequest


def log_request(store: Store, peer: Peer, start: int, wanted: int, now: datetime) -> LogRequest:
    """What is in your log?

    Args:
        store: ours.
        peer: who is asked.
        start: from which entry on.
        wanted: how many of its batches we wait for.
        now: the time.
    """
    ours = ReceiptLog(store.layout.log).range()
    return LogRequest(
        id=peer_shelf.new_id(),
        store=store.name,
        start=start,
        wanted=wanted,
        size=ours.size,
        root=ours.root.hex(),
        people=people.told(store, peer, now).digest,
        created=rfc3339(now),
    )


def people_request(store: Store, after: str, now: datetime) -> PeopleRequest:
    """Who are your people, and which tombstones do we lack, behind `after`?"""
    return PeopleRequest(
        id=peer_shelf.new_id(),
        store=store.name,
        tombstones=tombstone_talk.have(store.layout),
        after=after,
        created=rfc3339(now),
    )


def batches_request(store: Store, chosen: Sequence[BatchId], now: datetime) -> BatchesRequest:
    """These batches, please."""
    return BatchesRequest(
        id=peer_shelf.new_id(), store=store.name, batches=tuple(chosen), created=rfc3339(now)
    )
