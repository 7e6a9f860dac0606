"""Decide what a round takes: pure.

Guarantees: each fact lands in exactly one place: known and unchanged, not settled yet, or in exactly one
plan; plans keep the order of the facts, so that the files of a study travel together.

Leaves to others: looking (`facility_sync.scan`), remembering (`facility_sync.ledger`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from facility_sync.scan import Fact

MAX_FILES = 4000
"""Most files in one batch: keeps the manifest of tiny files small."""


class Known(Protocol):
    """What must be known of a file to tell whether it changed (`facility_sync.ledger.Known`)."""

    @property
    def size(self) -> int:
        """Bytes, when it was read."""

    @property
    def mtime_ns(self) -> int:
        """Modification time, when it was read."""

    @property
    def state(self) -> str:
        """What became of it; `lost` is to be sent again."""


class Wanted(NamedTuple):
    """A file to take, with its source."""

    source: str
    fact: Fact


def is_new(fact: Fact, known: Mapping[str, Known]) -> bool:
    """Whether a file is not in the ledger as it is now, or is there as lost."""
    entry = known.get(fact.name)
    return (
        entry is None or entry.state == "lost" or (entry.size, entry.mtime_ns) != (fact.size, fact.mtime_ns)
    )


def is_settled(fact: Fact, *, now_ns: int, settle_seconds: int) -> bool:
    """Whether a file has not changed for long enough; a time in the future has not settled."""
    return now_ns - fact.mtime_ns >= settle_seconds * 1_000_000_000


def group(wanted: Iterable[Wanted], *, batch_bytes: int) -> Iterator[list[Wanted]]:
    """Cut the files into batches of about `batch_bytes`, never above it unless one file is.

    The first ones are smaller, so that sending begins while most is still to be read.
    """
    batch: list[Wanted] = []
    total = 0
    limit = max(1, batch_bytes // 8)
    for item in wanted:
        if batch and (total + item.fact.size > limit or len(batch) >= MAX_FILES):
            yield batch
            batch, total = [], 0
            limit = min(batch_bytes, limit + limit // 2 + 1)
        batch.append(item)
        total += item.fact.size
    if batch:
        yield batch
