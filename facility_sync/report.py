"""What a round did, as values: the same picture for people, programs and cron.

Guarantees: every file a round looked at is counted once; whatever is not stored has a line with a stable
reason code, whose meaning and next step stand in one table here.

Leaves to others: printing (`facility_sync.output`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from facility_sync.capture import REASONS as CAPTURE_REASONS

ROUND_REASONS: dict[str, tuple[str, str]] = {
    "not-a-file": (
        "A link that leads nowhere, a device or a pipe.",
        "Remove it from the source, or ignore it.",
    ),
    "settling": ("The file changed a moment ago and may still be growing.", "The next round takes it."),
    "vanished": ("The file was there and is gone.", "Put it back if it should be stored."),
    "unreadable": ("The file or folder cannot be read.", "Check its permissions and the disk."),
    "new": ("Not looked into yet.", "The next `fsync sync` takes it."),
    "ready": ("Sealed and waiting to be sent.", "The next `fsync sync` sends it."),
    "sent": ("On the store's shelf; no receipt yet.", "Wait for the store, then run `fsync sync` again."),
}


def explain(reason: str) -> tuple[str, str]:
    """Meaning and next step of a reason code; a code of the store's is passed on as it is."""
    known = ROUND_REASONS.get(reason)
    if known is None and reason in CAPTURE_REASONS:
        known = CAPTURE_REASONS[reason]
    return known or ("The store refused the batch this file was in.", "Run `fsync sync --retry-refused`.")


class Line(NamedTuple):
    """One file that is not stored: its path below the source, and why."""

    source: str
    path: str
    reason: str


@dataclass
class Report:
    """What a round found and did; counts are files unless they say otherwise."""

    found: int = 0
    known: int = 0
    ignored: int = 0
    under_way: int = 0
    taken: int = 0
    held: int = 0
    conflicts: int = 0
    sent_batches: int = 0
    sent_bytes: int = 0
    stored: int = 0
    stored_batches: int = 0
    refused: list[Line] = field(default_factory=list)
    waiting: list[Line] = field(default_factory=list)
    trouble: str = ""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every file found is stored with a verified receipt."""
        return not (self.refused or self.waiting or self.trouble)

    def adopt(self, picture: Report) -> None:
        """Take over what a survey says of the sources: the round broke off before it knew it all."""
        for key in ("found", "known", "ignored", "under_way", "refused", "waiting"):
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
