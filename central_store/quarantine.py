"""What was refused: kept beside its reason, for a while and within a bound.

    quarantine/<facility>/<subject>.reason     why; written first, its time is when
                          <subject>.refused    the file, link or pipe as it lay on the shelf

Guarantees: a facility's quarantine never holds more than its bound, in bytes on the disk and in entries; the
oldest go first. Age counts from the refusal, not from a time the sender set. Nothing there is opened or
followed. A folder is not kept: it is removed with all it holds, however deep. What may not be moved (another
user's folder, behind another SFTP server) stays and is an error in the log, not the end of the service.

Leaves to others: what is refused (`central_store.service`), what is said about it (`central_store.replies`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from central_store import audit
from central_store.layout import Layout
from schemas.names import FacilityName
from schemas.transit import durable

log = logging.getLogger("central_store")

MOST = 5_000
"""Most entries of one facility."""
_BLOCK = 4096
_REASON, _REFUSED = ".reason", ".refused"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def take(layout: Layout, facility: FacilityName, name: str, subject: str, reason: str, *, limit: int) -> None:
    """Move something from `in` out of the way, and write the reason beside it.

    Args:
        layout: the store.
        facility: whose shelf.
        name: a plain name in that folder, as `inbox.look` gave it.
        subject: the id it is refused under; becomes its name in quarantine.
        reason: the refusal's code.
        limit: most bytes on the disk this facility's quarantine may take.
    """
    folder, source = layout.quarantine(facility), layout.inbound(facility) / name
    target = folder / (subject + _REFUSED)
    durable.publish(folder / (subject + _REASON), reason.encode("ascii") + b"\n", replace=True)
    try:
        if source.is_dir() and not source.is_symlink():
            remove_tree(source)
        else:
            durable.rename(source, target)
    except FileNotFoundError:
        pass  # its owner took it back
    except PermissionError as error:
        log.error("stuck facility=%s subject=%s: %s", facility, subject, error.strerror)
    _bound(layout, facility, limit)


def sweep(layout: Layout, facility: FacilityName, before: float) -> int:
    """Remove what was refused before a time in seconds since 1970; returns how many entries."""
    old = [subject for when, subject, _ in _entries(layout.quarantine(facility)) if when < before]
    _prune(layout, facility, old)
    return len(old)


def _bound(layout: Layout, facility: FacilityName, limit: int) -> None:
    entries = _entries(layout.quarantine(facility))
    held = sum(size for _, _, size in entries)
    if held <= limit and len(entries) <= MOST:
        return
    entries.sort(reverse=True)
    old = []
    while entries and (held > limit * 3 // 4 or len(entries) > MOST * 3 // 4):
        _, subject, size = entries.pop()
        old.append(subject)
        held -= size
    _prune(layout, facility, old)


def _prune(layout: Layout, facility: FacilityName, old: Sequence[str]) -> None:
    if old:
        audit.record(layout, "prune", facility=facility, details={"quarantine": len(old)})
    for subject in old:
        _drop(layout.quarantine(facility), subject)


def _entries(folder: Path) -> list[tuple[float, str, int]]:
    """When each was refused (0: before its reason could be written), its subject, and bytes on the disk."""
    found: dict[str, list[float]] = {}
    with os.scandir(folder) as listing:
        for item in listing:
            subject, dot, kind = item.name.partition(".")
            with suppress(FileNotFoundError):
                status = item.stat(follow_symlinks=False)
                entry = found.setdefault(subject, [0.0, 0])
                entry[1] += max(_BLOCK, status.st_blocks * 512)
                if dot + kind == _REASON:
                    entry[0] = status.st_mtime
    return [(when, subject, int(size)) for subject, (when, size) in found.items()]


def _drop(folder: Path, subject: str) -> None:
    for path in (folder / (subject + _REFUSED), folder / (subject + _REASON)):
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():  # of a version that kept folders
                remove_tree(path)
            else:
                path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds: no link followed, no recursion, no path however deep it is."""
    _open_up(str(path), None)
    folder, above = os.open(path, _FOLDER), list[str]()
    try:
        while True:
            inner = _emptied(folder)
            if inner is not None:
                _open_up(inner, folder)
                above.append(inner)
                folder = _other(folder, inner)
            elif above:
                folder = _other(folder, "..")
                os.rmdir(above.pop(), dir_fd=folder)
            else:
                break
    finally:
        os.close(folder)
    path.rmdir()


def _emptied(folder: int) -> str | None:
    """Remove what is no folder; the name of a folder that is left, if there is one."""
    with os.scandir(folder) as listing:
        for item in listing:
            if item.is_dir(follow_symlinks=False):
                return item.name
            os.unlink(item.name, dir_fd=folder)
    return None


def _other(folder: int, name: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    finally:
        os.close(folder)


def _open_up(name: str, folder: int | None) -> None:
    with suppress(PermissionError):  # another user's: then it can be entered, or not
        os.chmod(name, 0o700, dir_fd=folder)
