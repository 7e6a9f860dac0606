"""Read a file that holds a secret, and refuse it when others can read it too.

Guarantees: the mode is taken from the open file, so what was checked is what is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from schemas.errors import SettingsError

MAX_BYTES = 64 * 1024


def read_secret(path: Path, *, name: str) -> bytes:
    """The content of a file with mode 0600 or stricter.

    Args:
        path: the file.
        name: how messages call it; no path from the machine's root.

    Raises:
        SettingsError: missing, not a regular file, too large, or readable by group or others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise SettingsError(f"{name} is not a small regular file")
            if status.st_mode & 0o077:
                raise SettingsError(
                    f"{name} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                    hint=f"Run `chmod 600` on {name}, and consider what it protects as known.",
                )
            return file.read(MAX_BYTES)
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from error
