"""How long and how often a broken road is tried again, and how often one looks for an answer.

Guarantees: bounded in time and in number; pauses grow, and differ between terminals by the jitter that is
passed in, so that a store that comes back is not met by all of them at once. Never tried again: a server that
is not the one that was trusted, and a refusal.

Leaves to others: what is tried (`facility_sync.courier`, `facility_sync.rounds`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from schemas.errors import TransitError
from schemas.transit.dial import TurnedAway
from schemas.transit.pump import Lost

_T = TypeVar("_T")
_LONGEST_LOOK = 1.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What one round allows itself.

    Args:
        seconds: how long a road that broke is tried again.
        jitter: a number from 0 to 1, another one each time.
        attempts: how often one batch is tried.
        first: seconds of the first pause; each one is twice the one before.
        most: seconds of the longest.
        timeout: seconds without an answer after which a connection counts as lost.
    """

    seconds: float
    jitter: Callable[[], float]
    attempts: int = 5
    first: float = 0.25
    most: float = 15.0
    timeout: float = 30.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures: half of it certain, half by jitter."""
        whole = min(self.most, self.first * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + self.jitter() / 2)


def next_look(waited: float, least: float) -> float:
    """Seconds until the next look for an answer: an eighth of the wait so far, at most one.

    So an answer is seen soon after it came, measured by how long it took, and many terminals that wait for a
    busy store do not keep it busy with looking.

    Args:
        waited: seconds since the question, or the last news.
        least: seconds of the shortest pause.
    """
    return min(max(least, waited / 8), _LONGEST_LOOK)


def persist(
    step: Callable[[], _T],
    again: Callable[[], None],
    patience: Patience,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> _T:
    """Do a step; when the line breaks, call again and repeat it, for as long as `patience` says.

    Args:
        step: may be repeated: it looks first, or does the same thing twice harmlessly.
        again: makes a new connection.
        patience: how long.
        sleep: waits.
        monotonic: seconds.

    Raises:
        TransitError: the road stayed broken; whatever else `step` and `again` raise comes out at once.
    """
    failures, since = 0, monotonic()
    while True:
        trouble: TransitError
        try:
            if failures:
                again()
        except TransitError as error:
            trouble = error
        else:
            try:
                return step()
            except (Lost, TurnedAway) as error:
                trouble = error
        if failures == 0:
            since = monotonic()
        failures += 1
        pause = patience.pause(failures)
        if monotonic() + pause - since > patience.seconds:
            raise trouble
        sleep(pause)
