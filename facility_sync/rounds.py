"""One round: scan, read, seal, send, take receipts.

Order, and what a stop at each point leaves:

    files are read and sealed into a spool          nothing is known of it; the spool is wiped
    the store is asked which of them it holds       the same
    manifest and statement are made, the batch is   an outbox file the ledger does not know: removed
      published in the outbox
    the ledger records batch and files              the next round sends it
    a part of it lies on the store's shelf          it is gone on with where the store confirmed it
    the batch lies on the store's shelf             it is put again: a no-op when it is there
    a verified receipt makes it stored              the receipt lies on the shelf, or comes again
    tombstones go to the stores that lack them      the next round gives them again
    rows for `fsync query --offline` are brought    what came is kept, and what it is as of stays older

A batch is sealed for every trusted store and for this terminal, so that it can go to any of them as it is;
only for a store that was trusted later it is sealed anew before it is sent. When a round goes on with another
store (`facility_sync.road`), what has no receipt is put there.

Guarantees: a round can be stopped anywhere and repeated; a second one at the same time leaves with
`Busy`; the report names every file that is not stored, even when the store cannot be reached.

Leaves to others: when rounds happen (`facility_sync.daemon`), printing.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from facility_sync import exchange, intake, pack, plan, receipts, tombstones
from facility_sync.courier import outbox_path, take_news
from facility_sync.disk_trouble import translated
from facility_sync.erased_files import ErasedFiles
from facility_sync.home import Home
from facility_sync.identity.objects import PROTECTED
from facility_sync.ledger import Entry, Ledger
from facility_sync.patience import next_look
from facility_sync.reasons import TRANSIENT
from facility_sync.report import Line, Report
from facility_sync.road import Road
from facility_sync.workers import Workers
from schemas import container, keys, messages
from schemas.errors import OutcomeUnknown, SealError, SyncError, TransitError
from schemas.messages import Statement
from schemas.names import PART_SUFFIX
from schemas.transit import durable

_AHEAD = 4  # batches sealed but not sent, beside those being worked on: bounds the disk a round needs
_FIRST_LOOK = 0.02  # seconds: looking costs both sides a listing
_NEWS_EVERY = 0.25  # seconds between looks at the shelf while there is other work


class Progress(Protocol):
    """Told what happens; must not raise."""

    def step(self, what: str, amount: int) -> None:
        """`what` is `read` or `sent` (bytes), `stored` (images) or `planned` (bytes)."""


@dataclass
class _Sealing:
    """A batch whose container is being written."""

    future: Future[None]
    statement: Statement
    entries: list[Entry]


@dataclass
class Round:
    """A round under way; `only` names the one store to use.

    `these` are files to take in the place of what is new in the sources; what is in the batches `leaving`
    does not count as held: they are about to be erased. `workers` is a pool that was entered before.
    """

    home: Home
    progress: Progress
    only: str = ""
    report: Report = field(default_factory=Report)
    these: Sequence[plan.Wanted] | None = None
    leaving: frozenset[str] = frozenset()
    workers: Workers | None = None

    def run(self, *, retry_refused: bool = False) -> Report:
        """Do one round.

        Raises:
            Busy: another round runs in this home.
            SyncError: the round could not be finished; `report` holds what was done and what is left.
        """
        started = time.monotonic()
        with self.home.only_round(), ExitStack() as stack:
            with translated():
                self.ledger = Ledger(self.home.ledger_path)
            stack.callback(self.ledger.close)
            try:
                with translated():
                    if retry_refused:
                        self.ledger.forget_refused()
                    if not self.ledger.knows_holders():
                        receipts.index(self.home, self.ledger)
                    tombstones.index(self.home, self.ledger)
                    self._sweep()
                    pool = self.workers and nullcontext(self.workers)
                    with pool or Workers(self.home.settings.workers) as self._workers, self._on_the_road():
                        self._work()
                intake.list_batches(self.report, self.ledger)
            except SyncError as error:
                self.report.trouble = str(error)
                self.report.adopt(intake.survey(self.home.settings, self.ledger))
                raise
            finally:
                self.report.seconds = time.monotonic() - started
        return self.report

    @contextmanager
    def _on_the_road(self) -> Iterator[None]:
        self._recipients = [card.age_recipient for card in self.home.stores]
        self._recipients.append(keys.recipient_of(self.home.age_identity))
        self._sending: dict[Future[str], str] = {}
        self._unsent: list[SyncError] = []
        with closing(
            Road(
                self.home, self.only, lambda count: self.progress.step("sent", count), self.report,
                self._put_again,
            )
        ) as self.road:  # fmt: skip
            yield

    def _sweep(self) -> None:
        """Wipe what a killed round left; nothing of it is known to the ledger."""
        shutil.rmtree(self.home.staging, ignore_errors=True)
        self.staging = self.home.staging / secrets.token_hex(4)
        self.staging.mkdir(parents=True, mode=0o700)
        wanted = {entry.batch for entry in self.ledger.batches("ready", "sent")}
        for path in self.home.outbox.iterdir():
            batch, _, kind = path.name.partition(".")
            if batch not in wanted or kind.endswith(PART_SUFFIX):
                durable.remove(path)

    def _work(self) -> None:
        settings = self.home.settings
        context = pack.context(self.home, datetime.now(UTC))
        self._taking: dict[Future[tuple[list[pack.Spooled], list[pack.Left]]], Path] = {}
        self._sealing: deque[_Sealing] = deque()
        self._in_hand: dict[str, str] = {}  # keyed digest -> batch, of batches not yet in the ledger
        self._sequence, self._previous = self._chain_head()
        self._last_news = 0.0
        self._send_left_over()
        new = intake.wanted(settings, self.ledger, self.report)
        self._wanted = new if self.these is None else iter(self.these)
        plans = plan.group(self._wanted, batch_bytes=settings.batch_mib * 1024 * 1024)
        for number, batch in enumerate(plans):
            self.progress.step("planned", sum(item.fact.size for item in batch))
            spool = self.staging / f"{number}.spool"
            self._taking[self._workers.submit(pack.take_files, batch, spool, context)] = spool
            while self._is_full():
                self._turn()
        while self._taking or self._sealing or self._sending:
            self._turn()
        self._await_receipts()
        if self._unsent:  # an unknown outcome first: it is the one that must not be mistaken for a failure
            raise max(self._unsent, key=lambda error: isinstance(error, OutcomeUnknown))
        tombstones.everywhere(self.home, self.road, self.only, self.report)
        if settings.offline and self.these is None:
            from facility_sync import bring_rows  # DuckDB is not loaded before it is needed

            self.report.rows = bring_rows.in_round(self.home, self.road)

    def _is_full(self) -> bool:
        """Whether enough is under way: the workers are busy, and the disk is not to fill."""
        waiting = len(self._taking) + len(self._sealing) + len(self._sending)
        return len(self._taking) > self._workers.count or waiting >= self._workers.count + _AHEAD

    # -- one turn of the wheel -------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for whatever finishes next and carry it one step further."""
        futures: set[Future[object]] = {*self._taking, *self._sending}  # type: ignore[arg-type]
        if self._sealing:
            futures.add(self._sealing[0].future)  # type: ignore[arg-type]
        done, _ = wait(futures, timeout=_NEWS_EVERY, return_when=FIRST_COMPLETED)
        for taking in [future for future in self._taking if future in done]:
            spool = self._taking.pop(taking)
            self._taken(*taking.result(), spool)
        while self._sealing and self._sealing[0].future.done():  # in order: the ledger never has a gap
            sealed = self._sealing.popleft()
            sealed.future.result()
            self.ledger.record(sealed.entries, sealed.statement, self._recipients)
            batch = sealed.statement.batch
            self._sending[self.road.courier.send(batch, look=False)] = batch
        for sending in [future for future in self._sending if future in done]:
            if (sent := self._sending.pop(sending, None)) is not None:  # None: the store changed meanwhile
                self._sent(sending, sent)
        if time.monotonic() - self._last_news > _NEWS_EVERY:
            self._news()

    def _sent(self, sending: Future[str], batch: str) -> None:
        """A batch lies on the shelf, or does not: then the others go on, until too many wait on this disk."""
        known = self.ledger.batch(batch)
        if known is not None and known.state in ("stored", "refused"):
            return  # its answer was quicker, whatever the last try said
        try:
            sending.result()
        except SyncError as error:
            if self.road.courier.broken is None and len(self._unsent) < _AHEAD:
                self._unsent.append(error)
            elif isinstance(error, TransitError):
                self.road.move(error)
            else:
                raise
            return
        self.ledger.mark_sent(batch)
        self.report.sent_batches += 1
        self.report.sent_bytes += outbox_path(self.home, batch).stat().st_size

    def _news(self) -> int:
        batches, objects = self.road.persist(lambda desk: take_news(self.home, self.ledger, desk))
        self.report.stored_batches += batches
        self.report.stored += objects
        self.progress.step("stored", objects)
        self._last_news = time.monotonic()
        return batches

    def _taken(self, taken: list[pack.Spooled], left: list[pack.Left], spool: Path) -> None:
        """Files were read: drop what is held already, make a batch of the rest."""
        self.progress.step("read", sum(item.wanted.fact.size for item in taken + left))
        entries = [self._leave(item) for item in left]
        digests = [item.row["source_digest"] for item in taken]
        erased = ErasedFiles(self.ledger).erased(digests)
        held = self._held([digest for digest in digests if digest not in erased])
        fresh: list[pack.Spooled] = []
        doubles: list[pack.Spooled] = []
        seen: set[str] = set()
        for item in taken:
            digest = item.row["source_digest"]
            if digest in erased:
                self.report.erased += 1
                entries.append(_entry(item, ""))
            elif digest in held:
                self.report.held += 1
                entries.append(_entry(item, held[digest][0], held=held[digest][1]))
            elif digest in seen:
                self.report.held += 1
                doubles.append(item)
            else:
                seen.add(digest)
                fresh.append(item)
        if not fresh:
            durable.remove(spool)
            self.ledger.record([entry for entry in entries if entry is not None])
            return
        made = pack.write_manifest(fresh, self.home.settings.facility)
        for item in fresh:
            if self.ledger.other_bytes(item.row["sop_instance_uid"], item.row["source_digest"]):
                self.report.conflicts += 1
        entries += [_entry(item, made.batch) for item in fresh + doubles]
        self._seal(made, fresh, spool, [entry for entry in entries if entry is not None])
        self.report.taken += len(fresh)
        self.report.protected += sum(item.row["encoding"] in PROTECTED for item in fresh)

    def _seal(
        self, made: pack.Manifest, fresh: list[pack.Spooled], spool: Path, entries: list[Entry]
    ) -> None:
        signed = pack.state(
            made,
            facility=self.home.settings.facility,
            sequence=self._sequence + 1,
            previous=self._previous,
            created=datetime.now(UTC),
            key=self.home.ssh_key,
        )
        self._sequence, self._previous = self._sequence + 1, made.batch
        self._in_hand |= {item.row["source_digest"]: made.batch for item in fresh}
        future = self._workers.submit(
            pack.seal_batch,
            container.head_bytes(signed, made.table),
            [(item.row["object_sha256"], item.row["encoding"], item.offset, item.length) for item in fresh],
            spool,
            outbox_path(self.home, made.batch),
            self._recipients,
        )
        assert isinstance(signed.message, Statement)  # noqa: S101  # pack.state makes nothing else
        self._sealing.append(_Sealing(future, signed.message, entries))

    def _leave(self, item: pack.Left) -> Entry | None:
        """A file was not taken: the ledger remembers it unless trying again may help."""
        source, fact = item.wanted
        transient = item.reason in TRANSIENT
        lines = self.report.waiting if transient else self.report.refused
        lines.append(Line(source, intake.below(fact.folder, fact.name), item.reason))
        if transient:
            return None
        return Entry(source, fact.folder, fact.name, fact.size, fact.mtime_ns, reason=item.reason)

    # -- what is held already --------------------------------------------------------------------

    def _held(self, digests: list[str]) -> dict[str, tuple[str, bool]]:
        """Which of these are in a batch already: batch, and whether only the store knows that batch."""
        known = self.ledger.by_digest(digests, self.leaving)
        held = {digest: (batch, False) for digest, batch in known.items()}
        held |= {digest: (self._in_hand[digest], False) for digest in digests if digest in self._in_hand}
        open_ones = sorted({digest for digest in digests if digest not in held})
        if open_ones and not self._ledger_knows_all:
            for digest, batch in self._ask_held(open_ones).held.items():
                if batch not in self.leaving:
                    held[digest] = (batch, self.ledger.batch(batch) is None)
        return held

    def _ask_held(self, digests: list[str]) -> messages.HeldAnswer:
        identifier, created = exchange.new_request()
        request = messages.HeldRequest(
            id=identifier,
            facility=self.home.settings.facility,  # type: ignore[arg-type]  # checked by the message
            digests=tuple(digests),
            created=created,
        )
        wait_seconds = max(5, self.home.settings.receipt_wait_seconds)
        answer, _ = self.road.persist(
            lambda desk: desk.converse(request, identifier, messages.HeldAnswer, seconds=wait_seconds)
        )
        return answer

    def _chain_head(self) -> tuple[int, str]:
        """Where this facility's sequence stands, here or, after the ledger was lost, at the store.

        A ledger that knows the store's latest batch and was never lost knows all that is held: then the
        store is asked this once, and not for every batch.
        """
        answer = self._ask_held([])
        whole = answer.sequence == 0 or self.ledger.batch(answer.head) is not None
        self._ledger_knows_all = whole and not self.ledger.was_lost()
        if not whole:
            self.ledger.adopt_head(answer.sequence, answer.head)
        return self.ledger.head()

    # -- the beginning and the end ---------------------------------------------------------------

    def _send_left_over(self) -> None:
        """Batches of earlier rounds: take receipts first, then put again whatever has none."""
        self._news()
        self._put_again()

    def _put_again(self) -> None:
        """Every batch without a receipt to the store in use; all earlier tries count no more."""
        self._sending.clear()
        self._unsent.clear()
        for entry in self.ledger.batches("ready", "sent"):
            if outbox_path(self.home, entry.batch).exists() and self._is_for_this_store(entry.batch):
                self._sending[self.road.courier.send(entry.batch)] = entry.batch

    def _is_for_this_store(self, batch: str) -> bool:
        """Whether the store in use can open a waiting batch; it is sealed anew if need be."""
        sealed_for, store = self.ledger.sealed_for(batch), self.road.desk.store
        if store.age_recipient in sealed_for or (not sealed_for and store == self.home.store):
            return True  # an earlier version sealed for the only store there was, and did not say so
        path = outbox_path(self.home, batch)
        try:
            self._workers.submit(pack.reseal, path, self.home.age_identity, self._recipients).result()
        except SealError:
            return False  # it waits for the store it is sealed for
        self.ledger.mark_sealed(batch, self._recipients)
        return True

    def _await_receipts(self) -> None:
        """Look for receipts until all came or none came for as long as the settings say."""
        patience = self.home.settings.receipt_wait_seconds
        last = time.monotonic()
        while self._sending or self.ledger.batches("sent"):
            if self._sending:  # again: the store changed meanwhile
                self._turn()
                last = time.monotonic()
            elif self._news():
                last = time.monotonic()
            elif (waited := time.monotonic() - last) > patience:
                raise TransitError(
                    f"no receipt came for {patience} seconds",
                    hint="What was sent stays in the outbox until its receipt comes; run `fsync sync` later.",
                )
            else:
                time.sleep(next_look(waited, _FIRST_LOOK))


def _entry(item: pack.Spooled, batch: str, *, held: bool = False) -> Entry:
    source, fact = item.wanted
    return Entry(
        source, fact.folder, fact.name, fact.size, fact.mtime_ns,
        batch=batch, digest=item.row["source_digest"], instance=item.row["sop_instance_uid"], held=held,
    )  # fmt: skip
