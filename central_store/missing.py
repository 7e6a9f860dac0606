"""The batches of one peer that are not here: which they are, and in which order they are asked for.

Entries of its log are compared with what is held here in slices, the newest first; the next slice is due when
few of the batches found before are left to ask for.

Guarantees: each entry is compared once, until everything is compared anew. Of what was found the newest is
asked for first; before it what is damaged here, behind it what was asked for and did not come. One step reads
`SLICE` entries, however long the log is, and memory holds about as many.

Leaves to others: what is said, and when (`central_store.talk`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from central_store import batches, ingest, receipt_log
from central_store.batches import Batch
from central_store.receipt_log import ReceiptLog
from central_store.settings import Store
from schemas.names import BatchId
from schemas.peer_messages import MOST_BATCHES

SLICE = 256
"""Entries that one step compares."""
AT_ONCE = 512 * 1024 * 1024
"""Bytes of batches under way from one peer, unless one alone is larger."""
FIRST, LAST = 1 << 62, -1
"""In place of an entry's number: asked for before all others, or behind them."""


class Unseen:
    """Numbers of entries that wait, as stretches from one up to another; the greatest goes first, once."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []  # apart from each other; the newest last

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self._stretches)

    def add(self, start: int, stop: int) -> None:
        """Entries that are newer than all added before."""
        if self._stretches and self._stretches[-1][1] == start:  # nothing was taken of it: one stretch
            start = self._stretches.pop()[0]
        if start < stop:
            self._stretches.append((start, stop))

    def take(self, most: int) -> tuple[int, int]:
        """The newest, at most so many: the first number, and the one behind the last."""
        if not self._stretches:
            return 0, 0
        start, stop = self._stretches.pop()
        first = max(start, stop - most)
        if start < first:
            self._stretches.append((start, first))
        return first, stop


class _Item(NamedTuple):
    number: int
    bytes: int


class Missing:
    """What of one peer's log is missing here; nothing is compared before `grew`.

    Args:
        store: an opened store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unseen = Unseen()
        self._wanted: dict[BatchId, _Item] = {}  # what is asked for next stands last
        self._coming: dict[BatchId, _Item] = {}
        self._refused: set[BatchId] = set()

    @property
    def count(self) -> int:
        """Batches that are missing, or not compared yet."""
        return len(self._wanted) + len(self._coming) + len(self._unseen)

    @property
    def coming(self) -> bool:
        """Whether something that was asked for is not here yet."""
        return bool(self._coming)

    @property
    def refused(self) -> int:
        """How many will not be asked for again in this run."""
        return len(self._refused)

    @property
    def comparing(self) -> bool:
        """Whether the next slice is due."""
        return bool(self._unseen) and len(self._wanted) < MOST_BATCHES

    # -- finding ---------------------------------------------------------------------------------

    def grew(self, start: int, stop: int) -> None:
        """Its log has these new entries."""
        self._unseen.add(start, stop)

    def anew(self, start: int, stop: int) -> None:
        """Forget what was found, and compare these: what was refused may be taken, or the log is another."""
        self._unseen = Unseen()
        self._unseen.add(start, stop)
        self._wanted.clear()
        self._refused.clear()

    def compare(self, log: ReceiptLog) -> None:
        """Look at one slice.

        Raises:
            Damaged, FormatError: the log cannot be read.
        """
        start, stop = self._unseen.take(SLICE)
        found = {}
        for number, entry in enumerate(log.entries(start, stop), start):
            receipt = receipt_log.decode(entry).receipt
            batch = Batch(receipt.facility, receipt.batch)
            if receipt.batch not in self._coming and not ingest.settled(self._store, batch):
                found[receipt.batch] = _Item(number, receipt.bytes)
        self._want(found)

    def damaged(self, found: Collection[BatchId]) -> None:
        """These are damaged here, whoever sent them."""
        self._want({batch: _Item(FIRST, 0) for batch in found if batch not in self._coming})

    def _want(self, found: dict[BatchId, _Item]) -> None:
        self._wanted = dict(sorted((found | self._wanted).items(), key=lambda item: item[1].number))

    # -- asking ----------------------------------------------------------------------------------

    def choose(self) -> list[BatchId]:
        """What to ask for now: nothing before half of what is under way is here."""
        under_way = sum(item.bytes for item in self._coming.values())
        chosen: list[BatchId] = []
        if under_way > AT_ONCE // 2:
            return chosen
        while self._wanted and len(self._coming) < MOST_BATCHES:
            batch, item = self._wanted.popitem()
            if self._held(batch):
                continue
            if self._coming and under_way + item.bytes > AT_ONCE:
                self._wanted[batch] = item
                break
            self._coming[batch] = item
            under_way += item.bytes
            chosen.append(batch)
        return chosen

    def _held(self, batch: BatchId) -> bool:
        found = batches.find(self._store.layout, batch)
        return found is not None and ingest.settled(self._store, found)

    def stuck(self) -> None:
        """What was asked for did not come: ask for it again, behind the others."""
        self._want({batch: item._replace(number=LAST) for batch, item in self._coming.items()})
        self._coming.clear()

    def ended(self, batch: BatchId, *, refused: bool) -> None:
        """A batch came, and was taken or refused."""
        self._coming.pop(batch, None)
        self._wanted.pop(batch, None)
        if refused:
            self._refused.add(batch)

    def not_there(self, found: Collection[BatchId]) -> None:
        """The peer does not have these."""
        for batch in found:
            if self._coming.pop(batch, None) is not None:
                self._refused.add(batch)
