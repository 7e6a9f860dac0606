"""What waits for worker processes, and whose turn it is.

Three crews: for batches to verify, for containers to make, for SQL. Facilities take turns, so that a full
shelf does not hold up the others; of one facility, batches go in the order in which they came, and SQL
statements one at a time. What a person fetches goes before what a peer copies.

Guarantees: what waits or is in work is not taken a second time; `next` gives finished work one at a time, as
it ended, whichever crew did it, and lets a bell go first, but not twice in a row.

Leaves to others: what the work is (`central_store.crew`), what follows from its end
(`central_store.service`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from central_store import facilities, peers
from central_store.batches import Batch
from central_store.crew import Crew, Worker
from central_store.fetch import Order
from central_store.settings import Store
from central_store.sql import Question
from central_store.talk import Wanted
from schemas.messages import FacilityCard, StoreCard
from schemas.names import FacilityName

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue for each facility; they take turns."""

    def __init__(self) -> None:
        self._waiting: dict[FacilityName, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, facility: FacilityName, item: T) -> None:
        """Let it wait."""
        self._waiting.setdefault(facility, deque()).append(item)

    def next(self, busy: Collection[FacilityName] = ()) -> T | None:
        """The next one of a facility that is not busy; that facility goes to the end of the line."""
        facility = next((name for name in self._waiting if name not in busy), None)
        if facility is None:
            return None
        queue = self._waiting.pop(facility)
        item = queue.popleft()
        if queue:
            self._waiting[facility] = queue
        return item


class Jobs:
    """All work of one start of the service; `close` ends it.

    Args:
        store: an opened store.
    """

    def __init__(self, store: Store) -> None:
        self._layout = store.layout
        self._batches, self._questions = Turns[Batch](), Turns[Question]()
        self._orders, self._copies = deque[Order](), deque[Wanted]()
        self._known: set[tuple[FacilityName, str]] = set()  # waiting or in work
        self._crew = Crew(store.layout.root, store.settings.workers)
        self._packers = Crew(store.layout.root, 1)
        self._askers = Crew(store.layout.root, store.settings.sql_workers)
        self._ended = deque[Worker]()  # in the order in which it was noticed
        self._gave_way = False

    def close(self) -> None:
        """End all workers, whatever they do."""
        for crew in (self._crew, self._packers, self._askers):
            crew.close()

    def __bool__(self) -> bool:
        """Whether anything waits or is in work."""
        waiting = (self._batches, self._questions, self._orders, self._copies)
        return any(waiting) or bool(self._busy())

    # -- what there is to do ---------------------------------------------------------------------

    def know(self, facility: FacilityName, name: str) -> bool:
        """Whether what lies on that shelf under that id waits or is in work already."""
        return (facility, name) in self._known

    def verify(self, batch: Batch) -> None:
        """Verify a batch; `facility` of it is the shelf on which it lies."""
        if batch not in self._known:
            self.verify_again(batch)

    def verify_again(self, batch: Batch) -> None:
        """Verify a batch that was in work."""
        self._known.add(batch)
        self._batches.add(batch.facility, batch)

    def order(self, order: Order | Question) -> None:
        """Pack what was asked for, or run SQL."""
        self._known.add((order.card.facility, order.request))
        if isinstance(order, Question):
            self._questions.add(order.card.facility, order)
        else:
            self._orders.append(order)

    def copy(self, wanted: Wanted) -> None:
        """Seal a batch for a peer."""
        if wanted not in self._copies:
            self._copies.append(wanted)

    def done(self, facility: FacilityName, name: str) -> None:
        """What became of it is settled."""
        self._known.discard((facility, name))

    # -- doing it --------------------------------------------------------------------------------

    def next(self, bells: Sequence[Any], seconds: float | None) -> Worker | None:
        """Give out work, then wait until some is finished, a bell rings, or so long."""
        self._give_out()
        pipes = {worker.pipe: worker for worker in self._busy()}
        ready = wait([*bells, *pipes], None if seconds is None else max(0.0, seconds))
        self._ended += [
            worker for pipe, worker in pipes.items() if pipe in ready and worker not in self._ended
        ]
        rung = any(bell in ready for bell in bells)
        if self._ended and (not rung or self._gave_way):  # the bell first: requests wait for nobody
            self._gave_way = False
            return self._ended.popleft()
        self._gave_way = bool(self._ended)  # once; then the finished one has its turn
        return None

    def _busy(self) -> list[Worker]:
        return [worker for crew in (self._crew, self._packers, self._askers) for worker in crew.busy()]

    def _give_out(self) -> None:
        while (self._orders or self._copies) and (worker := self._packers.idle()):
            if self._orders:
                order = self._orders.popleft()
                worker.begin(order, "send", order)
            else:
                wanted = self._copies.popleft()
                worker.begin(wanted, "reseal", wanted)
        while (worker := self._askers.idle()) and (question := self._next_question()):
            worker.begin(question, "sql", question)
        while (worker := self._crew.idle()) and (batch := self._batches.next()):
            card = self._card(batch.facility)
            if card is None:
                self._known.discard(batch)
            else:
                worker.begin((card, batch), "verify", card, batch.batch)

    def _next_question(self) -> Question | None:
        """Slow statements of one facility do not hold up the others."""
        return self._questions.next({worker.job.card.facility for worker in self._askers.busy()})

    def _card(self, name: FacilityName) -> FacilityCard | StoreCard | None:
        """Whose shelf it is: a facility's or a peer's."""
        peer = peers.load(self._layout, name)
        return facilities.load(self._layout, name) if peer is None else peer.card
