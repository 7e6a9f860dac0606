"""A domain as bytes: canonical JSON, version 2, secrets included.

Guarantees: reading a domain and writing it again gives the same bytes; whatever the bytes, only
`FormatError` comes out; a domain of another version is refused as such (version 1 was never released).

Leaves to others: where the bytes go, always sealed or with mode 0600 (`domain_files`).
"""

from __future__ import annotations

import base64
import json
from typing import Any

from facility_sync.identity.domains import Domain, Generation, from_generations
from schemas.errors import FormatError, VersionError
from schemas.messages import canonical

VERSION = 2
MAX_BYTES = 256 * 1024
"""Largest file of one domain: 35 generations take about 170 kB."""
_BAD_FIELDS = "a domain has not exactly the fields of its version"


def to_bytes(domain: Domain) -> bytes:
    """Canonical JSON, secrets included: for sealing or a file of mode 0600."""
    generations = [
        {
            "version": item.version, "secret": base64.b64encode(item.secret).decode("ascii"),
            "age_identity": item.age_identity, "rsa_key": item.rsa_key.decode("ascii"),
            "certificate": item.certificate.decode("ascii"), "created": item.created,
        }
        for item in domain.generations
    ]  # fmt: skip
    return canonical({
        "type": "domain", "version": VERSION, "name": domain.name, "kind": domain.kind,
        "generations": generations,
    })  # fmt: skip


def from_bytes(data: bytes) -> Domain:
    """Parse a domain; raises `FormatError`, `VersionError`."""
    if len(data) > MAX_BYTES:
        raise FormatError("a domain is larger than any can be")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("this is not a domain") from error
    if not isinstance(values, dict) or values.get("type") != "domain":
        raise FormatError("this is not a domain")
    if values.get("version") != VERSION:
        raise VersionError(
            "this domain is of a version this program does not know",
            hint="Update this program. Version 1 was made before any release: make that terminal anew.",
        )
    try:
        name, kind, items = _text(values["name"]), values["kind"], values["generations"]
        domain = from_generations(name, kind, [_generation(item) for item in items])
        same = to_bytes(domain) == data
    except (KeyError, TypeError, ValueError) as error:  # whatever another shape makes of these lines
        raise FormatError(_BAD_FIELDS) from error
    if not same:
        raise FormatError(_BAD_FIELDS)
    return domain


def _generation(item: Any) -> Generation:
    return Generation(
        _text(item["version"]), base64.b64decode(_text(item["secret"]), validate=True),
        _text(item["age_identity"]), _text(item["rsa_key"]).encode("ascii"),
        _text(item["certificate"]).encode("ascii"), _text(item["created"]),
    )  # fmt: skip


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError(_BAD_FIELDS)
    return value
