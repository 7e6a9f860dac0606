"""What a round did, as values: the same picture for people, programs and cron.

Guarantees: every file a round looked at is counted once; whatever is not stored has a line with a stable
reason code of `facility_sync.reasons`.

Leaves to others: printing (`facility_sync.output`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from facility_sync.reasons import explain


class Line(NamedTuple):
    """One file that is not stored: its path below the source, and why."""

    source: str
    path: str
    reason: str


@dataclass
class Report:
    """What a round found and did; counts are files unless they say otherwise.

    `store` is the one used (last), `away` are those that were tried and not there, each with what was found.
    Of what was `taken`, `protected` became protected DICOM; the rest was sealed whole. `rows` is what was
    brought for questions with the line down, or why not; it does not make a round incomplete. `erased` files
    lie there and are not sent, because their images were erased; `unburied` are stores that could not be
    given the tombstones they lack, each with what was found.
    """

    found: int = 0
    known: int = 0
    ignored: int = 0
    under_way: int = 0
    taken: int = 0
    protected: int = 0
    held: int = 0
    erased: int = 0
    conflicts: int = 0
    sent_batches: int = 0
    sent_bytes: int = 0
    stored: int = 0
    stored_batches: int = 0
    refused: list[Line] = field(default_factory=list)
    waiting: list[Line] = field(default_factory=list)
    store: str = ""
    away: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    unburied: dict[str, str] = field(default_factory=dict)
    trouble: str = ""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every file found is stored with a verified receipt."""
        return not (self.refused or self.waiting or self.trouble)

    def adopt(self, picture: Report) -> None:
        """Take over what a survey says of the sources: the round broke off before it knew it all."""
        for key in ("found", "known", "erased", "ignored", "under_way", "refused", "waiting"):
            setattr(self, key, getattr(picture, key))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        values = asdict(self) | {"complete": self.complete}
        for key in ("refused", "waiting"):
            values[key] = [
                {
                    "source": line.source,
                    "path": line.path,
                    "reason": line.reason,
                    "meaning": explain(line.reason)[0],
                }
                for line in getattr(self, key)
            ]
        values["seconds"] = round(self.seconds, 3)
        return values
