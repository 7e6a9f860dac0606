"""One process, one loop: answer requests, take batches in, keep the shelves tidy.

Order within a turn: requests first and at once; then a slice of what peers said; then what workers
finished; then new work for idle workers.

Guarantees: one service per store (`Busy` otherwise); the catalog is opened only here; whatever lies on a
shelf, the loop goes on: it is answered, accepted, or refused and quarantined. Trouble with our own disk
(full, read-only, a failed fsync) ends the attempt, not the service: it says so, waits, and everything
unfinished begins again, with fresh files and the catalog opened again.

Leaves to others: the write order (`central_store.ingest`), what requests mean (`central_store.requests`),
peers (`central_store.peer_desk`), whose turn it is (`central_store.jobs`).
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from central_store import (
    accounts,
    erasure,
    facilities,
    inbox,
    ingest,
    lock,
    peers,
    quarantine,
    replies,
    requests,
)  # fmt: skip
from central_store.audit_segments import close_if_due
from central_store.batches import Batch
from central_store.bell import Bell
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from central_store.crew import Crashed, Worker
from central_store.fetch import Order
from central_store.jobs import Jobs
from central_store.peer_desk import PeerDesk
from central_store.replies import Refused
from central_store.settings import Store, log_change
from central_store.sql import Question
from central_store.talk import Talk, Wanted
from schemas import names
from schemas.container import Signed
from schemas.errors import AccessDenied, Damaged, FormatError, SealError, SyncError
from schemas.messages import FacilityCard, StoreCard
from schemas.names import FacilityName, ShelfName

log = logging.getLogger("central_store")

SWEEP_SECONDS = 3600.0
PAUSE_SECONDS = 10.0
"""After trouble with the disk, before everything begins again."""
CATALOG_SECONDS = 60.0
"""A catalog that failed is opened again, at most this often."""
TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What somebody may mend while the service waits."""


@dataclass
class Counts:
    """What a run of the service did."""

    stored: int = 0
    answered: int = 0
    refused: int = 0


def _facility_names(found: Iterable[str]) -> Iterator[FacilityName]:
    for name in sorted(found):
        with suppress(FormatError):
            yield names.facility_name(name)


def _short(error: Exception) -> str:
    """An error for the log, without the path an `OSError` names."""
    return str(error.strerror) if isinstance(error, OSError) else str(error)


@dataclass(frozen=True)
class Clock:
    """The service's time: wall clock in UTC, and monotonic seconds."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]


class Service:
    """One run of the service; use `run`, or `one_pass`, once.

    Args:
        store: an opened store.
        clock: its time.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.counts = Counts()
        self._store = store
        self._clock = clock
        self._layout = store.layout
        self._crashes: dict[Batch, int] = {}
        self._stopping = False
        self._served = False
        self._bell: Bell | None = None
        self._unpublished = False  # rows were erased that are published still

    def stop(self) -> None:
        """End `run` soon; safe in a signal handler."""
        self._stopping = True
        bell = self._bell
        if bell is not None:
            bell.ring()

    def run(self, ready: Callable[[], None] = lambda: None) -> Counts:
        """Serve until `stop`; calls `ready` when everything works.

        Raises:
            Busy: another process serves this store.
            OSError: something is wrong with our own files that waiting does not mend.
        """
        while not self._stopping:
            try:
                self._serve(ready)
            except (OSError, CatalogError) as error:
                mendable = error.errno in TROUBLE if isinstance(error, OSError) else self._served
                if not mendable:
                    raise
                log.error("disk trouble: %s; everything begins again in %d s", _short(error), PAUSE_SECONDS)
                self._pause()
        return self.counts

    def _pause(self) -> None:
        until = self._clock.monotonic() + PAUSE_SECONDS
        while not self._stopping and self._clock.monotonic() < until:
            time.sleep(0.1)

    def _serve(self, ready: Callable[[], None]) -> None:
        with ExitStack() as stack:
            self._begin(stack)
            bell = self._bell = Bell(self._layout.shelves)
            stack.callback(self._silence)
            if not self._served:
                self._served = True
                ready()
            next_look = next_sweep = self._clock.monotonic()
            next_publication = next_look + self._store.settings.publish_seconds
            while not self._stopping:
                now = self._clock.monotonic()
                rung = bell.facilities()
                if now >= next_look:
                    self._look_at(self._everyone())
                    self._peers.tick()
                    next_look = now + (self._store.settings.look_seconds if bell.works else 1)
                else:
                    self._look_at(_facility_names(rung))
                    if self._peers.working:
                        self._peers.tick()
                if now >= next_sweep:
                    inbox.sweep_all(self._store, self._clock.now())
                    next_sweep = now + SWEEP_SECONDS
                if now >= next_publication or self._unpublished:
                    if self._catalog.publish(self._clock.now()):
                        self._unpublished = False
                    next_publication = now + self._store.settings.publish_seconds
                self._turn([bell], 0 if self._peers.working else next_look - now)
                close_if_due(self._store, self._clock.now())
                if self._catalog.failed and now > self._began + CATALOG_SECONDS:
                    raise OSError(errno.EIO, "the catalog does not follow")

    def _silence(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()

    def one_pass(self, *, publish: bool = False) -> Counts:
        """Do what lies on the shelves now, and return.

        Args:
            publish: and publish the catalog for readers.

        Raises:
            Busy: another process serves this store.
            OSError: our own disk failed.
        """
        with ExitStack() as stack:
            self._begin(stack)
            self._look_at(self._everyone())
            self._peers.tick()
            inbox.sweep_all(self._store, self._clock.now())
            while self._jobs or self._peers.working:
                if self._peers.working:
                    self._peers.tick()
                self._turn([], 0 if self._peers.working or not self._jobs else None)
            close_if_due(self._store, self._clock.now())
            if publish:
                self._catalog.publish(self._clock.now(), wait=True)
        return self.counts

    def _begin(self, stack: ExitStack) -> None:
        self._began = self._clock.monotonic()
        stack.enter_context(lock.held(self._layout.lock))
        log_change(self._store)
        ingest.wipe(self._layout)
        self._catalog = stack.enter_context(Catalog(self._layout, self._store.settings))
        self._counter = requests.Counter(
            self._store, self._catalog, accounts.Doorman(self._layout, self._clock.monotonic)
        )
        if not self._layout.log.joinpath("head").exists():
            ingest.complete_log(self._store)
        if entries := ingest.recover(self._store, self._catalog):
            log.info("recovered journal_entries=%d", entries)
        self._unpublished = bool(erasure.recover(self._store, self._catalog, self._clock.now()))
        self._jobs = Jobs(self._store)
        stack.callback(self._jobs.close)
        talk = Talk(self._store, self._clock.now, self._clock.monotonic, self._bury)
        self._peers = PeerDesk(self._store, self._catalog, talk, self._jobs)

    # -- looking ---------------------------------------------------------------------------------

    def _everyone(self) -> tuple[FacilityName, ...]:
        return (*facilities.enrolled(self._layout), *peers.names_of(self._layout))

    def _look_at(self, who: Iterable[FacilityName]) -> None:
        for name in who:
            try:
                peer = peers.load(self._layout, name)
                card = facilities.load(self._layout, name) if peer is None else None
            except SyncError as error:  # one broken card does not stop the others
                log.error("facility=%s: %s", name, error)
                continue
            if peer is not None:
                self.counts.refused += self._peers.look(peer)
            elif card is not None:
                self._look(card)

    def _look(self, card: FacilityCard) -> None:
        try:
            found = inbox.look(self._layout.inbound(card.facility))
        except FileNotFoundError:
            log.error("facility=%s has no shelf: enrol it again", card.facility)
            return
        for name in found.requests:
            if not self._jobs.know(card.facility, name.id):
                self._request(card, name)
        for name in found.tombstones:
            self._tombstone(card, name)
        for name in found.batches:
            if not self._jobs.know(card.facility, name.id):
                self._arrived(card, Batch(card.facility, names.batch_id(name.id)))
        for foreign in found.foreign:
            error = Refused("foreign-name", replies.REASONS["foreign-name"])
            self._refuse(card, foreign, inbox.foreign_subject(foreign), "batch", error)

    def _arrived(self, card: FacilityCard, batch: Batch) -> None:
        if ingest.accepted(self._store, batch):
            ingest.again(self._store, self._catalog, card, batch)
            self.counts.stored += 1
        elif ingest.settled(self._store, batch):  # without being accepted: it is erased
            self._refuse_batch(card, batch, Refused("erased", replies.REASONS["erased"]))
        else:
            self._jobs.verify(batch)

    def _tombstone(self, card: FacilityCard, name: ShelfName) -> None:
        try:
            if self._bury(erasure.arrived(self._store, card, name)):
                self._peers.erased()
        except FileNotFoundError:
            return
        except SyncError as error:
            self._refuse(card, str(name), name.id, "tombstone", error)

    def _bury(self, signed: Signed, peer: FacilityName | None = None) -> int:
        fresh = erasure.take(self._store, self._catalog, signed, self._clock.now(), peer=peer)
        self._unpublished |= fresh > 0
        return fresh

    def _request(self, card: FacilityCard, name: ShelfName) -> None:
        try:
            order = self._counter.answer(card, name, self._clock.now())
        except FileNotFoundError:
            return
        except SyncError as error:
            self._refuse(card, str(name), name.id, "request", error, self._counter.asker)
            return
        except OSError:
            raise
        except Exception as error:  # a mistake of ours must not let one request stop the others
            log.exception("request failed facility=%s request=%s", card.facility, name.id)
            trouble = Damaged(f"the store failed ({type(error).__name__})")
            self._refuse(card, str(name), name.id, "request", trouble, self._counter.asker)
            return
        if order is None:
            self._answered(card.facility, name.id)
        else:
            self._jobs.order(order)

    def _answered(self, facility: FacilityName, request: str) -> None:
        (self._layout.inbound(facility) / f"{request}.request").unlink(missing_ok=True)
        self.counts.answered += 1

    def _refuse(
        self, card: FacilityCard, name: str, subject: str, kind: str, error: SyncError, user: str = ""
    ) -> None:
        reason = replies.refuse(self._store, card, subject, kind, error, self._clock.now(), user=user)
        if (kind == "request" and reason != "seal") or reason == "erased":  # a password, or not to be kept
            (self._layout.inbound(card.facility) / name).unlink(missing_ok=True)
        else:
            limit = self._store.settings.quarantine_mib << 20
            quarantine.take(self._layout, card.facility, name, subject, reason, limit=limit)
        self.counts.refused += 1

    def _refuse_batch(self, card: FacilityCard | StoreCard, batch: Batch, error: SyncError) -> None:
        if isinstance(card, FacilityCard):
            self._refuse(card, f"{batch.batch}.batch", batch.batch, "batch", error)
        else:
            self._peers.refuse(card, batch, error)
            self.counts.refused += 1

    # -- working ---------------------------------------------------------------------------------

    def _turn(self, bells: list[Any], seconds: float | None) -> None:
        """Give out work, wait for something to happen, take in what is finished."""
        worker = self._jobs.next(bells, seconds)
        if worker is not None:
            self._finished(worker)

    def _finished(self, worker: Worker) -> None:
        if isinstance(worker.job, Question):
            self._asked(worker, worker.job)
        elif isinstance(worker.job, Order):
            self._sent(worker, worker.job)
        elif isinstance(worker.job, Wanted):
            self._resealed(worker, worker.job)
        else:
            self._verified(worker, *worker.job)

    def _sent(self, worker: Worker, order: Order) -> None:
        facility = order.card.facility
        try:
            for complaint in worker.end():
                log.error("damaged facility=%s request=%s: %s", facility, order.request, complaint)
            self._answered(facility, order.request)
        except (SyncError, Crashed) as error:
            log.error("fetch failed facility=%s request=%s: %s", facility, order.request, error)
            trouble = Damaged(replies.REASONS["store-trouble"])
            self._refuse(
                order.card, f"{order.request}.request", order.request, "request", trouble, order.user
            )
        self._jobs.done(facility, order.request)

    def _asked(self, worker: Worker, question: Question) -> None:
        facility = question.card.facility
        try:
            rows = worker.end()
            log.info("sql answered facility=%s request=%s rows=%d", facility, question.request, rows)
            self._answered(facility, question.request)
        except (SyncError, Crashed) as error:
            trouble = error if isinstance(error, SyncError) else Damaged(str(error))
            name = f"{question.request}.request"
            self._refuse(question.card, name, question.request, "request", trouble, question.user)
        self._jobs.done(facility, question.request)

    def _resealed(self, worker: Worker, wanted: Wanted) -> None:
        try:
            worker.end()
        except (SyncError, Crashed, FileNotFoundError) as error:  # the peer asks again
            log.error("not sent peer=%s batch=%s: %s", wanted.peer.name, wanted.batch.batch, _short(error))

    def _verified(self, worker: Worker, card: FacilityCard | StoreCard, batch: Batch) -> None:
        name = f"{batch.batch}.batch"
        try:
            verified = worker.end()
            told = ingest.told(self._store, verified.batch, batch.facility)
            ingest.accept(self._store, self._catalog, told, verified, self._clock.now())
            self.counts.stored += 1
            self._peers.accepted(batch.facility, verified.batch)
        except FileNotFoundError as error:
            if (self._layout.inbound(batch.facility) / name).exists():
                raise  # not the facility's file: one of ours is gone
            log.info("gone facility=%s batch=%s: %s", batch.facility, batch.batch, error.strerror)
        except (FormatError, SealError, AccessDenied) as error:
            self._refuse_batch(card, batch, error)
        except Crashed as error:
            log.error("crashed facility=%s batch=%s: %s", batch.facility, batch.batch, error)
            self._crashes[batch] = self._crashes.get(batch, 0) + 1
            if self._crashes[batch] >= 2:
                self._refuse_batch(card, batch, Refused("crashed-reader", str(error)))
            else:
                self._jobs.verify_again(batch)
                return
        self._crashes.pop(batch, None)
        self._jobs.done(*batch)
