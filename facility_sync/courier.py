"""Carries sealed batches to the store while the round goes on, and brings back receipts.

Guarantees: batches leave in order, from one thread with a session of its own; a batch counts as sent
when it lies whole on the shelf, as stored only when a verified receipt names it with the counts the
ledger has. The outbox file goes only after that.

Leaves to others: the ledger's other transitions and the decision to wait (`facility_sync.rounds`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from facility_sync import exchange
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import messages, names
from schemas.errors import SealError
from schemas.transit import durable


class Courier:
    """A session in a thread of its own that puts batches on the shelf.

    Args:
        home: the terminal's home.
        progress: told the bytes of each step, from the courier's thread.
    """

    def __init__(self, home: Home, progress: Callable[[int], None]) -> None:
        self._home = home
        self._progress = progress
        self._stack = ExitStack()
        self._desk: exchange.Desk | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="courier")

    def send(self, batch: str) -> Future[str]:
        """Put a batch of the outbox on the shelf; the future gives the batch's id back."""
        return self._thread.submit(self._put, batch)

    def _put(self, batch: str) -> str:
        if self._desk is None:
            self._desk = self._stack.enter_context(exchange.connect(self._home))
        name = names.ShelfName(names.batch_id(batch), "batch")
        self._desk.put(name, outbox_path(self._home, batch), self._progress)
        return batch

    def close(self) -> None:
        """Stop after the step under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stack.close()


def outbox_path(home: Home, batch: str) -> Path:
    """Where a sealed batch waits."""
    return home.outbox / f"{batch}.batch"


def take_news(home: Home, ledger: Ledger, desk: exchange.Desk) -> tuple[int, int]:
    """Apply receipts and refusals that lie on the shelf; returns batches and objects newly stored.

    Raises:
        SealError: a receipt does not agree with the ledger; it changes nothing.
    """
    batches = objects = 0
    for message in desk.news():
        subject = message.batch if isinstance(message, messages.Receipt) else message.subject
        entry = ledger.batch(subject)
        if entry is None:
            continue  # of a ledger that was lost: the receipt is kept, the files will be found held
        if isinstance(message, messages.Refusal):
            ledger.mark_refused(subject, f"store:{message.reason}")
        elif (message.facility, message.objects, message.bytes) != (
            home.settings.facility,
            entry.objects,
            entry.bytes,
        ):
            raise SealError("a receipt does not agree with what was sent")
        elif entry.state != "stored":
            ledger.mark_stored(subject, message.stored)
            batches, objects = batches + 1, objects + entry.objects
        durable.remove(outbox_path(home, subject))
    return batches, objects
