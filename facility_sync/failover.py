"""A person's question goes to the first trusted store that answers it; and how fresh that store is.

Guarantees: a question is put to the next store only when one is not there or gives no answer; a refusal,
another host key or a wrong signature ends it. Who answered, who was away, and how many of this facility's
batches the answering store does not have yet are known to whoever asked.

Leaves to others: the question (`facility_sync.ask`, `facility_sync.fetching`), printing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from facility_sync import exchange
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import messages, names
from schemas.errors import SyncError, TransitError

_T = TypeVar("_T")
_PATIENCE = 20.0  # seconds; freshness is a remark, not the answer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an answer comes from.

    Attributes:
        store: name of the store that answered.
        away: stores that come before it and did not answer, each with what was found.
        behind: batches of this facility it does not have, or None if that could not be learnt.
    """

    store: str
    away: dict[str, str]
    behind: int | None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"store": self.store, "away": self.away, "behind": self.behind}

    def remarks(self) -> list[str]:
        """For people."""
        text = f"Answered by {self.store}"
        if self.behind is None:
            text += "; which of your batches it has could not be learnt"
        elif self.behind:
            text += f"; {self.behind:,} of your batches {'is' if self.behind == 1 else 'are'} not there yet"
        return [f"{name} is away: {why}." for name, why in self.away.items()] + [text + "."]


def ask(home: Home, only: str, question: Callable[[exchange.Desk], _T]) -> tuple[_T, Source]:
    """Put a question to the first store that answers.

    Args:
        home: the terminal's home.
        only: name of the one store to ask; empty: all in order.
        question: the whole conversation; begins anew at the next store.

    Raises:
        TransitError: no store answers.
        SyncError: as the question raises.
    """
    away: dict[str, SyncError] = {}
    for card in home.chosen(only):
        try:
            with exchange.connect(home, only=card.store) as desk:
                answer = question(desk)
                return answer, Source(
                    store=card.store,
                    away={name: str(error) for name, error in away.items()},
                    behind=_behind(home, desk),
                )
        except TransitError as error:
            away[card.store] = error
    raise exchange.nobody(away)


def _behind(home: Home, desk: exchange.Desk) -> int | None:
    """How many batches of this facility the store does not have: those without its receipt are asked for."""
    if len(home.stores) == 1:
        return 0
    with closing(Ledger(home.ledger_path)) as ledger:
        unknown = dict(ledger.not_held_by(desk.store.store))
    if not unknown:
        return 0
    asked = tuple(sorted(set(unknown.values())))[: messages.MAX_ITEMS]
    identifier, created = exchange.new_request()
    request = messages.HeldRequest(
        id=identifier, facility=names.facility_name(home.settings.facility), digests=asked, created=created
    )
    try:
        answer, _ = desk.converse(request, identifier, messages.HeldAnswer, seconds=_PATIENCE)
    except TransitError:
        return None
    return sum(digest not in answer.held for digest in unknown.values())
