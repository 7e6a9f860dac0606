"""What one store says to another, and what follows from what it hears.

Both ends do the same, each for itself: follow the other's log, and ask for what is missing here. All of it is
files on the peer's shelf, carried by whichever side dials (`central_store.carry`).

    log-request       from here on, please; with our length and people, so that the other asks back
    log-answer        receipts, with the size and root of the whole log
    people-request    when the digest in a log-answer is new; before batches: it brings keys, and tombstones
    batches-request   the newest missing ones first, so many at a time; each comes as an ordinary `.batch`

A peer's log is trusted only as a continuation of what is known of it: the root that follows from the known
range and the new entries is the one it signed. Otherwise it was put back from a copy (`rollback`: shorter) or
tells two stories (`fork`): that is recorded and shown, and everything is compared from the beginning. What
it costs follows the number of new entries. Entries whose root is not proved yet wait on the disk, and count
for nothing; after a stop they are asked for again.

What follows from new entries is done in slices, one with each `tick`, so that searches and uploads never
wait for a long log: entries are compared, the newest first, when what was found missing before is asked
for; and an entry, which is the peer's receipt, goes to the facility as a replica if the batch is held here.

Guarantees: whatever a peer says, only its own state here changes; nothing is believed that its key, or a
facility's, did not sign. Everything that was asked is asked again after a stop, a loss or `STUCK` seconds.
One call reads a bounded number of entries, and memory holds as many.

Leaves to others: taking batches in (`central_store.ingest`), sealing them (`central_store.reseal`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from central_store import (
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
from central_store.missing import Missing
from central_store.peers import Peer
from central_store.receipt_log import Growing, ReceiptLog
from central_store.replicas import Passing
from central_store.settings import Store
from central_store.tombstone_talk import Erase
from schemas.errors import Damaged, FormatError, SyncError
from schemas.messages import Message, rfc3339
from schemas.names import BatchId, FacilityName, RequestId, ShelfName
from schemas.peer_messages import (
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
MOST_LOG = 50_000_000
"""Entries of a peer's log that are followed."""


class Wanted(NamedTuple):
    """A batch to send to a peer: work for a process."""

    peer: Peer
    batch: Batch


@dataclass
class _State:
    """What is under way with one peer; lost at a stop, and asked again then."""

    missing: Missing
    passing: Passing
    asked: RequestId | None = None
    asked_people: RequestId | None = None
    people_at: float = float("-inf")  # when they were asked for
    asked_at: float = float("-inf")  # when the log was asked for
    moved_at: float = float("-inf")  # when a batch came, or was asked for
    next_ask: float = float("-inf")
    heard: str = ""  # when it said, or sent, something last
    told: int = -1  # how long our log was when we last said so
    growing: Growing | None = None  # its log and what is behind, whose root is not proved yet
    people: str = ""
    people_told: str = ""  # the digest of its last question
    after: str = ""  # the last tombstone of a page that was not the last
    level: bool = False  # it lacks nothing of ours, it says
    behind: bool = False  # its log has more than we followed

    @property
    def working(self) -> bool:
        """Whether there is something to compare, or to pass on."""
        return self.missing.comparing or bool(self.passing)


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
        self._turns = 0

    # -- asking ----------------------------------------------------------------------------------

    @property
    def working(self) -> bool:
        """Whether a `tick` goes on with something now, rather than when something was heard."""
        return any(state.working for state in self._states.values())

    def tick(self) -> None:
        """Do one slice of the work, if there is any, and ask every peer what is due."""
        found = peers.everyone(self._store.layout)
        self._states = {peer.name: self._state(peer.name) for peer in found}
        self._turns += 1
        first = self._turns % max(1, len(found))  # they take turns
        due = [peer for peer in found[first:] + found[:first] if self._states[peer.name].working]
        for peer in found:
            state = self._states[peer.name]
            try:
                if peer in due[:1]:
                    self._work(peer, state)
                self._tick(peer, state)
            except SyncError as error:  # one peer does not stop the others
                log.error("peer=%s: %s", peer.name, error)

    def _state(self, name: FacilityName) -> _State:
        """What is under way with a peer; at first, nothing of its log is compared but what was settled."""
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = _State(Missing(self._store), Passing(self._store))
            try:
                state.missing.grew(peers.settled(self._store.layout, name), self._mirror(name).range().size)
            except Damaged as error:
                self._follow_anew(name, state, error)
        return state

    def _work(self, peer: Peer, state: _State) -> None:
        try:
            if state.missing.comparing:
                state.missing.compare(self._mirror(peer.name))
                self._settle(peer, state)
            else:
                state.passing.step(peer)
        except (Damaged, FormatError) as error:
            self._follow_anew(peer.name, state, error)
        if state.heard:
            self._note(peer, state)

    def _follow_anew(self, name: FacilityName, state: _State, why: SyncError | None = None) -> None:
        """Forget the peer's log, and ask for all of it."""
        if why is not None:
            log.error("peer=%s: its log is followed anew: %s", name, why)
        peers.forget(self._store.layout, name)
        state.growing, state.next_ask = None, float("-inf")
        state.missing.anew(0, 0)
        state.passing.grew()

    def _tick(self, peer: Peer, state: _State) -> None:
        now, size = self._monotonic(), self._log.range().size
        if state.asked and now - state.asked_at > STUCK:
            state.asked = None
        if state.missing.coming and now - state.moved_at > STUCK:
            state.missing.stuck()
        if state.asked_people and now - state.people_at > STUCK:
            state.people, state.asked_people = "", None  # the next answer of its log leads to it again
        asked_for = self._store.layout.peer(peer.name) / "ask"
        poke = asked_for.exists()
        if state.asked is None and (poke or now >= state.next_ask or size != state.told):
            asked_for.unlink(missing_ok=True)
            state.missing.damaged(packs.damaged(self._store.layout))
            self._ask_log(peer, state)
        self._ask_batches(peer, state)

    def _ask_log(self, peer: Peer, state: _State) -> None:
        known = self._mirror(peer.name).range()
        if state.growing is not None and state.growing.began != known:
            state.growing = None  # a command forgot the log meanwhile
        start = known.size if state.growing is None else state.growing.range.size
        request = peer_questions.log_request(self._store, peer, start, state.missing.count, self._now())
        state.told, state.next_ask = request.size, self._monotonic() + self._store.settings.replicate_seconds
        state.asked, state.asked_at = request.id, self._monotonic()
        self._say(peer, request)

    def _ask_batches(self, peer: Peer, state: _State) -> None:
        if state.asked_people:
            return
        count = state.missing.count
        chosen = state.missing.choose()
        if chosen:
            state.moved_at = self._monotonic()
            self._say(peer, peer_questions.batches_request(self._store, chosen, self._now()))
        elif state.missing.count < count:  # what was left came another way
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
        state = self._state(peer.name)
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
            state.missing.not_there(message.missing)
            self._settle(peer, state)
        elif isinstance(message, PeopleRequest):
            self._say(peer, peer_answers.people_answer(self._store, peer, message, self._now()))
        elif isinstance(message, PeopleAnswer) and message.request == state.asked_people:
            state.asked_people = None
            state.people = message.people  # put back from a copy meanwhile, it may say less than announced
            complete = people.apply(self._store, peer, message, self._now())
            fresh, state.after = tombstone_talk.bury(self._store, peer, message, self._erase)
            if fresh:
                self.erased()
            if fresh or complete:
                state.missing.anew(self._settled(peer), self._mirror(peer.name).range().size)
            if state.after:
                self._ask_people(peer, state, state.people)
            elif not complete:
                state.people = ""  # asked again with the next piece of its log
        state.heard = rfc3339(self._now())
        self._note(peer, state)
        return wanted

    def _asked_for_log(self, peer: Peer, state: _State, request: LogRequest) -> None:
        known = self._mirror(peer.name).range()
        answer = peer_answers.log_answer(
            self._store, peer, request, known.size, state.missing.count, self._now()
        )
        self._say(peer, answer)
        state.behind = (request.size, request.root) != (known.size, known.root.hex())
        if state.behind or request.people not in (state.people, state.people_told):
            state.next_ask = float("-inf")  # ask back now; about the same people once
        state.people_told = request.people
        state.level = request.start == answer.size and request.wanted == 0

    # -- following -------------------------------------------------------------------------------

    def _follow(self, peer: Peer, state: _State, answer: LogAnswer) -> None:
        mirror = self._mirror(peer.name)
        known = mirror.range()
        growing = state.growing
        if growing is None or growing.began != known:
            growing = mirror.growing()
        if answer.request != state.asked or answer.start != growing.range.size:
            return  # late, or said twice
        state.asked = None
        if not witness.keep(self._store.layout, peer, answer.checkpoint, answer.checkpoint_signature):
            peers.alarm(self._store.layout, peer.name, "audit", self._now())
        state.passing.whole(replicas.damaged(self._store, peer, answer))
        state.level = answer.known == self._log.range().size and answer.wanted == 0
        if answer.people != state.people:
            self._ask_people(peer, state, answer.people)
        growing.add(self._checked(peer, answer))
        state.growing = growing
        size = growing.range.size
        if answer.size < size:
            self._start_again(peer, state, "rollback")
        elif size > MOST_LOG or (size < answer.size and not answer.receipts):
            raise FormatError("a log ends before it does")
        elif size < answer.size:
            self._ask_log(peer, state)
        elif growing.range.root.hex() != answer.root:
            self._start_again(peer, state, "fork" if known.size else "root")
        else:
            self._proved(peer, state, growing)

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

    def _proved(self, peer: Peer, state: _State, growing: Growing) -> None:
        state.growing = None
        if growing.range.size > growing.began.size:
            growing.commit()
            state.missing.grew(growing.began.size, growing.range.size)
            state.passing.grew()
        state.behind = False
        self._settle(peer, state)

    def _start_again(self, peer: Peer, state: _State, kind: str) -> None:
        """Not what we knew: say so, and compare everything."""
        peers.alarm(self._store.layout, peer.name, kind, self._now())
        state.growing = None
        if kind != "root":
            self._follow_anew(peer.name, state)

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
        state, peer = self._state(name), peers.load(self._store.layout, name)
        state.moved_at, state.heard = self._monotonic(), rfc3339(self._now())
        state.missing.ended(batch, refused=refused)
        if peer is not None:
            self._ask_batches(peer, state)
            self._settle(peer, state)
            self._note(peer, state)

    def _settle(self, peer: Peer, state: _State) -> None:
        """Nothing of the peer's log is missing here: remember that, and tell it."""
        if state.missing.count:
            return
        size = self._mirror(peer.name).range().size
        if not state.missing.refused and self._settled(peer) != size:
            path = self._store.layout.peer(peer.name) / "settled"
            durable.publish(path, str(size).encode("ascii"), replace=True)
            state.next_ask = float("-inf")

    def _settled(self, peer: Peer) -> int:
        return peers.settled(self._store.layout, peer.name)

    def _note(self, peer: Peer, state: _State) -> None:
        """Where we stand, for `fstore status` and `fstore replicate`; may be lost."""
        growing = state.growing
        waiting = state.missing.count or state.behind or growing or state.asked_people or state.passing
        level = state.level and not waiting
        followed = self._mirror(peer.name).range() if growing is None else growing.range
        found = {
            "level": level, "wanted": state.missing.count, "refused": state.missing.refused,
            "heard": state.heard, "asked": state.asked is not None, "followed": followed.size,
            "passed": state.passing.read,
        }  # fmt: skip
        path = self._store.layout.peer(peer.name) / "now.json"
        data = json.dumps(found, sort_keys=True).encode()
        with suppress(FileNotFoundError):  # it was removed at this moment
            durable.publish(path, data, replace=True, lasting=False)

    # -- speaking --------------------------------------------------------------------------------

    def _mirror(self, name: FacilityName) -> ReceiptLog:
        return ReceiptLog(self._store.layout.peer(name) / "log")

    def _say(self, peer: Peer, message: Message) -> None:
        peer_shelf.put(self._store, peer, message)
