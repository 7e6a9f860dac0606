"""Which batches of a facility two sides both know, told in a few digests. Pure.

A facility's batches in the order of their sequence are cut into ranges: full ones of `BLOCK`, and what is
left at the end in powers of two. A range is told by its last sequence number and a digest of the batches in
it, so new batches fall behind the last range, and a difference in an old one names that range alone. Nothing
depends on who counted, in which order batches came, or which store is asked.

Guarantees: equal digests mean equal sets of batches; both sides cut by sequence numbers alone.

Leaves to others: how they travel (`schemas.row_messages`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from schemas.errors import FormatError
from schemas.names import BatchId

BLOCK = 1024
MOST_MARKS = 20_000
_SIZE = 32


class Known(NamedTuple):
    """A batch and its number in its facility's sequence."""

    sequence: int
    batch: BatchId


class Mark(NamedTuple):
    """A range of batches that ends with `last`, and the digest of their ids."""

    last: int
    digest: str

    def __str__(self) -> str:
        return f"{self.last}:{self.digest}"


def mark(text: object) -> Mark:
    """Parse a mark; raises `FormatError`."""
    number, colon, digest = text.partition(":") if isinstance(text, str) else ("", "", "")
    fits = number.isascii() and number.isdigit() and len(number) < 19 and len(digest) == _SIZE
    made = Mark(int(number), digest) if colon and fits else None
    if made is None or str(made) != text or set(digest) - set("0123456789abcdef"):
        raise FormatError("this is no mark of a range of batches")
    return made


def marks(batches: Iterable[Known]) -> list[Mark]:
    """The marks that tell these batches."""
    ordered = sorted(batches)
    ends: list[int] = []
    at = 0
    while at < len(ordered):
        left = len(ordered) - at
        at += BLOCK if left >= BLOCK else 1 << (left.bit_length() - 1)
        if (
            not ends or ends[-1] < ordered[at - 1].sequence
        ):  # a forked number stands twice, and ends one range
            ends.append(ordered[at - 1].sequence)
    return [Mark(last, _digest(part)) for last, part in zip(ends, _cut(ordered, ends), strict=False)]


class Told(NamedTuple):
    """What the other side is told of one facility.

    Attributes:
        agreed: the ends of the ranges that are the same here.
        listed: the batches of all other ranges, as far as they are told.
        until: nothing is said of sequence numbers from here on; None: all is said.
    """

    agreed: list[int]
    listed: list[BatchId]
    until: int | None


def compare(batches: Iterable[Known], theirs: Sequence[Mark], most: int) -> Told:
    """What to tell somebody who has `theirs`, in at most `most` ids.

    Raises:
        FormatError: the marks do not ascend.
    """
    ends = [item.last for item in theirs]
    if any(a >= b for a, b in pairwise(ends)):
        raise FormatError("marks do not ascend")
    ordered = sorted(batches)
    agreed: list[int] = []
    listed: list[Known] = []
    parts = _cut(ordered, ends)
    for item, part in zip(theirs, parts, strict=False):
        if item.digest == _digest(part):
            agreed.append(item.last)
        else:
            listed += part
    listed += parts[-1]
    if len(listed) <= most:
        return Told(agreed, [known.batch for known in listed], None)
    until = listed[most].sequence
    return Told(
        [last for last in agreed if last < until],
        [known.batch for known in listed if known.sequence < until],
        until,
    )


def understood(have: Iterable[Known], agreed: Iterable[int], theirs: Sequence[Mark]) -> set[BatchId]:
    """Of the batches one has, those in the ranges that were agreed on."""
    ordered, ends = sorted(have), [item.last for item in theirs]
    wanted = set(agreed)
    parts = zip(ends, _cut(ordered, ends), strict=False)
    return {known.batch for last, part in parts if last in wanted for known in part}


def _cut(ordered: Sequence[Known], ends: Sequence[int]) -> list[list[Known]]:
    """The batches up to each end, and those behind the last."""
    parts, at = [], 0
    sequences = [known.sequence for known in ordered]
    for end in ends:
        to = bisect_right(sequences, end)
        parts.append(list(ordered[at:to]))
        at = max(at, to)
    return [*parts, list(ordered[at:])]


def _digest(part: Sequence[Known]) -> str:
    text = "\n".join(f"{known.sequence}:{known.batch}" for known in part)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_SIZE]
