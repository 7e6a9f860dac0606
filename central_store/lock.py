"""One process at a time writes in a store.

Guarantees: whoever holds the lock is the only one; it is gone when the process ends, however it ends
(flock(2): no stale lock to remove).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import Busy


@contextmanager
def held(path: Path, busy: str = "another process works on this store") -> Iterator[None]:
    """Hold a lock file while the block runs; raises `Busy` (saying `busy`) when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(busy, hint="Is `fstore serve` running?") from error
        yield
    finally:
        os.close(descriptor)
