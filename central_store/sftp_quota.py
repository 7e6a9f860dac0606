"""How much may wait on one facility's `in` shelf.

Guarantees: an upload that would pass the shelf's quota, or eat the disk's reserve, fails with `Full` before
its bytes are written; what was on the shelf stays as it is. Requests may use a tenth more, so that a shelf
full of batches does not stop searches. The folder is looked at again every few MiB, so sessions of one
facility that write at the same time can pass the quota by `STEP` each, not by more.

Leaves to others: emptying the shelf (the service does, by taking batches in).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass

STEP = 16 * 1024 * 1024
"""Bytes a session may write before the folder is looked at again."""


class Full(OSError):
    """The shelf, or the disk it is on, has no room for this."""

    def __init__(self) -> None:
        super().__init__(errno.EDQUOT, "the shelf is full")


@dataclass(frozen=True)
class Quota:
    """What may lie on one shelf."""

    bytes: int
    """All files together, uploads under way included."""
    files: int
    """Their number."""
    reserve: int
    """Bytes of the disk that uploads leave free: the store needs room to take them in."""


class Meter:
    """One session's view of its facility's shelf.

    Args:
        folder: descriptor of `in`.
        quota: what may lie there.
    """

    def __init__(self, folder: int, quota: Quota) -> None:
        self._folder, self._quota = folder, quota
        self._left = 0

    def begin(self, *, request: bool) -> None:
        """A new file is about to be made; raises `Full`."""
        files, _ = self._look(request=request)
        if files >= self._more(self._quota.files, request=request) or self._left <= 0:
            raise Full

    def grow(self, count: int, *, request: bool) -> None:
        """`count` bytes are about to be written; raises `Full`."""
        if count > self._left:
            self._look(request=request)
        if count > self._left:
            raise Full
        self._left -= count

    def _look(self, *, request: bool) -> tuple[int, int]:
        files = used = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_size
                    files += 1
        disk = os.fstatvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize - self._quota.reserve
        self._left = min(self._more(self._quota.bytes, request=request) - used, free, STEP)
        return files, used

    @staticmethod
    def _more(amount: int, *, request: bool) -> int:
        return amount + amount // 10 if request else amount
