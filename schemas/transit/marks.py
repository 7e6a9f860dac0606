"""Where a transfer stood when the line broke: a small file beside the sealed batch.

Guarantees: whatever the file holds, a number of bytes comes out; what is not a plain number means 0. It is a
hint that `schemas.transit.sftp` proves before it believes it: so it is not brought to the disk, and one that
cannot be written or removed stops nothing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from schemas.transit import durable

_DIGITS = 15  # a petabyte


class FileMark:
    """The mark of one batch.

    Args:
        path: its file; there is none while nothing was confirmed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> int:
        """Bytes that were confirmed."""
        with suppress(OSError), self._path.open("rb") as file:
            text = file.read(_DIGITS + 1)
            if text.isdigit() and len(text) <= _DIGITS:
                return int(text)
        return 0

    def save(self, offset: int) -> None:
        """Remember an offset; 0 removes the file."""
        with suppress(OSError):
            if offset:
                durable.publish(self._path, str(offset).encode("ascii"), replace=True, lasting=False)
            else:
                self._path.unlink(missing_ok=True)
