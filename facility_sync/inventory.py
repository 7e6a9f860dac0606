"""Every file of the sources with what became of it: those that lie there, and those that are gone.

Guarantees: each file comes out once, with one of four states: `stored` (a receipt or the store's own word
names it), `waiting`, `refused`, `erased` (its image was, and it is not sent again). Nothing is opened; memory
follows one folder.

Leaves to others: counting (`facility_sync.intake.survey`), printing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from facility_sync import plan, scan
from facility_sync.intake import below
from facility_sync.ledger import Ledger, Record
from facility_sync.settings import Settings


@dataclass(frozen=True, kw_only=True)
class File:
    """One file.

    Attributes:
        source: where it lies, or lay.
        path: below its source.
        bytes: its size; 0 for what is no file.
        state: `stored`, `waiting`, `refused` or `erased`.
        reason: why it is not stored; for a stored file `pruned` or `gone` if it does not lie here any more.
        batch: the batch it is in, if it is in one.
        stored: when the store confirmed that batch, if a receipt here says so.
    """

    source: str
    path: str
    bytes: int
    state: str
    reason: str
    batch: str = ""
    stored: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def files(settings: Settings, ledger: Ledger, source: str) -> Iterator[File]:
    """Every file of one source: first what lies there, then what only the ledger knows."""
    for folder in scan.walk(source):
        known = {record.name: record for record in ledger.records(source, folder.folder)}
        for odd in folder.oddities:
            if not _ignored(odd.name, settings):
                path = below(odd.folder, odd.name)
                yield File(source=source, path=path, bytes=0, state="waiting", reason=odd.reason)
        for fact in folder.facts:
            if not _ignored(fact.name, settings):
                yield _present(source, fact, known)
    for record in ledger.records(source):
        absent = scan.look(source, record.folder, record.name) is None
        if absent and record.state != "refused":
            yield _absent(source, record)


def _present(source: str, fact: scan.Fact, known: dict[str, Record]) -> File:
    path = below(fact.folder, fact.name)
    record = known.get(fact.name)
    if record is None or plan.is_new(fact, known):
        reason = "lost" if record is not None and record.state == "lost" else "new"
        return File(source=source, path=path, bytes=fact.size, state="waiting", reason=reason)
    under_way = record.state in ("ready", "sent")
    return File(
        source=source, path=path, bytes=fact.size, batch=record.batch, stored=record.stored,
        state="waiting" if under_way else record.state, reason=record.state if under_way else record.reason,
    )  # fmt: skip


def _absent(source: str, record: Record) -> File:
    state, reason = {
        "stored": ("stored", "pruned" if record.pruned else "gone"),
        "lost": ("refused", "lost-and-gone"),
        "erased": ("erased", "gone"),
    }.get(record.state, ("waiting", record.state))
    return File(
        source=source, path=below(record.folder, record.name), bytes=record.size, state=state, reason=reason,
        batch=record.batch, stored=record.stored,
    )  # fmt: skip


def _ignored(name: str, settings: Settings) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in settings.ignore)
