"""Walk a source and say what lies there, without opening anything.

Guarantees: every directory entry below the source comes out exactly once, as a fact or as an oddity
with its reason; links to folders are not followed (a loop cannot trap the walk); work and memory grow
with one folder at a time.

Leaves to others: what is new (`facility_sync.plan`), reading (`facility_sync.capture`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Fact(NamedTuple):
    """One file: where it lies below its source, and what `stat` says of it."""

    folder: str
    name: str
    size: int
    mtime_ns: int


class Oddity(NamedTuple):
    """One entry that is no readable file: where, and a stable reason code."""

    folder: str
    name: str
    reason: str


class Folder(NamedTuple):
    """Everything in one folder; `folder` is relative to the source, empty for the source itself."""

    folder: str
    facts: list[Fact]
    oddities: list[Oddity]


def walk(source: str) -> Iterator[Folder]:
    """Every folder below a source, in a stable order, each with its entries."""
    pending = [""]
    while pending:
        folder = pending.pop()
        facts: list[Fact] = []
        oddities: list[Oddity] = []
        below: list[str] = []
        try:
            with os.scandir(Path(source, folder)) as entries:
                for entry in sorted(entries, key=lambda item: item.name):
                    _sort_in(folder, entry, facts, oddities, below)
        except OSError:
            parent, _, name = folder.rpartition("/")
            oddities.append(Oddity(parent, name, "unreadable"))
        pending.extend(reversed(below))
        yield Folder(folder, facts, oddities)


def _sort_in(
    folder: str, entry: os.DirEntry[str], facts: list[Fact], oddities: list[Oddity], below: list[str]
) -> None:
    try:
        if entry.is_dir(follow_symlinks=False):
            below.append(f"{folder}/{entry.name}" if folder else entry.name)
            return
        status = entry.stat()
    except FileNotFoundError:
        reason = "not-a-file" if entry.is_symlink() else "vanished"
        oddities.append(Oddity(folder, entry.name, reason))
        return
    except OSError:
        oddities.append(Oddity(folder, entry.name, "unreadable"))
        return
    if stat.S_ISREG(status.st_mode):
        facts.append(Fact(folder, entry.name, status.st_size, status.st_mtime_ns))
    else:
        oddities.append(Oddity(folder, entry.name, "not-a-file"))


def look(source: str, folder: str, name: str) -> Fact | None:
    """One file again; None if it is gone."""
    try:
        status = Path(source, folder, name).stat()
    except OSError:
        return None
    return Fact(folder, name, status.st_size, status.st_mtime_ns)
