"""What a facility that lives here learns of its batches at a peer: held there, damaged there, whole again.

    peers/<name>/notices/<batch>     a notice of this peer was passed on, and not taken back yet

On the facility's shelf all of it is a `.replica`: the peer's own receipt or notice, signed by the peer.

Guarantees: only what the peer's key signed is passed on, each once, and only for facilities that live here.

Leaves to others: when (`central_store.talk`).
"""

from __future__ import annotations

from central_store import batches, facilities, receipt_log, replies, tombstones
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog
from central_store.settings import Store
from schemas import container
from schemas.errors import FormatError
from schemas.messages import Notice
from schemas.names import ShelfName
from schemas.peer_messages import MOST_NOTICES, LogAnswer
from schemas.transit import durable


def deliver(store: Store, peer: Peer, batch: Batch, signed: container.Signed) -> None:
    """Pass on a receipt, or a notice, of a batch that is held here too."""
    if not batches.committed(store.layout, batch) or facilities.via(store.layout, batch.facility) is not None:
        return
    if tombstones.erased(store.layout, batch):
        return
    card = facilities.load(store.layout, batch.facility)
    if card is not None:
        name = ShelfName(f"{batch.batch}.{peer.name}", "replica")
        replies.put(store, card, name, replies.sealed_again(card, signed), lasting=True)


def damaged(store: Store, peer: Peer, answer: LogAnswer) -> None:
    """Pass on the notices of a peer that are new, and its receipts again for what is whole again.

    Raises:
        FormatError, SealError: a notice is not the peer's own.
    """
    if len(answer.notices) != len(answer.notice_signatures):
        raise FormatError("log-answer: notices and signatures are not as many")
    folder = store.layout.peer(peer.name) / "notices"
    known = {path.name for path in folder.glob("*") if path.suffix != ".part"}
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
    whole = known - now
    if not whole or len(answer.notices) == MOST_NOTICES:  # there may be more
        return
    log = ReceiptLog(store.layout.peer(peer.name) / "log")
    for entry in log.entries(0, log.range().size):
        if receipt_log.batch_of(entry) in whole:
            found = receipt_log.decode(entry)
            deliver(store, peer, Batch(found.receipt.facility, found.receipt.batch), found.signed)
    for batch in whole:
        durable.remove(folder / batch)
