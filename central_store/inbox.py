"""The `in` shelf of a facility as the store sees it: what has arrived, and what has no place there.

Guarantees: a file is only ever named by a `ShelfName`; everything that is no regular file with an inbound
name is foreign, whatever it is, and is never opened. A look takes in a bounded number of names, the rest the
next time. What lies on `out` is bounded: old answers and refusals go before new ones.

Leaves to others: reading what arrived (`central_store.verify`, `central_store.requests`), where what was
refused goes (`central_store.quarantine`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from central_store import audit, facilities, peers, quarantine
from central_store.layout import Layout
from central_store.settings import Store
from schemas import envelope
from schemas.errors import FormatError
from schemas.names import INBOUND, PART_SUFFIX, FacilityName, ShelfKind, ShelfName, shelf_name
from schemas.transit import durable

log = logging.getLogger("central_store")

_DAY = 86400.0
MOST = 50_000
"""Most names one look takes in."""
MOST_REPLIES = 10_000
"""Most answers, and most refusals, that wait on one `out` shelf."""


@dataclass
class Arrivals:
    """What lies on one `in` shelf, oldest first."""

    requests: list[ShelfName] = field(default_factory=list)
    tombstones: list[ShelfName] = field(default_factory=list)
    batches: list[ShelfName] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def look(folder: Path) -> Arrivals:
    """Look at an `in` shelf; uploads under way (`….part`) are passed over, and what is beyond `MOST`."""
    found = Arrivals()
    aged: list[tuple[int, str, ShelfName]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(aged) + len(found.foreign) >= MOST:
                break
            regular = entry.is_file(follow_symlinks=False)
            if regular and entry.name.endswith(PART_SUFFIX):
                continue
            try:
                name = shelf_name(entry.name)
            except FormatError:
                name = None
            if name is None or name.kind not in INBOUND or not regular:
                found.foreign.append(entry.name)
                continue
            with suppress(FileNotFoundError):
                aged.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name, name))
    kinds = {"request": found.requests, "tombstone": found.tombstones, "batch": found.batches}
    for _, _, name in sorted(aged):
        kinds[name.kind].append(name)
    found.foreign.sort()
    return found


def open_arrival(layout: Layout, facility: FacilityName, name: ShelfName) -> BinaryIO:
    """Open what `look` found; never follows a link, never waits for a pipe.

    Raises:
        FileNotFoundError: it is not there any more.
        FormatError: it cannot be opened or is no regular file: its owner changed it.
    """
    try:
        descriptor = os.open(
            layout.inbound(facility) / str(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FormatError("a file on the shelf cannot be opened") from error
    file = os.fdopen(descriptor, "rb", envelope.BUFFER)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise FormatError("a file on the shelf is no regular file")
    return file


def foreign_subject(name: str) -> str:
    """An id for a name that is none, to refuse it under."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def sweep(
    layout: Layout, facility: FacilityName, *, answers: float, refused: float, parts: float, now: float
) -> int:
    """Remove what nobody fetched, old quarantine and stopped uploads; returns how many.

    Args:
        layout: the store.
        facility: whose shelves.
        answers: seconds a reply may lie in `out`.
        refused: seconds something stays in quarantine.
        parts: seconds an upload may pause.
        now: seconds since 1970.
    """
    swept = durable.sweep(layout.inbound(facility), parts, now)
    if (erased := layout.erased / facility).is_dir():
        swept += durable.sweep(erased, parts, now)
    old = []
    with os.scandir(layout.outbound(facility)) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < now - answers:
                    old.append(Path(entry.path))
    if old:
        audit.record(layout, "prune", facility=facility, details={"replies": len(old)})
    for path in old:
        path.unlink(missing_ok=True)
    return swept + len(old) + quarantine.sweep(layout, facility, now - refused)


def sweep_all(store: Store, now: datetime) -> None:
    """Sweep the shelves and quarantine of every facility and peer by the store's settings."""
    for facility in (*facilities.enrolled(store.layout), *peers.names_of(store.layout)):
        swept = sweep(
            store.layout, facility,
            answers=store.settings.answer_days * _DAY,
            refused=store.settings.quarantine_days * _DAY,
            parts=store.settings.part_hours * 3600.0,
            now=now.timestamp(),
        )  # fmt: skip
        if swept:
            log.info("swept facility=%s files=%d", facility, swept)


def trim(folder: Path, kind: ShelfKind, *, files: int = MOST_REPLIES, size: int | None = None) -> None:
    """Remove the oldest replies of a kind until so many files, and so many bytes, are left; never the newest.

    Args:
        folder: an `out` shelf; times there are ours.
        kind: of replies; others do not count.
        files: most of them.
        size: most bytes of them together, if there is a limit.
    """
    with os.scandir(folder) as entries:
        named = [entry for entry in entries if entry.name.endswith(f".{kind}")]
    if len(named) <= files and size is None:
        return
    aged: list[tuple[int, str, int]] = []
    for entry in named:
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            aged.append((status.st_mtime_ns, entry.path, status.st_size))
    aged.sort()
    held = sum(length for _, _, length in aged)
    for number, (_, path, length) in enumerate(aged[:-1]):
        if len(aged) - number <= files and (size is None or held <= size):
            return
        Path(path).unlink(missing_ok=True)
        held -= length
