"""The service's side of its peers: what lies on their shelves, and what becomes of it.

A message is heard at once (`central_store.talk`); a batch waits for a worker like a facility's. What is
refused is in the audit log and in quarantine; the peer is not told, as it wants nothing of us by sending it.

Guarantees: a peer that is broken, or sends what it should not, holds up nobody.

Leaves to others: which worker when (`central_store.service`), taking a batch in (`central_store.ingest`).
"""

from __future__ import annotations

import logging

from central_store import audit, batches, inbox, ingest, peers, quarantine, replies, tombstones
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.jobs import Jobs
from central_store.peers import Peer
from central_store.settings import Store
from central_store.talk import Talk
from schemas import names
from schemas.errors import SyncError
from schemas.messages import StoreCard
from schemas.names import FacilityName, ShelfName
from schemas.transit import durable

log = logging.getLogger("central_store")


class PeerDesk:
    """Used by the service, in its loop.

    Args:
        store: an opened store.
        catalog: its catalog.
        talk: what is said with the peers.
        jobs: where work for processes waits.
    """

    def __init__(self, store: Store, catalog: Catalog, talk: Talk, jobs: Jobs) -> None:
        self._store, self._catalog, self._talk, self._jobs = store, catalog, talk, jobs

    def tick(self) -> None:
        """Ask every peer what is due."""
        self._talk.tick()

    def erased(self) -> None:
        """A facility erased something: the peers are to hear of it now."""
        self._talk.erased()
        self._talk.tick()

    @property
    def working(self) -> bool:
        """Whether a `tick` goes on with something now."""
        return self._talk.working

    def look(self, peer: Peer) -> int:
        """Hear what a peer says, and see what it sent; returns how many messages were refused."""
        try:
            found = inbox.look(self._store.layout.inbound(peer.name))
        except FileNotFoundError:
            log.error("peer=%s has no shelf: add it again", peer.name)
            return 0
        refused = sum(not self._hear(peer, name) for name in found.requests)
        for name in found.batches:
            shelf = Batch(peer.name, names.batch_id(name.id))
            stored = batches.find(self._store.layout, shelf.batch)
            if stored is not None and tombstones.erased(self._store.layout, stored):
                self._drop(shelf)
            elif stored is not None and ingest.accepted(self._store, stored):
                card = ingest.told(self._store, stored, peer.name)
                ingest.again(self._store, self._catalog, card, stored, shelf=peer.name)
                self._talk.taken(*shelf)
            else:
                self._jobs.verify(shelf)
        if found.requests:
            self._talk.tick()
        return refused

    def _hear(self, peer: Peer, name: ShelfName) -> bool:
        heard = True
        try:
            for wanted in self._talk.hear(peer, name):
                self._jobs.copy(wanted)
        except FileNotFoundError:
            return True
        except SyncError as error:
            heard = False
            log.error("message refused peer=%s: %s", peer.name, error)
        (self._store.layout.inbound(peer.name) / str(name)).unlink(missing_ok=True)
        return heard

    def accepted(self, shelf: FacilityName, batch: Batch) -> None:
        """A batch that lay on this shelf was taken in: our log grew, or what we waited for is here."""
        if peers.load(self._store.layout, shelf) is not None:
            self._talk.taken(shelf, batch.batch)
        self._talk.tick()

    def _drop(self, shelf: Batch) -> None:
        """A batch that is erased came once more: nothing of it is kept, and it is not missing."""
        durable.remove(self._store.layout.inbound(shelf.facility) / f"{shelf.batch}.batch")
        self._talk.taken(*shelf)

    def refuse(self, card: StoreCard, batch: Batch, error: SyncError) -> None:
        """Set a batch aside; it is not asked for again in this run, unless people change."""
        reason, limit = replies.reason_of(error), self._store.settings.quarantine_mib << 20
        if reason == "erased":
            self._drop(batch)
            return
        details = {"reason": reason, "what": "batch", "peer": card.store}
        audit.record(self._store.layout, "refusal", subject=batch.batch, details=details)
        log.warning("refused peer=%s batch=%s reason=%s", card.store, batch.batch, reason)
        quarantine.take(
            self._store.layout, card.store, f"{batch.batch}.batch", batch.batch, reason, limit=limit
        )
        self._talk.refused(*batch)
        self._talk.tick()
