"""Carries sealed batches to the store while the round goes on, and brings back receipts.

Guarantees: batches leave in order, from one thread with a session of its own; a batch counts as sent
when it lies whole on the shelf, as stored only when a verified receipt names it with the counts the
ledger has. The outbox file goes only after that.

What goes wrong with one batch is that batch's: it goes to the end of the line, after a pause, and comes out
as an error when it was tried often enough. What is wrong with the road (nobody answers) stops all of them
for a pause, and for good when it stays so for as long as `patience` says. Never tried again: a server that
is not the one that was trusted, and a store that does not let us in. A try whose outcome is unknown is
repeated like any other, because every try looks first.

Leaves to others: the ledger's other transitions and the decision to wait (`facility_sync.rounds`).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from facility_sync import exchange, receipts
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from facility_sync.patience import Patience
from schemas import messages, names
from schemas.errors import OutcomeUnknown, SealError, SyncError, TransitError
from schemas.transit import durable
from schemas.transit.marks import FileMark
from schemas.transit.pump import Lost

_CLOSING = 5.0
"""Seconds that whoever pressed Ctrl-C waits for the step under way; what has arrived is gone on with."""


@dataclass(order=True)
class _Job:
    due: float
    number: int
    batch: str = field(compare=False)
    look: bool = field(compare=False)
    future: Future[str] = field(compare=False, default_factory=Future)
    failures: int = field(compare=False, default=0)


class Courier:
    """A session in a thread of its own that puts batches on the shelf.

    Args:
        home: the terminal's home.
        progress: told the bytes of each step, from the courier's thread.
        patience: how often and how long to try again.
        monotonic: seconds.
        only: name of the store; empty: the first that is there.
    """

    def __init__(
        self,
        home: Home,
        progress: Callable[[int], None],
        patience: Patience,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        only: str = "",
    ) -> None:
        self._home, self._progress, self._only = home, progress, only
        self._patience, self._monotonic = patience, monotonic
        self._session = ExitStack()
        self._desk: exchange.Desk | None = None
        self._away, self._away_since = 0, 0.0  # failed calls in a row, and the time of the first
        self._jobs: list[_Job] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closing = False
        self.broken: SyncError | None = None
        """Why nothing more will be sent, once the road was given up."""
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def send(self, batch: str, *, look: bool = True) -> Future[str]:
        """Put a batch of the outbox on the shelf; the future gives its id back, or why it did not arrive.

        Args:
            batch: its id.
            look: it may have been sent before.
        """
        with self._changed:
            job = _Job(self._monotonic(), next(self._numbers), batch, look)
            if self.broken is not None:
                job.future.set_exception(self.broken)
            else:
                heapq.heappush(self._jobs, job)
                self._changed.notify()
            return job.future

    def close(self) -> None:
        """Stop after the step under way; one that waits for the store is left to end by itself, unheard."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSING)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._session:
            while (job := self._next()) is not None:
                try:
                    self._carry(job)
                except BaseException as error:  # a mistake of ours must not leave the round waiting
                    job.future.set_exception(error)
            for job in self._jobs:
                job.future.cancel()

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._closing:
                pause = self._jobs[0].due - self._monotonic() if self._jobs else None
                if pause is not None and pause <= 0:
                    return heapq.heappop(self._jobs)
                self._changed.wait(pause)
        return None

    def _carry(self, job: _Job) -> None:
        try:
            desk = self._call()
        except SyncError as error:
            self._no_road(job, error)
            return
        path = outbox_path(self._home, job.batch)
        mark = FileMark(mark_path(self._home, job.batch, desk.store.store))
        try:
            desk.send(
                names.batch_id(job.batch), path, self._progress, mark, look=job.look or job.failures > 0
            )
        except TransitError as error:
            if isinstance(error, (Lost, OutcomeUnknown)):
                self._hang_up()
            job.failures += 1
            if job.failures >= self._patience.attempts:
                job.future.set_exception(error)
            else:
                self._later(job, self._patience.pause(job.failures))
        except SyncError as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(job.batch)

    def _no_road(self, job: _Job, error: SyncError) -> None:
        if self._away == 0:
            self._away_since = self._monotonic()
        self._away += 1
        pause = self._patience.pause(self._away)
        over = self._monotonic() + pause - self._away_since > self._patience.seconds
        with self._changed:
            if over or not isinstance(error, TransitError):
                self.broken = error
                for each in (job, *self._jobs):
                    each.future.set_exception(error)
                self._jobs.clear()
            elif not self._closing:
                self._jobs.append(job)
                self._jobs = [_moved(each, self._monotonic() + pause) for each in self._jobs]
                heapq.heapify(self._jobs)

    def _later(self, job: _Job, pause: float) -> None:
        with self._changed:
            job.due, job.number = self._monotonic() + pause, next(self._numbers)
            heapq.heappush(self._jobs, job)

    def _call(self) -> exchange.Desk:
        if self._desk is None:
            connection = exchange.connect(self._home, only=self._only, timeout=self._patience.timeout)
            self._desk = self._session.enter_context(connection)
            self._away = 0
        return self._desk

    def _hang_up(self) -> None:
        self._desk = None
        self._session.close()


def _moved(job: _Job, due: float) -> _Job:
    job.due = max(job.due, due)
    return job


def outbox_path(home: Home, batch: str) -> Path:
    """Where a sealed batch waits."""
    return home.outbox / f"{batch}.batch"


def mark_path(home: Home, batch: str, store: str) -> Path:
    """Where it is remembered how much of a batch has arrived at a store."""
    return home.outbox / f"{batch}.{store}.mark"


def take_news(home: Home, ledger: Ledger, desk: exchange.Desk) -> tuple[int, int]:
    """Apply receipts, replicas, refusals and notices on the shelf; returns batches and objects newly stored.

    A verified replica is a trusted store's receipt like any other; one that is not verified changes nothing.

    Raises:
        SealError: a receipt does not agree with the ledger; it changes nothing.
    """
    batches = objects = 0
    for message in desk.news():
        if isinstance(message, messages.Refusal):
            _refused(home, ledger, message.subject, message.reason)
        elif isinstance(message, messages.Notice):
            if message.facility == home.settings.facility:
                _lose(home, ledger, message)
        else:
            receipt, verified = message if isinstance(message, exchange.Replica) else (message, True)
            if not verified:
                continue
            entry = ledger.batch(receipt.batch)
            if entry is None:
                # Of a ledger that was lost: the receipt is kept, the files will be found held.
                ledger.hold(receipt.batch, receipt.store)
                continue
            if (receipt.facility, receipt.objects, receipt.bytes) != (
                home.settings.facility,
                entry.objects,
                entry.bytes,
            ):
                raise SealError("a receipt does not agree with what was sent")
            ledger.hold(receipt.batch, receipt.store)
            ledger.mark_stored(receipt.batch, receipt.stored)  # again, too: a lost batch may be back
            if entry.state != "stored":
                batches, objects = batches + 1, objects + entry.objects
            _clear(home, receipt.batch)
    return batches, objects


def _refused(home: Home, ledger: Ledger, batch: str, reason: str) -> None:
    """A store refused a batch; one it could not open may have been damaged on its way, and goes once more."""
    damaged = reason == "seal" and outbox_path(home, batch).exists()
    if damaged and ledger.send_again(batch, f"store:{reason}"):
        _forget_marks(home, batch)
    else:
        ledger.mark_refused(batch, f"store:{reason}")
        _clear(home, batch)


def _lose(home: Home, ledger: Ledger, notice: messages.Notice) -> None:
    """A store lost a batch: its files wait again unless another trusted store holds it, and can repair it."""
    ledger.drop(notice.batch, notice.store)
    found = receipts.kept(home, notice.batch)
    if found is None or not receipts.holders(found):
        ledger.mark_lost(notice.batch, notice.found)


def _clear(home: Home, batch: str) -> None:
    durable.remove(outbox_path(home, batch))
    _forget_marks(home, batch)


def _forget_marks(home: Home, batch: str) -> None:
    for card in home.stores:
        mark_path(home, batch, card.store).unlink(missing_ok=True)
