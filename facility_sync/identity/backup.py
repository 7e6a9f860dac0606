"""A copy of the keyring behind a passphrase: the last way back to a facility's images.

Guarantees: the file is an age file with a passphrase (C2SP age.md, "scrypt"), one domain a line, the
terminal's own first; `age -d` opens it without this program. What opens is complete and unaltered.

Leaves to others: asking for the passphrase, where the file goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyrage

from facility_sync.identity.domain_files import MAX_KEYRING, from_lines, to_lines
from facility_sync.identity.domains import Domain
from schemas import envelope
from schemas.errors import FormatError, SealError

MAX_BYTES = envelope.sealed_size(MAX_KEYRING, 1024)
"""Largest backup that is read."""
_HEAD = b"age-encryption.org/v1\n-> scrypt "


def seal(domains: Sequence[Domain], passphrase: str) -> bytes:
    """Domains behind a passphrase; takes about a second, on purpose (scrypt)."""
    sealed: bytes = pyrage.passphrase.encrypt(to_lines(domains), passphrase)
    return sealed


def is_backup(data: bytes) -> bool:
    """Whether these bytes are sealed with a passphrase, by their first line."""
    return data.startswith(_HEAD)


def unseal(data: bytes, passphrase: str) -> list[Domain]:
    """The domains of a backup.

    Raises:
        SealError: another passphrase, or the file is cut short or altered.
        FormatError: it holds something else.
    """
    if len(data) > MAX_BYTES:
        raise FormatError("a backup is larger than any can be")
    try:
        plain = pyrage.passphrase.decrypt(data, passphrase)
    except pyrage.DecryptError as error:
        raise SealError(
            "the passphrase does not open this backup, or its bytes changed",
            hint="Try the passphrase again, then another copy of the file.",
        ) from error
    return from_lines(plain)
