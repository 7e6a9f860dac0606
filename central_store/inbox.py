"""The `in` shelf of a facility as the store sees it: what has arrived, and what has no place there.

Guarantees: a file is only ever named by a `ShelfName`; everything that is no regular file with an inbound
name is foreign, whatever it is, and is never opened. Quarantine keeps what was refused under a name of
our own, beside the reason; both are swept by age.

Leaves to others: reading what arrived (`central_store.ingest`, `central_store.requests`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from central_store.layout import Layout
from schemas import envelope
from schemas.errors import FormatError
from schemas.names import INBOUND, PART_SUFFIX, FacilityName, ShelfName, shelf_name
from schemas.transit import durable


@dataclass
class Arrivals:
    """What lies on one `in` shelf, oldest first."""

    requests: list[ShelfName] = field(default_factory=list)
    batches: list[ShelfName] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def look(folder: Path) -> Arrivals:
    """Look at an `in` shelf; uploads under way (`….part`) are passed over."""
    found = Arrivals()
    aged: list[tuple[int, str, ShelfName]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
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
    for _, _, name in sorted(aged):
        (found.requests if name.kind == "request" else found.batches).append(name)
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


def quarantine(layout: Layout, facility: FacilityName, name: str, subject: str, reason: str) -> None:
    """Move something from `in` out of the way, and write the reason beside it.

    Args:
        layout: the store.
        facility: whose shelf.
        name: as `look` gave it: a plain name in that folder.
        subject: the id it is refused under; becomes its name in quarantine.
        reason: the refusal's code.
    """
    folder = layout.quarantine(facility)
    target = folder / f"{subject}.refused"
    source = layout.inbound(facility) / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    with suppress(FileNotFoundError):
        if source.is_dir() and not source.is_symlink():
            target.unlink(missing_ok=True)
        durable.rename(source, target)
        durable.publish(folder / f"{subject}.reason", reason.encode("ascii") + b"\n", replace=True)


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
    for folder, age in ((layout.outbound(facility), answers), (layout.quarantine(facility), refused)):
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime >= now - age:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        Path(entry.path).unlink()
                    swept += 1
    return swept
