"""Files that are mapped: read where they are touched, by pages that count as memory of ours until given back.

The system may take such pages back at any time, but whoever looks at the memory of the process, or limits it,
counts them. Given back, a page is still in the system's cache: touching it again costs a microsecond.

Guarantees: what a map shows does not change: `release` may be called at any time, by the thread that reads.

Leaves to others: what is in the files (`central_store.sheets`).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

LIMIT = 64 << 20
"""Bytes of mapped pages from which on they are given back."""
_PAGE = mmap.PAGESIZE
_STATM = Path("/proc/self/statm")


def opened(path: Path) -> mmap.mmap:
    """A file that is not empty, mapped to be read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is empty.
    """
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def release(found: mmap.mmap) -> None:
    """Give its pages back."""
    found.madvise(mmap.MADV_DONTNEED)


class Ballast:
    """What mapped files add to the memory of this process from now on; libraries are mapped, too."""

    def __init__(self) -> None:
        self._before = held()

    def drop(self, give_back: Callable[[], None]) -> None:
        """If more than `LIMIT` was added, let all of them be released."""
        if held() - self._before > LIMIT:
            give_back()


def held() -> int:
    """Bytes of mapped files that count as memory of this process (proc(5), statm); 0 where nobody says."""
    try:
        return int(_STATM.read_bytes().split()[2]) * _PAGE
    except OSError:
        return 0
