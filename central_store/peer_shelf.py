"""Messages between stores, as they lie on the shelves that two of them share.

Guarantees: `read` returns only what the peer's key signed, sealed for us and naming that peer; limits before
allocation. `put` makes a message whole or not at all; a power cut may take it back: whoever misses it asks
again.

Leaves to others: what is said (`central_store.talk`, `central_store.peer_answers`), how it travels
(`central_store.carry`).
"""

from __future__ import annotations

import io
import secrets

from central_store.peers import Peer
from central_store.settings import Store
from schemas import container, envelope, names, ustar
from schemas.errors import FormatError
from schemas.messages import MAX_BYTES, Message
from schemas.names import RequestId, ShelfName
from schemas.transit import durable

_LIMIT = MAX_BYTES + 64 * 1024
"""Most bytes of a message in its container."""


def new_id() -> RequestId:
    """An id nobody used."""
    return names.request_id(secrets.token_hex(16))


def read(store: Store, peer: Peer, name: ShelfName) -> Message:
    """A message that lies on our side.

    Raises:
        FormatError, SealError: refuse it.
        FileNotFoundError: it is not there any more.
    """
    path = store.layout.inbound(peer.name) / str(name)
    if path.is_symlink() or path.stat().st_size > envelope.sealed_size(_LIMIT, 64 * 1024):
        raise FormatError("a message of a peer is larger than any may be")
    plain = envelope.open_bytes(path.read_bytes(), [store.keys.age_identity], limit=_LIMIT)
    tar = ustar.Reader(io.BytesIO(plain), limit=_LIMIT)
    message = container.read_head(tar, lambda _: peer.card.signing_key).signed.message
    if tar.next() is not None:
        raise FormatError("there is more in a message than itself")
    if getattr(message, "store", None) != peer.name:
        raise FormatError("a message speaks for another store than the shelf")
    return message


def put(store: Store, peer: Peer, message: Message) -> None:
    """Sign a message, seal it for a peer and put it where it is carried from; a question under its own id."""
    signed = container.sign(message, store.keys.signing)
    sealed = envelope.seal_bytes(container.whole(signed), [peer.card.age_recipient])
    name = ShelfName(getattr(message, "id", None) or new_id(), "request")
    durable.publish(store.layout.outbound(peer.name) / str(name), sealed, replace=True, lasting=False)
