"""The keyring on disk, and a domain on its way to another terminal.

Guarantees: a domain travels only sealed to one terminal's card; on disk it has mode 0600 and is not read
with a looser one; keeping a domain never loses a generation of it.

Leaves to others: what a domain is (`domains`), copies behind a passphrase (`backup`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from facility_sync.identity import certificates
from facility_sync.identity.domain_format import MAX_BYTES, from_bytes, to_bytes
from facility_sync.identity.domains import Domain, Keyring, merge
from facility_sync.secret_files import read_secret
from schemas import envelope
from schemas.errors import FormatError, SettingsError, VersionError
from schemas.transit import durable

MAX_KEYRING = 32 * MAX_BYTES
"""Most bytes of domains that travel together."""
_SUFFIX = ".domain"
_OWN = "own"


def export_for(domains: Sequence[Domain], recipient: str) -> bytes:
    """Domains sealed for one terminal."""
    return envelope.seal_bytes(to_lines(domains), [recipient])


def import_from(data: bytes, age_identity: str) -> list[Domain]:
    """Open domains sealed for this terminal; raises `SealError`, `FormatError`."""
    return from_lines(envelope.open_bytes(data, [age_identity], limit=MAX_KEYRING))


def to_lines(domains: Sequence[Domain]) -> bytes:
    """Several domains as they travel: one line each."""
    return b"".join(to_bytes(domain) + b"\n" for domain in domains)


def from_lines(data: bytes) -> list[Domain]:
    """The domains of `to_lines`, at least one; raises `FormatError`."""
    lines = data.split(b"\n")
    if len(lines) < 2 or lines.pop():
        raise FormatError("this holds no domain")
    return [from_bytes(line) for line in lines]


def keep(folder: Path, domain: Domain) -> Domain:
    """Keep a domain in the keyring; one that is there already gets the generations it lacks.

    Returns:
        The domain as it is kept now.

    Raises:
        FormatError: the one that is there was rotated differently.
        SettingsError: the one that is there cannot be read.
    """
    path = folder / f"{domain.id}{_SUFFIX}"
    with _alone(folder):
        kept = _read(path) if path.exists() else None
        merged = domain if kept is None else merge(kept, domain)
        if merged != kept:
            durable.publish(path, to_bytes(merged), mode=0o600, replace=True)
    return merged


def keep_own(folder: Path, domain: Domain) -> None:
    """Keep the terminal's own domain, and remember that it is its own."""
    keep(folder, domain)
    durable.publish(folder / _OWN, domain.id.encode("ascii"), mode=0o600, replace=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time: two rotations must not both continue the same generation."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def load(folder: Path) -> Keyring:
    """The keyring of a terminal, its own domain first, then by id.

    Raises:
        SettingsError: the own domain is missing, or a file is open to others or damaged.
    """
    found = {domain.id: domain for domain in map(_read, sorted(folder.glob(f"*{_SUFFIX}")))}
    own = read_secret(folder / _OWN).decode("ascii", "replace")
    if own not in found:
        raise SettingsError(
            "this terminal's own domain is missing", hint="Put it back from a copy of the home."
        )
    return Keyring((found.pop(own), *found.values()))


def _read(path: Path) -> Domain:
    try:
        domain = from_bytes(read_secret(path))
    except VersionError:
        raise
    except FormatError as error:
        raise SettingsError(f"{path.name} is damaged", hint="Put it back from a copy.") from error
    if path.name != f"{domain.id}{_SUFFIX}":
        raise SettingsError(f"{path.name} holds another domain", hint="Put it back from a copy.")
    return domain


def escrow_certificate(path: str) -> bytes | None:
    """The certificate of the setting `escrow_certificate` as PEM, or None when there is none.

    Raises:
        SettingsError: it cannot be read, or is no certificate that can open envelopes.
    """
    if not path:
        return None
    try:
        return certificates.recipient(Path(path).read_bytes())
    except (OSError, FormatError) as error:
        reason = str(error) if isinstance(error, FormatError) else "the file cannot be read"
        raise SettingsError(
            f"escrow_certificate: {reason}",
            hint="Name a PEM certificate of an RSA key in settings.toml, or remove the key.",
        ) from error
