"""Domains: who may read an identity. A secret for tokens, a key for what is sealed.

Guarantees: a domain travels only sealed to one terminal's card; on disk it has mode 0600 and is not read
with a looser one; its id is derived from its public key, so two terminals speak of the same domain or of
different ones, never of one name with two keys.

Losing every copy of a domain is final: nobody can read what was sealed for it.

Leaves to others: tokens (`tokens`), seals (`sealed`), rotation (a version stands in every token).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from facility_sync.secret_files import read_secret
from schemas import envelope, keys
from schemas.errors import FormatError, SettingsError, VersionError
from schemas.messages import canonical
from schemas.transit import durable

VERSION = 1
_SUFFIX = ".domain"
_MAX_BYTES = 64 * 1024
_OWN = "own"


@dataclass(frozen=True)
class Domain:
    """One domain.

    Attributes:
        id: first 16 hexadecimal digits of the SHA-256 of its age recipient.
        name: what people call it.
        secret: 32 bytes; every token key is derived from it.
        age_identity: opens what is sealed for the domain.
        created: RFC 3339 time.
    """

    id: str
    name: str
    secret: bytes = field(repr=False)
    age_identity: str = field(repr=False)
    created: str

    @property
    def recipient(self) -> str:
        """The public half: whoever has it can seal for the domain."""
        return keys.recipient_of(self.age_identity)


@dataclass(frozen=True)
class Keyring:
    """The domains a terminal holds; the first is its own."""

    domains: tuple[Domain, ...]

    @property
    def own(self) -> Domain:
        """The domain new images are sealed for."""
        return self.domains[0]


def domain_id(recipient: str) -> str:
    """The id that belongs to a public key."""
    return hashlib.sha256(recipient.encode("ascii")).hexdigest()[:16]


def make(name: str, *, secret: bytes, age_identity: str, created: str) -> Domain:
    """A domain from its parts; raises `FormatError`."""
    if len(secret) != 32:
        raise FormatError("a domain's secret has 32 bytes")
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise FormatError("a domain's name has 1 to 64 printable characters")
    identity = keys.age_identity(age_identity)
    return Domain(domain_id(keys.recipient_of(identity)), name, secret, identity, created)


def to_bytes(domain: Domain) -> bytes:
    """Canonical JSON, secrets included: for sealing or a file of mode 0600."""
    return canonical({
        "type": "domain", "version": VERSION, "name": domain.name, "created": domain.created,
        "secret": base64.b64encode(domain.secret).decode("ascii"), "age_identity": domain.age_identity,
    })  # fmt: skip


def from_bytes(data: bytes) -> Domain:
    """Parse a domain; raises `FormatError`, `VersionError`."""
    try:
        values = json.loads(data[: _MAX_BYTES + 1])
    except (ValueError, RecursionError) as error:
        raise FormatError("this is not a domain") from error
    if not isinstance(values, dict) or values.pop("type", None) != "domain":
        raise FormatError("this is not a domain")
    if values.pop("version", None) != VERSION:
        raise VersionError("this domain is of a version this program does not know")
    try:
        texts = {key: values[key] for key in ("name", "created", "secret", "age_identity")}
        if set(values) != set(texts) or not all(isinstance(value, str) for value in texts.values()):
            raise FormatError("a domain has not exactly the fields of its version")
        secret = base64.b64decode(texts["secret"], validate=True)
    except (KeyError, ValueError) as error:
        raise FormatError("a domain has not exactly the fields of its version") from error
    return make(texts["name"], secret=secret, age_identity=texts["age_identity"], created=texts["created"])


def export_for(domains: Sequence[Domain], recipient: str) -> bytes:
    """Domains sealed for one terminal."""
    plain = b"\n".join(to_bytes(domain) for domain in domains) + b"\n"
    return envelope.seal_bytes(plain, [recipient])


def import_from(data: bytes, age_identity: str) -> list[Domain]:
    """Open domains sealed for this terminal; raises `SealError`, `FormatError`."""
    plain = envelope.open_bytes(data, [age_identity], limit=_MAX_BYTES)
    return [from_bytes(line) for line in plain.splitlines()]


def keep(folder: Path, domain: Domain) -> None:
    """Keep a domain in the keyring; one that is there already stays as it is."""
    path = folder / f"{domain.id}{_SUFFIX}"
    if not path.exists():
        durable.publish(path, to_bytes(domain), mode=0o600)


def keep_own(folder: Path, domain: Domain) -> None:
    """Keep the terminal's own domain, and remember that it is its own."""
    keep(folder, domain)
    durable.publish(folder / _OWN, domain.id.encode("ascii"), mode=0o600)


def load(folder: Path) -> Keyring:
    """The keyring of a terminal, its own domain first, then by id.

    Raises:
        SettingsError: the own domain is missing, or a file is open to others or damaged.
    """
    found: dict[str, Domain] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            domain = from_bytes(read_secret(path))
        except VersionError:
            raise
        except FormatError as error:
            raise SettingsError(f"{path.name} is damaged", hint="Put it back from a copy.") from error
        if path.name != f"{domain.id}{_SUFFIX}":
            raise SettingsError(f"{path.name} holds another domain", hint="Put it back from a copy.")
        found[domain.id] = domain
    own = read_secret(folder / _OWN).decode("ascii", "replace")
    if own not in found:
        raise SettingsError(
            "this terminal's own domain is missing", hint="Put it back from a copy of the home."
        )
    return Keyring((found.pop(own), *found.values()))
