"""Domains for tests: real keys, few of them, because an RSA key takes a fifth of a second to make."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from facility_sync.identity import certificates, domains
from schemas import keys

CREATED = "2026-11-24T00:00:00Z"


@lru_cache(maxsize=4)
def rsa_key(number: int) -> bytes:
    """One of four RSA keys of this test process."""
    return certificates.new_rsa_key()


def parts(seed: int = 1) -> domains.Parts:
    """Parts of a generation: the secret follows from the seed, the age key is always another."""
    secret = hashlib.sha256(bytes([seed])).digest()
    return domains.Parts(secret, keys.new_age_identity(), rsa_key(seed % 4), CREATED)


def domain(
    name: str = "clinic-a", seed: int = 1, *, kind: domains.Kind = "facility", generations: int = 1
) -> domains.Domain:
    """A domain of so many generations."""
    made = domains.make(name, kind, parts(seed))
    for number in range(1, generations):
        made = domains.rotate(made, parts(seed + 100 + number))
    return made
