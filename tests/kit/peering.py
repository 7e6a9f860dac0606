"""Stores that replicate, without processes: each step of each is a call, so that a seed replays a run.

Everything but the workers, the network and the catalog (which follows from the rest, and is most of the time)
is real: shelves, seals, signatures, ingest. A road
between two stores is a function that moves files between their shelves; it may lose, repeat, reorder them.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from central_store import batches, erasure, facilities, inbox, ingest, peers, reseal, settings, verify
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.talk import Talk
from schemas import container, envelope, names
from schemas.container import Signed
from schemas.erasure_messages import name_of
from schemas.errors import SyncError
from schemas.names import ShelfName
from tests.kit.batches import NOW, Facility, Made


class _NoCatalog:
    """A catalog nobody asks."""

    def follow(self, _batch: Batch) -> None:
        """A batch was committed."""

    def erase(self, _batch: Batch) -> None:
        """A batch was erased."""


class Node:
    """One store, stepped by hand; use as a context manager, or `open` and `close`."""

    def __init__(self, root: Path, name: str, now: Callable[[], datetime] = lambda: NOW) -> None:
        self.root, self.name, self.now = root, names.facility_name(name), now
        self.seconds = 0.0
        self.refused: list[str] = []
        if not root.exists():
            settings.init(root, name=name, host="127.0.0.1", port=2222)
        self.open()

    def open(self) -> None:
        """Begin as after a start: what was only in memory is gone."""
        self.store = settings.open_store(self.root)
        self.layout = self.store.layout
        self._stack = ExitStack()
        ingest.wipe(self.layout)
        self.catalog: Any = _NoCatalog()
        if not self.layout.log.joinpath("head").exists():
            ingest.complete_log(self.store)
        self.talk = Talk(self.store, self.now, lambda: self.seconds, self._told_of)
        ingest.recover(self.store, self.catalog)
        erasure.recover(self.store, self.catalog, self.now())

    def _told_of(self, signed: Signed, peer: names.FacilityName) -> int:
        return erasure.take(self.store, self.catalog, signed, self.now(), peer=peer)

    def close(self) -> None:
        """End without a word."""
        self._stack.close()

    def knows(self, other: Node, *, shared: tuple[str, ...] = ("*",)) -> None:
        """Add the other store as a peer."""
        peers.add(self.layout, Peer(card=other.store.card(), host="127.0.0.1", port=1, facilities=shared))

    def upload(self, who: Facility, made: Made) -> None:
        """A facility's batch, taken in."""
        shelf = self.layout.inbound(names.facility_name(who.name))
        (shelf / made.file).write_bytes(made.sealed)
        self.take(who.card, made.batch)

    def bury(self, who: Facility, signed: Signed) -> None:
        """A facility's tombstone, taken as from its shelf."""
        name = ShelfName(name_of(signed.data), "tombstone")
        sealed = envelope.seal_bytes(container.whole(signed), [self.store.card().age_recipient])
        (self.layout.inbound(names.facility_name(who.name)) / str(name)).write_bytes(sealed)
        taken = erasure.arrived(self.store, who.card, name)
        erasure.take(self.store, self.catalog, taken, self.now())
        self.talk.erased()

    def take(self, card: object, batch: names.BatchId) -> None:
        """What the service does with an arrived batch."""
        shelf = getattr(card, "facility", None) or getattr(card, "store")  # noqa: B009
        try:
            found = verify.verify(self.layout, card, self.store.keys.age_identity, batch)  # type: ignore[arg-type]
            told = ingest.told(self.store, found.batch, shelf)
            ingest.accept(self.store, self.catalog, told, found, self.now())
        except SyncError as error:
            self.refused.append(str(error))
            (self.layout.inbound(shelf) / f"{batch}.batch").unlink(missing_ok=True)
            if getattr(error, "reason", "") == "erased":
                self.talk.taken(shelf, batch)
            else:
                self.talk.refused(shelf, batch)
            return
        if peers.load(self.layout, shelf) is not None:
            self.talk.taken(shelf, batch)

    def step(self) -> None:
        """Hear, take and ask once."""
        self.seconds += 1.0
        for peer in peers.everyone(self.layout):
            found = inbox.look(self.layout.inbound(peer.name))
            for name in found.requests:
                try:
                    for wanted in self.talk.hear(peer, name):
                        reseal.send(self.store, wanted)
                except (SyncError, FileNotFoundError) as error:
                    self.refused.append(str(error))
                (self.layout.inbound(peer.name) / str(name)).unlink(missing_ok=True)
            for name in found.batches:
                stored = batches.find(self.layout, names.batch_id(name.id))
                if stored is not None and ingest.accepted(self.store, stored):
                    card = ingest.told(self.store, stored, peer.name)
                    ingest.again(self.store, self.catalog, card, stored, shelf=peer.name)
                    self.talk.taken(peer.name, stored.batch)
                else:
                    self.take(peer.card, names.batch_id(name.id))
        self.talk.tick()

    def ask(self) -> None:
        """Let time pass: the peers are asked again."""
        self.seconds += self.store.settings.replicate_seconds + 1

    def held(self) -> set[Batch]:
        """What is accepted and undamaged."""
        return {batch for batch in batches.listing(self.layout) if ingest.accepted(self.store, batch)}

    def set_hash(self) -> str:
        """One hash over what is held."""
        return hashlib.sha256("\n".join(sorted(batch.batch for batch in self.held())).encode()).hexdigest()

    def enrol(self, who: Facility) -> None:
        """Take a facility in here."""
        facilities.enrol(self.layout, who.card)


def carry(a: Node, b: Node, choice: random.Random | None = None) -> int:
    """Move what lies between two stores, both ways; with a `choice` some of it is lost, twice or late."""
    moved = 0
    for source, target in ((a, b), (b, a)):
        found = list(source.layout.outbound(target.name).iterdir())
        if choice is not None:
            choice.shuffle(found)
        for path in sorted(found) if choice is None else found:
            fate = choice.random() if choice else 1.0
            if fate < 0.15:
                continue  # late: the next time
            if fate >= 0.25:
                shutil.copyfile(path, target.layout.inbound(source.name) / path.name)
            if fate < 0.35 and fate >= 0.25:
                continue  # arrived, and comes again
            path.unlink()  # below 0.25 it is lost
            moved += 1
    return moved


def rounds(nodes: list[Node], limit: int = 60) -> int:
    """Carry and step until nothing moves and nobody works; returns how many rounds it took."""
    for number in range(limit):
        for node in nodes:
            node.step()
        moved = sum(carry(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if _linked(a, b))
        if not moved and not any(node.talk.working for node in nodes):
            return number
    raise AssertionError("the stores do not come to rest")


def made_whole(a: Node, b: Node) -> None:
    """What was damaged at one store comes from the other, and its facility hears it, over a restart."""
    for node in (a, b, b):
        node.ask()
    b.close()
    b.open()
    rounds([a, b])
    a.ask()
    rounds([a, b])


def _linked(a: Node, b: Node) -> bool:
    return all(peers.load(x.layout, y.name) is not None for x, y in ((a, b), (b, a)))
