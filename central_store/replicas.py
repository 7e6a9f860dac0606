"""What a facility that lives here learns of its batches at a peer: held there, damaged there, whole again.

    peers/<name>/passed              how many entries of its log were passed on
    peers/<name>/notices/<batch>     a notice of this peer was passed on, and not taken back yet

On the facility's shelf all of it is a `.replica`: the peer's own receipt or notice, signed by the peer.

Guarantees: only what the peer's key signed is passed on, only for facilities that live here; each once, or
again after a stop, which changes nothing. While a notice stands, no receipt goes past it. One step passes
little, however long the log is.

Leaves to others: when (`central_store.talk`).
"""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path

from central_store import batches, facilities, peers, receipt_log, replies, tombstones
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog
from central_store.settings import Store
from schemas import container
from schemas.errors import FormatError, SyncError
from schemas.messages import Notice
from schemas.names import BatchId, ShelfName
from schemas.peer_messages import MOST_NOTICES, LogAnswer
from schemas.transit import durable

log = logging.getLogger("central_store")

SLICE = 256
"""Entries that one step reads."""
SCAN = 4096
"""Entries of which one step reads only the batch."""
MOST = 2
"""Replicas that one step puts on shelves: each is sealed, and lasting, which takes a disk its time."""


def deliver(store: Store, peer: Peer, batch: Batch, signed: container.Signed) -> bool:
    """Pass on a receipt, or a notice, of a batch that is held here too; returns whether it is."""
    if not batches.committed(store.layout, batch) or facilities.via(store.layout, batch.facility) is not None:
        return False
    if tombstones.erased(store.layout, batch):
        return False
    card = facilities.load(store.layout, batch.facility)
    if card is None:
        return False
    name = ShelfName(f"{batch.batch}.{peer.name}", "replica")
    replies.put(store, card, name, replies.sealed_again(card, signed), lasting=True)
    return True


def damaged(store: Store, peer: Peer, answer: LogAnswer) -> frozenset[BatchId]:
    """Pass on the notices of a peer that are new; returns the batches it says are whole again.

    Raises:
        FormatError, SealError: a notice is not the peer's own.
    """
    if len(answer.notices) != len(answer.notice_signatures):
        raise FormatError("log-answer: notices and signatures are not as many")
    folder = _notices(store, peer)
    known = {BatchId(path.name) for path in folder.glob("*") if path.suffix != ".part"}
    now = set()
    for data, armor in zip(answer.notices, answer.notice_signatures, strict=True):
        signed = container.verify(data.encode(), armor, peer.card.signing_key)
        message = signed.message
        if not isinstance(message, Notice) or message.store != peer.name:
            raise FormatError("a notice of a peer is none of its own")
        now.add(message.batch)
        if message.batch not in known:
            deliver(store, peer, Batch(message.facility, message.batch), signed)
            durable.make_dirs(folder)
            durable.publish(folder / message.batch, b"", replace=True)
    return frozenset() if len(answer.notices) == MOST_NOTICES else frozenset(known - now)  # there may be more


class Passing:
    """What is still to be passed on of one peer's log.

    Args:
        store: an opened store.
    """

    def __init__(self, store: Store) -> None:
        self.read = 0
        """Entries read in this run: it grows while there is work."""
        self._store = store
        self._whole: Set[BatchId] = frozenset()
        self._at = 0  # where the receipts of these are looked for
        self._more = True

    def __bool__(self) -> bool:
        """Whether there may be something to pass on."""
        return self._more or bool(self._whole)

    def grew(self) -> None:
        """Its log has entries that are new, or is another one."""
        self._more = True

    def whole(self, found: Set[BatchId]) -> None:
        """These, of which notices were passed on, are whole again: pass on their receipts again."""
        if not found <= self._whole:
            self._at = 0
        self._whole = found

    def step(self, peer: Peer) -> None:
        """Pass on a little; raises `Damaged` if the log cannot be read."""
        receipts = ReceiptLog(self._store.layout.peer(peer.name) / "log")
        if self._more:
            self._pass(peer, receipts)
        else:
            self._again(peer, receipts)

    def _pass(self, peer: Peer, receipts: ReceiptLog) -> None:
        size, path = receipts.range().size, self._store.layout.peer(peer.name) / "passed"
        start = at = peers.passed(self._store.layout, peer.name)
        told = 0
        for entry in map(receipt_log.decode, receipts.entries(at, at + SLICE)):
            batch = Batch(entry.receipt.facility, entry.receipt.batch)
            if not (_notices(self._store, peer) / batch.batch).exists():
                told += self._deliver(peer, batch, entry.signed)
            at += 1
            if told == MOST:
                break
        self.read += at - start
        if at != start:
            durable.publish(path, str(at).encode("ascii"), replace=True)
        self._more = at < size

    def _deliver(self, peer: Peer, batch: Batch, signed: container.Signed) -> bool:
        try:
            return deliver(self._store, peer, batch, signed)
        except SyncError as error:  # one facility's broken card does not hold up the others
            log.error("not passed on facility=%s batch=%s: %s", batch.facility, batch.batch, error)
            return False

    def _again(self, peer: Peer, receipts: ReceiptLog) -> None:
        folder, size = _notices(self._store, peer), receipts.range().size
        told = 0
        for entry in receipts.entries(self._at, self._at + SCAN):
            self._at += 1
            self.read += 1
            if receipt_log.batch_of(entry) in self._whole:
                found = receipt_log.decode(entry)
                batch = Batch(found.receipt.facility, found.receipt.batch)
                told += self._deliver(peer, batch, found.signed)
                durable.remove(folder / batch.batch)
                if told == MOST:
                    break
        if self._at >= size:
            for batch_id in self._whole:  # what its log does not hold
                durable.remove(folder / batch_id)
            self._whole = frozenset()


def _notices(store: Store, peer: Peer) -> Path:
    return store.layout.peer(peer.name) / "notices"
