"""One round of replication: until both sides have the same, or nothing moves any more.

Guarantees: works beside a running service (which then does the store's part), or by itself, with the store's
lock. It returns when each peer is level: nothing of its log is missing here, and it said that nothing of ours
is missing there.

Leaves to others: what is said (`central_store.talk`), the road (`central_store.carry`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from central_store import batches, carrying, ingest, peers, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog, batch_of, decode
from central_store.service import Clock, Service
from central_store.settings import Store
from schemas.errors import Busy
from schemas.messages import Receipt
from schemas.names import BatchId, FacilityName

AGAIN = 2.0
"""Seconds after which peers are asked once more how they stand."""
MOVED = ("level", "followed", "wanted", "refused", "passed")
"""What of a note changes when something moves."""


@dataclass
class PeerStatus:
    """How far a peer and we are apart."""

    peer: FacilityName
    held: int = 0
    """Batches in its log: it gave receipts for them."""
    behind: int = 0
    """Batches we hold that it has no receipt for yet."""
    behind_bytes: int = 0
    behind_since: str = ""
    """When the oldest of these was stored."""
    behind_minutes: int = 0
    """How long ago that was."""
    missing: int = 0
    """Batches of its log that we lack."""
    refused: int = 0
    heard: str = ""
    level: bool = False
    alarms: tuple[str, ...] = ()


def status(store: Store, now: datetime) -> list[PeerStatus]:
    """One line for each peer; reads its log and ours."""
    ours = _entries(ReceiptLog(store.layout.log))
    return [_status(store.layout, peer, ours, now) for peer in peers.everyone(store.layout)]


def _entries(log: ReceiptLog) -> dict[BatchId, bytes]:
    return {batch_of(entry): entry for entry in log.entries(0, log.range().size)}


def _status(layout: Layout, peer: Peer, ours: dict[BatchId, bytes], now: datetime) -> PeerStatus:
    theirs = _entries(ReceiptLog(layout.peer(peer.name) / "log"))
    lacking = [decode(entry).receipt for batch, entry in ours.items() if batch not in theirs]
    lacking = [one for one in lacking if _matters(layout, one)]
    since = min((receipt.stored for receipt in lacking), default="")
    noted = note(layout, peer.name)
    return PeerStatus(
        peer=peer.name,
        held=len(theirs),
        behind=len(lacking),
        behind_bytes=sum(receipt.bytes for receipt in lacking),
        behind_since=since,
        behind_minutes=int((now - datetime.fromisoformat(since)).total_seconds() // 60) if since else 0,
        missing=sum(
            not tombstones.erased(layout, _named(decode(entry).receipt))
            for batch, entry in theirs.items()
            if batch not in ours
        ),
        refused=int(noted.get("refused", 0)),
        heard=str(noted.get("heard", "")),
        level=bool(noted.get("level")) and not lacking,
        alarms=tuple(f"{kind} {when}" for when, kind in peers.alarms(layout, peer.name)),
    )


def _named(receipt: Receipt) -> Batch:
    return Batch(receipt.facility, receipt.batch)


def _matters(layout: Layout, receipt: Receipt) -> bool:
    """Whether a batch of our log is one that a peer should have too."""
    batch = _named(receipt)
    return batches.committed(layout, batch) and not tombstones.erased(layout, batch)


def note(layout: Layout, name: FacilityName) -> dict[str, Any]:
    """Where the service says a peer and we stand."""
    try:
        found: Any = json.loads((layout.peer(name) / "now.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replicate(store: Store, found: list[Peer], clock: Clock, *, patience: float) -> bool:
    """Talk to these peers until each is level; returns False if nothing moved for `patience` seconds.

    Args:
        store: an opened store.
        found: whom.
        clock: the service's time.
        patience: seconds.
    """
    layout = store.layout
    for peer in found:
        (layout.peer(peer.name) / "now.json").unlink(missing_ok=True)
        peers.ask(layout, peer.name)
    with _serving(store, clock), carrying.carrying(store, [peer for peer in found if peer.dial]):
        last, since = "", clock.monotonic()
        asked_at = since
        while True:
            notes = [note(layout, peer.name) for peer in found]
            asked = any((layout.peer(peer.name) / "ask").exists() for peer in found)
            if not asked and all(item.get("level") and not item.get("asked") for item in notes):
                return True
            if clock.monotonic() - asked_at > AGAIN:  # what was said last may have arrived first
                asked_at = clock.monotonic()
                for peer in found:
                    peers.ask(layout, peer.name)
            seen = json.dumps([[item.get(word) for word in MOVED] for item in notes])
            seen += str([_arrived(layout, peer) for peer in found])
            if seen != last:
                last, since = seen, clock.monotonic()
            elif clock.monotonic() - since > patience:
                return False
            time.sleep(0.1)


def _arrived(layout: Layout, peer: Peer) -> list[int]:
    """Bytes of batches that came, and how far those that go are."""
    sizes, marks = [], []
    with suppress(FileNotFoundError):  # taken in, or there, while we look
        sizes = [path.stat().st_size for path in layout.inbound(peer.name).glob("*.batch*")]
        marks = [path.stat().st_mtime_ns for path in layout.peer(peer.name).glob("*.mark")]
    return [len(sizes), sum(sizes), len(marks), sum(marks)]


@contextmanager
def _serving(store: Store, clock: Clock) -> Iterator[None]:
    """The service, unless it runs already."""
    service, failed = Service(store, clock), list[BaseException]()
    ready = threading.Event()

    def run() -> None:
        try:
            service.run(ready.set)
        except Busy:
            pass
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        service.stop()
        thread.join()
    if failed:
        raise failed[0]


def lacking(store: Store) -> int:
    """Batches that were promised here and are not whole: to be repaired."""
    return sum(not ingest.settled(store, batch) for batch in batches.listing(store.layout))
