"""What one store says to another, and what follows from what it hears.

Both ends do the same, each for itself: follow the other's log, and ask for what is missing here. All of it is
files on the peer's shelf, carried by whichever side dials (`central_store.carry`).

    log-request       from here on, please; with our length and people, so that the other asks back
    log-answer        receipts, with the size and root of the whole log
    people-request    when the digest in a log-answer is new; before batches, which need the facilities' keys;
                      the answer brings tombstones too: nothing they name is asked for any more
    batches-request   the newest missing ones first, so many at a time; each comes as an ordinary `.batch`

A peer's log is trusted only as a continuation of what is known of it: the root that follows from the known
range and the new entries is the one it signed. Otherwise it was put back from a copy (`rollback`: shorter) or
tells two stories (`fork`): that is recorded and shown, and everything is compared from the beginning. What
it costs follows the number of new entries.

An entry of the peer's log is its receipt: for a batch held here before, it goes to the facility as a replica.

Guarantees: whatever a peer says, only its own state here changes; nothing is believed that its key, or a
facility's, did not sign. Everything that was asked is asked again after a stop, a loss or `STUCK` seconds.

Leaves to others: taking batches in (`central_store.ingest`), sealing them (`central_store.reseal`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from central_store import (
    batches,
    ingest,
    packs,
    peer_answers,
    peer_questions,
    peer_shelf,
    peers,
    people,
    receipt_log,
    replicas,
    tombstone_talk,
    witness,
)  # fmt: skip
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.receipt_log import Entry, ReceiptLog
from central_store.settings import Store
from central_store.tombstone_talk import Erase
from schemas.erasure_messages import name_of
from schemas.errors import FormatError, SyncError
from schemas.merkle import Range
from schemas.messages import Message, rfc3339
from schemas.names import BatchId, FacilityName, RequestId, ShelfName
from schemas.peer_messages import (
    MOST_BATCHES,
    BatchesAnswer,
    BatchesRequest,
    LogAnswer,
    LogRequest,
    PeopleAnswer,
    PeopleRequest,
)
from schemas.transit import durable

log = logging.getLogger("central_store")

STUCK = 900.0
"""Seconds without an answer after which what was asked is asked again."""
AT_ONCE = 512 * 1024 * 1024
"""Bytes of batches under way from one peer, unless one alone is larger."""
MOST_LOG = 50_000_000
"""Entries of a peer's log that are followed."""


class Wanted(NamedTuple):
    """A batch to send to a peer: work for a process."""

    peer: Peer
    batch: Batch


@dataclass
class _State:
    """What is under way with one peer; lost at a stop, and asked again then."""

    asked: RequestId | None = None
    asked_people: RequestId | None = None
    people_at: float = float("-inf")  # when they were asked for
    asked_at: float = float("-inf")  # when the log was asked for
    moved_at: float = float("-inf")  # when a batch came, or was asked for
    next_ask: float = float("-inf")
    told: int = -1  # how long our log was when we last said so
    pages: list[bytes] = field(default_factory=list)  # entries whose root is not proved yet
    began: bool = False
    wanted: dict[BatchId, int] = field(default_factory=dict)  # batch to bytes, in the log's order
    coming: dict[BatchId, int] = field(default_factory=dict)
    refused: set[BatchId] = field(default_factory=set)
    delivered: set[BatchId] = field(default_factory=set)
    people: str = ""
    people_told: str = ""  # the digest of its last question
    after: str = ""  # the last tombstone of a page that was not the last
    level: bool = False  # it lacks nothing of ours, it says
    behind: bool = False  # its log has more than we followed


class Talk:
    """Everything said with all peers of one store, in the service's process.

    Args:
        store: an opened store.
        now: the time, in UTC.
        monotonic: seconds.
        erase: does what a verified tombstone says that a peer told; returns how much was not erased before.
    """

    def __init__(
        self, store: Store, now: Callable[[], datetime], monotonic: Callable[[], float], erase: Erase
    ) -> None:
        self._store, self._now, self._monotonic, self._erase = store, now, monotonic, erase
        self._log = ReceiptLog(store.layout.log)
        self._states: dict[FacilityName, _State] = {}

    # -- asking ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ask every peer what is due."""
        for peer in peers.everyone(self._store.layout):
            try:
                self._tick(peer, self._states.setdefault(peer.name, _State()))
            except SyncError as error:  # one peer does not stop the others
                log.error("peer=%s: %s", peer.name, error)

    def _tick(self, peer: Peer, state: _State) -> None:
        now, size = self._monotonic(), self._log.range().size
        if not state.began:
            state.began = True
            self._want(peer, state, self._mirror(peer).entries(self._settled(peer), MOST_LOG))
        if state.asked and now - state.asked_at > STUCK:
            state.asked = None
            state.pages.clear()
        if state.coming and now - state.moved_at > STUCK:
            state.wanted = {**state.coming, **state.wanted}
            state.coming.clear()
        if state.asked_people and now - state.people_at > STUCK:
            state.people, state.asked_people = "", None  # the next answer of its log leads to it again
        asked_for = self._store.layout.peer(peer.name) / "ask"
        poke = asked_for.exists()
        if state.asked is None and (poke or now >= state.next_ask or size != state.told):
            asked_for.unlink(missing_ok=True)
            for batch in packs.damaged(self._store.layout):
                if batch not in state.coming:
                    state.wanted.setdefault(batch, 0)
            self._ask_log(peer, state)
        self._ask_batches(peer, state)

    def _ask_log(self, peer: Peer, state: _State) -> None:
        start, wanted = (
            self._mirror(peer).range().size + len(state.pages),
            len(state.wanted) + len(state.coming),
        )
        request = peer_questions.log_request(self._store, peer, start, wanted, self._now())
        state.told, state.next_ask = request.size, self._monotonic() + self._store.settings.replicate_seconds
        state.asked, state.asked_at = request.id, self._monotonic()
        self._say(peer, request)

    def _ask_batches(self, peer: Peer, state: _State) -> None:
        """The newest first; the next ones when half of what is under way is here."""
        if state.asked_people or not state.wanted or sum(state.coming.values()) > AT_ONCE // 2:
            return
        chosen: list[BatchId] = []
        while state.wanted and len(state.coming) < MOST_BATCHES:
            batch, size = state.wanted.popitem()
            if self._held(batch):
                continue
            if state.coming and sum(state.coming.values()) + size > AT_ONCE:
                state.wanted[batch] = size
                break
            state.coming[batch] = size
            chosen.append(batch)
        if chosen:
            state.moved_at = self._monotonic()
            self._say(peer, peer_questions.batches_request(self._store, chosen, self._now()))
        else:
            self._settle(peer, state)

    def _ask_people(self, peer: Peer, state: _State, digest: str) -> None:
        request = peer_questions.people_request(self._store, state.after, self._now())
        state.people, state.asked_people, state.people_at = digest, request.id, self._monotonic()
        self._say(peer, request)

    # -- hearing ---------------------------------------------------------------------------------

    def hear(self, peer: Peer, name: ShelfName) -> list[Wanted]:
        """Read one message on a peer's shelf; returns the batches it asked for.

        Raises:
            FormatError, SealError: refuse it.
            FileNotFoundError: it is not there any more.
        """
        state = self._states.setdefault(peer.name, _State())
        message = peer_shelf.read(self._store, peer, name)
        wanted: list[Wanted] = []
        if isinstance(message, LogRequest):
            self._asked_for_log(peer, state, message)
        elif isinstance(message, LogAnswer):
            self._follow(peer, state, message)
        elif isinstance(message, BatchesRequest):
            held, missing = peer_answers.batches_answer(self._store, message, self._now())
            if missing is not None:
                self._say(peer, missing)
            wanted = [Wanted(peer, batch) for batch in held]
        elif isinstance(message, BatchesAnswer):
            for batch in message.missing:
                if state.coming.pop(batch, None) is not None:
                    state.refused.add(batch)
            self._settle(peer, state)
        elif isinstance(message, PeopleRequest):
            self._say(peer, peer_answers.people_answer(self._store, peer, message, self._now()))
        elif isinstance(message, PeopleAnswer) and message.request == state.asked_people:
            state.asked_people = None
            state.people = (
                message.people
            )  # put back from a copy meanwhile, it may say less than was announced
            if people.apply(self._store, peer, message, self._now()):
                state.wanted = dict.fromkeys(state.refused, 0) | state.wanted
                state.refused.clear()
            else:
                state.people = ""  # asked again with the next piece of its log
            self._bury(peer, state, message)
        self._note(peer, state)
        return wanted

    def _bury(self, peer: Peer, state: _State, answer: PeopleAnswer) -> None:
        """Erase what facilities signed; then what is still wanted is looked up anew."""
        fresh = sum(self._erase(one, peer.name) for one in tombstone_talk.heard(self._store, peer, answer))
        state.after = name_of(answer.tombstones[-1].encode()) if answer.more and answer.tombstones else ""
        if fresh:
            self.erased()
            state.wanted, state.refused = {}, set()
            self._want(peer, state, self._mirror(peer).entries(self._settled(peer), MOST_LOG))
        if state.after:
            self._ask_people(peer, state, state.people)

    def _asked_for_log(self, peer: Peer, state: _State, request: LogRequest) -> None:
        known, wanted = self._mirror(peer).range(), len(state.wanted) + len(state.coming)
        answer = peer_answers.log_answer(self._store, peer, request, known.size, wanted, self._now())
        self._say(peer, answer)
        state.behind = (request.size, request.root) != (known.size, known.root.hex())
        if state.behind or request.people not in (state.people, state.people_told):
            state.next_ask = float("-inf")  # ask back now; about the same people once
        state.people_told = request.people
        state.level = request.start == answer.size and request.wanted == 0

    # -- following -------------------------------------------------------------------------------

    def _follow(self, peer: Peer, state: _State, answer: LogAnswer) -> None:
        mirror = self._mirror(peer)
        known = mirror.range()
        if answer.request != state.asked or answer.start != known.size + len(state.pages):
            return  # late, or said twice
        state.asked = None
        if not witness.keep(self._store.layout, peer, answer.checkpoint, answer.checkpoint_signature):
            peers.alarm(self._store.layout, peer.name, "audit", self._now())
        replicas.damaged(self._store, peer, answer)
        state.level = answer.known == self._log.range().size and answer.wanted == 0
        if answer.people != state.people:
            self._ask_people(peer, state, answer.people)
        state.pages += self._checked(peer, answer)
        size = known.size + len(state.pages)
        if answer.size < size:
            self._start_again(peer, state, "rollback")
        elif size > MOST_LOG or (size < answer.size and not answer.receipts):
            raise FormatError("a log ends before it does")
        elif size < answer.size:
            self._ask_log(peer, state)
        else:
            self._extend(peer, state, mirror, known, answer.root)

    def _checked(self, peer: Peer, answer: LogAnswer) -> list[bytes]:
        if len(answer.receipts) != len(answer.signatures):
            raise FormatError("log-answer: receipts and signatures are not as many")
        found = []
        for data, armor in zip(answer.receipts, answer.signatures, strict=True):
            entry = receipt_log.verified(data, armor, peer.card.signing_key)
            if entry.receipt.store != peer.name:
                raise FormatError("a log holds another store's receipt")
            found.append(receipt_log.encode(entry.signed.data, entry.signed.armor))
        return found

    def _extend(self, peer: Peer, state: _State, mirror: ReceiptLog, known: Range, root: str) -> None:
        pages, state.pages = state.pages, []
        if known.extended(pages).root.hex() != root:
            self._start_again(peer, state, "fork" if known.size else "root")
            return
        if pages:
            mirror.append(pages)
            for entry in map(receipt_log.decode, pages):
                self._deliver(peer, state, entry)
            self._want(peer, state, pages)
        state.behind = False
        if not state.wanted and not state.coming:
            self._settle(peer, state)

    def _start_again(self, peer: Peer, state: _State, kind: str) -> None:
        """Not what we knew: say so, and compare everything."""
        peers.alarm(self._store.layout, peer.name, kind, self._now())
        mirror = self._mirror(peer)
        with suppress(SyncError):
            state.delivered |= {
                receipt_log.decode(entry).receipt.batch for entry in mirror.entries(0, mirror.range().size)
            }
        state.pages.clear()
        if kind != "root":
            peers.forget(self._store.layout, peer.name)
            state.next_ask = float("-inf")

    def _deliver(self, peer: Peer, state: _State, entry: Entry) -> None:
        """A facility that lives here learns that the peer holds its batch too."""
        if entry.receipt.batch not in state.delivered:
            batch = Batch(entry.receipt.facility, entry.receipt.batch)
            replicas.deliver(self._store, peer, batch, entry.signed)

    def _want(self, peer: Peer, state: _State, entries: Any) -> None:
        for entry in map(receipt_log.decode, entries):
            batch = entry.receipt.batch
            if batch in state.coming or ingest.settled(self._store, Batch(entry.receipt.facility, batch)):
                continue
            state.wanted[batch] = entry.receipt.bytes
        log.info("compared peer=%s missing=%d", peer.name, len(state.wanted) + len(state.coming))

    def _held(self, batch: BatchId) -> bool:
        found = batches.find(self._store.layout, batch)
        return found is not None and ingest.settled(self._store, found)

    def erased(self) -> None:
        """There are tombstones that the peers do not know yet: the next tick lets them ask."""
        for state in self._states.values():
            state.told = -1

    # -- what became of it -----------------------------------------------------------------------

    def taken(self, peer: FacilityName, batch: BatchId) -> None:
        """A batch of that peer's shelf was accepted."""
        self._done(peer, batch, refused=False)

    def refused(self, peer: FacilityName, batch: BatchId) -> None:
        """A batch of that peer's shelf was refused: not asked for again in this run, unless people change."""
        self._done(peer, batch, refused=True)

    def _done(self, name: FacilityName, batch: BatchId, *, refused: bool) -> None:
        state, peer = self._states.setdefault(name, _State()), peers.load(self._store.layout, name)
        state.coming.pop(batch, None)
        state.wanted.pop(batch, None)
        state.moved_at = self._monotonic()
        if refused:
            state.refused.add(batch)
        if peer is not None:
            self._ask_batches(peer, state)
            self._settle(peer, state)
            self._note(peer, state)

    def _settle(self, peer: Peer, state: _State) -> None:
        """Nothing of the peer's log is missing here: remember that, and tell it."""
        if state.wanted or state.coming or not state.began:  # before the first look nothing is known
            return
        size = self._mirror(peer).range().size
        if not state.refused and self._settled(peer) != size:
            path = self._store.layout.peer(peer.name) / "settled"
            durable.publish(path, str(size).encode("ascii"), replace=True)
            state.next_ask = float("-inf")

    def _settled(self, peer: Peer) -> int:
        return peers.settled(self._store.layout, peer.name)

    def _note(self, peer: Peer, state: _State) -> None:
        """Where we stand, for `fstore status` and `fstore replicate`; may be lost."""
        waiting = len(state.wanted) + len(state.coming)
        level = state.level and not (waiting or state.behind or state.pages or state.asked_people)
        found = {
            "level": level, "wanted": waiting, "refused": len(state.refused), "heard": rfc3339(self._now()),
            "asked": state.asked is not None, "followed": self._mirror(peer).range().size + len(state.pages),
        }  # fmt: skip
        path = self._store.layout.peer(peer.name) / "now.json"
        data = json.dumps(found, sort_keys=True).encode()
        with suppress(FileNotFoundError):  # it was removed at this moment
            durable.publish(path, data, replace=True, lasting=False)

    # -- speaking --------------------------------------------------------------------------------

    def _mirror(self, peer: Peer) -> ReceiptLog:
        return ReceiptLog(self._store.layout.peer(peer.name) / "log")

    def _say(self, peer: Peer, message: Message) -> None:
        peer_shelf.put(self._store, peer, message)
