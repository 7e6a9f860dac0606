"""The store a round uses: the first trusted one that is there, and another one when it goes away.

Guarantees: a store counts as away only when the road to it is bad (no connection, no answer); one that is
not the one that was trusted, or that refuses, ends the round at once. A store that broke off is called again
for a few seconds before another one is looked for, and as long as the settings say when there is none. The
moves of a round are bounded, so two stores that both break off do not keep it going between them.

Leaves to others: what has to be put again after a move (`facility_sync.rounds`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from facility_sync import exchange
from facility_sync.courier import Courier
from facility_sync.home import Home
from facility_sync.patience import Patience, persist
from facility_sync.report import Report
from schemas.errors import TransitError

_T = TypeVar("_T")
_HURRIED = 10.0  # seconds a store that broke off is called again before another one is looked for


class Road:
    """The sessions with the store in use: our own, and the courier's.

    Args:
        home: the terminal's home.
        only: name of the one store to use; empty: all in order.
        sent: told the bytes that were sent, from the courier's thread.
        report: told which store is used and which were away.
        moved: called when another store is in use: what has no receipt is to be put there.

    Raises:
        SyncError: as `exchange.connect`.
    """

    def __init__(
        self, home: Home, only: str, sent: Callable[[int], None], report: Report, moved: Callable[[], None]
    ) -> None:
        self._home, self._sent, self._report, self._moved = home, sent, report, moved
        self._cards = home.chosen(only)
        self._patient = Patience(
            seconds=home.settings.receipt_wait_seconds, jitter=random.SystemRandom().random
        )
        self._moves_left = len(self._cards) if len(self._cards) > 1 else 0
        desk = persist(lambda: exchange.call(home, self._cards), lambda: None, self._patient)
        self._use(desk)

    def close(self) -> None:
        """End the sessions, after the step under way."""
        self.courier.close()
        self.desk.close()

    def persist(self, step: Callable[[exchange.Desk], _T]) -> _T:
        """Do a step with the store in use, with another one if that stays away.

        Args:
            step: may be repeated.

        Raises:
            TransitError: no store is there long enough.
        """
        while True:
            try:
                return persist(lambda: step(self.desk), self.desk.call_again, self._patience())
            except TransitError as error:
                self.move(error)

    def move(self, error: TransitError) -> None:
        """The store in use stays away: go on with another one, or patiently with this one if none is there.

        Args:
            error: what was found; raised when there is no other store.
        """
        if not self._moves_left:
            raise error
        left = self.desk
        self.courier.close()
        try:
            desk = exchange.call(self._home, [card for card in self._cards if card != left.store])
        except TransitError:
            desk, self._moves_left = left, 0
        else:
            left.close()
            self._report.away[left.store.store] = str(error)
            self._moves_left -= 1
        self._use(desk)
        self._moved()

    def _use(self, desk: exchange.Desk) -> None:
        self.desk = desk
        self._report.store = desk.store.store
        self._report.away |= desk.away
        self.courier = Courier(self._home, self._sent, self._patience(), only=desk.store.store)

    def _patience(self) -> Patience:
        hurried = min(self._patient.seconds, _HURRIED)
        return replace(self._patient, seconds=hurried) if self._moves_left else self._patient
