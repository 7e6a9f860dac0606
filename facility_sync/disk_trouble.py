"""Trouble with this machine, as an error that says what to do.

Guarantees: a disk or a ledger that fails ends what was done with one of our errors, never a traceback.

Leaves to others: beginning again with fresh files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from facility_sync.ledger import LedgerFailure
from schemas.errors import SettingsError


@contextmanager
def translated() -> Iterator[None]:
    """Trouble with this machine as our error: the round ends, the next one begins with fresh files."""
    try:
        yield
    except (OSError, LedgerFailure) as error:
        what = error.strerror if isinstance(error, OSError) else "the ledger cannot be written"
        raise SettingsError(
            f"the disk of this terminal failed: {what}",
            hint="Nothing is lost. Make room, or see what is wrong with the disk, and run it again.",
        ) from error
