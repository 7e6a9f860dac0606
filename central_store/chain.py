"""How the batches of a facility follow each other, as its statements say. Pure.

A terminal numbers its batches and names the one before in each. The store takes them in any order and refuses
none for its number: several are verified at once, a refused one leaves its number behind, and images that are
not stored are the greater loss. But what is not one row is shown:

    missing   numbers below the highest without a batch: on its way, refused, or lost
    forks     batches with a number that is taken, or that follow another batch than the one before: the
              facility's key is used in two places (a terminal put back from a copy, or a stranger)

Leaves to others: where statements lie (`central_store.batches`), who shows it (`central_store.report`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from schemas.messages import Statement


class Chain(NamedTuple):
    """What is not as a single row of batches would be."""

    missing: int
    forks: int


def look(statements: Iterable[Statement]) -> Chain:
    """Look at all accepted statements of one facility, in any order."""
    by_number: dict[int, list[Statement]] = {}
    for statement in statements:
        by_number.setdefault(statement.sequence, []).append(statement)
    missing = max(by_number, default=0) - sum(number > 0 for number in by_number)
    forks = 0
    for number, same in by_number.items():
        before = by_number.get(number - 1, [])
        # A number that stands twice, or a batch that does not follow the one that is there before it.
        forks += len(same) - 1
        forks += sum(bool(before) and item.previous not in {one.batch for one in before} for item in same)
    return Chain(missing, forks)
