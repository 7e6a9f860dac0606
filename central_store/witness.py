"""Checkpoints of peers' audit logs, kept here: what shows that such a log was cut off or written anew.

    peers/<name>/checkpoints/<segment>.<digest>.json  .json.sig     as the peer signed it: each one it showed
    peers/<name>/checkpoints/last                                   the digest of what it showed last

Whoever has a store's key and disk can write it another audit log; the checkpoints its peers keep are then not
in it. `fstore audit verify --head` there takes these files.

Guarantees: what is kept was signed by the peer; a checkpoint that goes back behind a kept one, or is another
one of the same segment, is reported once.

Leaves to others: raising the alarm (`central_store.talk`).
"""

from __future__ import annotations

import hashlib

from central_store import audit
from central_store.layout import Layout
from central_store.peers import Peer
from schemas import container
from schemas.audit_messages import Checkpoint
from schemas.errors import FormatError
from schemas.transit import durable


def ours(layout: Layout) -> tuple[str, str]:
    """Our newest checkpoint and its signature, to show; empty if there is none yet."""
    path = audit.newest(layout)
    if path is None:
        return "", ""
    return path.read_text("utf-8"), path.with_suffix(".json.sig").read_text("ascii")


def keep(layout: Layout, peer: Peer, data: str, armor: str) -> bool:
    """Keep what a peer showed; returns whether its log is still the one it was.

    Raises:
        FormatError, SealError: it is no checkpoint that this peer signed.
    """
    newest = max(_segments(layout, peer), default=0)
    if not data and not newest:
        return True
    folder = layout.peer(peer.name) / "checkpoints"
    digest = hashlib.sha256(data.encode("utf-8", "replace")).hexdigest()
    last = folder / "last"
    if last.exists() and last.read_text("ascii") == digest:
        return True  # known, and said if it was wrong
    if not data:
        durable.publish(last, digest.encode("ascii"), replace=True)
        return False
    shown = container.verify(data.encode("utf-8", "replace"), armor, peer.card.signing_key).message
    if not isinstance(shown, Checkpoint) or shown.store != peer.name:
        raise FormatError("a peer's checkpoint is none of its own")
    durable.make_dirs(folder)
    path = folder / f"{shown.segment:08}.{digest[:16]}.json"
    durable.publish(path.with_suffix(".json.sig"), armor.encode("ascii"), replace=True)
    durable.publish(path, data.encode(), replace=True)
    durable.publish(last, digest.encode("ascii"), replace=True)
    return shown.segment > newest


def _segments(layout: Layout, peer: Peer) -> list[int]:
    found = (layout.peer(peer.name) / "checkpoints").glob("*.json")
    return [int(path.stem.partition(".")[0]) for path in found]
