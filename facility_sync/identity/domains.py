"""Domains: who may read an identity. For each generation a secret for tokens and keys for what is sealed.

Guarantees: a domain's id follows from the public key of its first generation, so two terminals speak of
the same domain or of different ones, never of one name with two keys; a rotation appends a generation and
no operation here takes one away.

What each generation is for: what is new is sealed for, and gets tokens of, the newest; what is sealed may
be opened by any; a search sends the tokens of all. What must stay equal for ever comes from the first:
the id, the digests of source files (`tokens.keyed_digest`), the key of the capsules.

Losing every copy of a domain is final: nobody can read what was sealed for it.

Leaves to others: bytes (`domain_format`), files (`domain_files`), tokens (`tokens`), seals (`sealed`),
certificates (`certificates`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from facility_sync.identity import certificates
from schemas import keys
from schemas.errors import FormatError, SettingsError

VERSIONS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The versions of a domain's generations, in their order: first character of every token made with one."""

_CAPSULE = b"facility-sync/capsule/v1"

Kind = Literal["facility", "consortium"]


class Parts(NamedTuple):
    """What is random or timed about a generation; `new_parts` draws them."""

    secret: bytes
    age_identity: str
    rsa_key: bytes
    created: str


def new_parts(created: str) -> Parts:
    """Fresh keys; the only randomness here.

    Args:
        created: RFC 3339 time.
    """
    return Parts(secrets.token_bytes(32), keys.new_age_identity(), certificates.new_rsa_key(), created)


@dataclass(frozen=True)
class Generation:
    """One generation of a domain's keys.

    Attributes:
        version: one of `VERSIONS`.
        secret: 32 bytes; every token key is derived from it.
        age_identity: opens what is sealed for the generation.
        rsa_key: RSA-3072, PKCS#8 PEM, unencrypted: opens what is enveloped for the certificate.
        certificate: X.509 PEM, self-signed.
        created: RFC 3339 time.
    """

    version: str
    secret: bytes = field(repr=False)
    age_identity: str = field(repr=False)
    rsa_key: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    created: str


@dataclass(frozen=True)
class Domain:
    """One domain.

    Attributes:
        id: first 16 hexadecimal digits of the SHA-256 of the first generation's age recipient.
        name: what people call it.
        kind: a facility's own, or a consortium's.
        generations: oldest first, at least one.
    """

    id: str
    name: str
    kind: Kind
    generations: tuple[Generation, ...]

    @property
    def first(self) -> Generation:
        """What must never change is derived from this one."""
        return self.generations[0]

    @property
    def current(self) -> Generation:
        """The newest generation: what is new is sealed for it."""
        return self.generations[-1]

    @cached_property
    def recipient(self) -> str:
        """The public half of the current generation: whoever has it can seal for the domain."""
        return keys.recipient_of(self.current.age_identity)

    @cached_property
    def capsule_key(self) -> bytes:
        """32 bytes that stay the same over every rotation (RFC 5869, HKDF of the first secret)."""
        return HKDF(algorithm=SHA256(), length=32, salt=_CAPSULE, info=b"").derive(self.first.secret)


@dataclass(frozen=True)
class Keyring:
    """The domains a terminal holds; the first is its own."""

    domains: tuple[Domain, ...]

    @property
    def own(self) -> Domain:
        """The facility's domain: new images are sealed for it, and perhaps for consortia too."""
        return self.domains[0]

    @cached_property
    def generations(self) -> tuple[Generation, ...]:
        """Every generation of every domain, a domain's newest first: any may have made a seal or a token."""
        return tuple(generation for domain in self.domains for generation in reversed(domain.generations))

    @cached_property
    def age_identities(self) -> tuple[str, ...]:
        """Everything here that opens a seal."""
        return tuple(generation.age_identity for generation in self.generations)

    def find(self, identifier: str) -> Domain | None:
        """The domain with this id."""
        return next((domain for domain in self.domains if domain.id == identifier), None)

    def choose(self, text: str | None) -> Domain:
        """The domain a person means by its id or name; None means the own one.

        Raises:
            SettingsError: there is none, or a name fits several.
        """
        found = [domain for domain in self.domains if text in (None, domain.id, domain.name)]
        if text is not None and len(found) > 1:
            raise SettingsError(
                "several domains have this name", hint="Give the id: `fsync domain list` shows them."
            )
        if not found:
            raise SettingsError("this terminal holds no such domain", hint="`fsync domain list` shows them.")
        return found[0]

    def sealing(self, consortia: Sequence[str]) -> tuple[Domain, ...]:
        """The domains a new image is sealed for: the own one, then these consortia by their ids.

        Raises:
            SettingsError: a consortium is not in the keyring, or is none.
        """
        joined = []
        for identifier in consortia:
            domain = self.find(identifier)
            if domain is None:
                raise SettingsError(
                    f"this terminal does not hold the consortium's domain {identifier}",
                    hint=f"`fsync domain import` it, or `fsync domain leave {identifier}`.",
                )
            if domain.kind != "consortium":
                raise SettingsError(
                    f"the domain {identifier} is a facility's, not a consortium's",
                    hint=f"`fsync domain leave {identifier}`.",
                )
            joined.append(domain)
        return (self.own, *joined)


def domain_id(recipient: str) -> str:
    """The id that belongs to a public key."""
    return hashlib.sha256(recipient.encode("ascii")).hexdigest()[:16]


def make(name: str, kind: Kind, parts: Parts) -> Domain:
    """A domain of one generation; raises `FormatError`."""
    identifier = domain_id(keys.recipient_of(parts.age_identity))
    return from_generations(name, kind, [_generation(name, identifier, VERSIONS[0], parts)])


def from_generations(name: str, kind: Kind, generations: Sequence[Generation]) -> Domain:
    """A domain from all its parts, checked; raises `FormatError`."""
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise FormatError("a domain's name has 1 to 64 printable characters")
    if kind not in get_args(Kind):
        raise FormatError("a domain is a facility's or a consortium's")
    if not generations or "".join(item.version for item in generations) != VERSIONS[: len(generations)]:
        raise FormatError("a domain has 1 to 35 generations, each with the next version")
    checked = tuple(_checked(item) for item in generations)
    return Domain(domain_id(keys.recipient_of(checked[0].age_identity)), name, kind, checked)


def rotate(domain: Domain, parts: Parts) -> Domain:
    """The domain with one more generation; raises `SettingsError` when it has had its 35."""
    if len(domain.generations) == len(VERSIONS):
        raise SettingsError("this domain was rotated as often as it can be", hint="Make a new one.")
    added = _generation(domain.name, domain.id, VERSIONS[len(domain.generations)], parts)
    return from_generations(domain.name, domain.kind, [*domain.generations, added])


def merge(kept: Domain, other: Domain) -> Domain:
    """The domain with the generations of both: one must continue the other; name and kind stay the kept.

    Raises:
        FormatError: different domains, or two different continuations of one.
    """
    shorter, longer = sorted((kept.generations, other.generations), key=len)
    if kept.id != other.id or longer[: len(shorter)] != shorter:
        raise FormatError(
            f"the domain {kept.id} was rotated differently at two terminals",
            hint="Only one terminal may rotate a domain: use the one its members agreed on.",
        )
    return replace(kept, generations=longer)


def _generation(name: str, identifier: str, version: str, parts: Parts) -> Generation:
    begins = _moment(parts.created)
    certificate = certificates.self_signed(name, parts.rsa_key, begins, otherwise=identifier)
    return Generation(version, *parts[:3], certificate, parts.created)


def _checked(generation: Generation) -> Generation:
    if len(generation.secret) != 32:
        raise FormatError("a domain's secret has 32 bytes")
    certificates.check_pair(generation.rsa_key, generation.certificate)
    _moment(generation.created)
    return replace(generation, age_identity=keys.age_identity(generation.age_identity))


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError("a domain's time is none") from error
    if moment.tzinfo is None:
        raise FormatError("a domain's time has no zone")
    return moment
