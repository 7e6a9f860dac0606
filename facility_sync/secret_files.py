"""Files only their owner may read.

Guarantees: a secret with a mode that lets others read or write it is refused, not used.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from schemas.errors import SettingsError


def read_secret(path: Path) -> bytes:
    """Read a file only its owner may read.

    Raises:
        SettingsError: it is missing, or its mode lets others read or write it.
    """
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise SettingsError(
                    f"{path.name} can be read by others than its owner", hint=f"chmod 600 {path}"
                )
            return file.read()
    except FileNotFoundError as error:
        raise SettingsError(f"{path.name} is missing", hint=f"Put it back at {path}.") from error
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read", hint=f"Check the owner of {path}.") from error
