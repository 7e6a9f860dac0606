"""Files that are mapped: read where they are touched, by pages that count as memory of ours until given back.

The system may take such pages back at any time, but whoever looks at the memory of the process, or limits it,
counts them. Given back, a page is still in the system's cache: touching it again costs a microsecond.

Guarantees: what a map shows does not change: `release` may be called at any time, by the thread that reads.

Leaves to others: what is in the files (`central_store.keyruns`, `central_store.sheets`).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

LIMIT = 128 << 20
"""Bytes of mapped pages from which on they are given back."""
_PAGE = mmap.PAGESIZE
_STATM = Path("/proc/self/statm")


def opened(path: Path, *, together: bool = False) -> mmap.mmap:
    """A file, mapped to be read.

    Args:
        path: the file, which is not empty.
        together: what is looked for at once lies together, so that the system may read ahead.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is empty.
    """
    with path.open("rb") as file:
        found = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if not together:
        found.madvise(mmap.MADV_RANDOM)
    return found


def release(found: mmap.mmap) -> None:
    """Give its pages back."""
    found.madvise(mmap.MADV_DONTNEED)


class Holder(Protocol):
    """Something with mapped files."""

    def release(self) -> None:
        """Give the pages of all of them back."""


class Ballast:
    """What mapped files add to the memory of this process from now on; libraries are mapped, too."""

    def __init__(self) -> None:
        self._before = held()

    def drop(self, *holders: Holder) -> None:
        """If more than `LIMIT` was added, let these release their files, until it is half of that."""
        left = held() - self._before
        for holder in holders if left > LIMIT else ():
            if left > LIMIT // 2:
                holder.release()
                left = held() - self._before


def held() -> int:
    """Bytes of mapped files that count as memory of this process (proc(5), statm); 0 where nobody says."""
    try:
        return int(_STATM.read_bytes().split()[2]) * _PAGE
    except OSError:
        return 0
