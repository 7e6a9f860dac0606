"""A log of whole lines in the terminal's home, for what a person must be able to look up later.

Guarantees: when `append` returns, the lines are on disk behind all earlier ones; a line that a crash cut is
ended first, so no line is ever glued to another; only the owner may read the file.

Leaves to others: what the lines say.
"""

from __future__ import annotations

import os
from pathlib import Path

from schemas.transit import durable


def append(path: Path, lines: bytes) -> None:
    """Add lines, each with its line end; raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        while lines:
            lines = lines[os.write(descriptor, lines) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:
        durable.fsync_dir(path.parent)
