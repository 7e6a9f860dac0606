"""Tokens: what identifies a patient, as keyed hashes that can be found and not read.

    key    = HKDF-SHA256(secret, salt "facility-sync/token/v1", info "<field>|<version>")
    token  = version character + base32(HMAC-SHA256(key, "dicom-token" 0 field 0 value)[:16])

Secret and version character are those of one generation of a domain: a row has the tokens of each
domain's newest, a search sends those of every one. 27 characters, valid in a DICOM LO and as a name
component.

Guarantees: the same patient gives the same token however the name is written (width, case, accents,
hiragana or katakana, blanks, hyphens); another domain, generation or field gives another. There is
never a token of a name alone or of a birth date alone: those could be guessed by their frequency.

What tokens show to the store: equality and frequency, nothing else (RFC 5869, RFC 2104; NFKC: UAX 15).

Leaves to others: reading values from a header (`schemas.extract`), the domains (`domains`).
"""

from __future__ import annotations

import base64
import hmac
import unicodedata
from datetime import date
from functools import lru_cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from facility_sync.identity.domains import Domain, Generation

_SALT = b"facility-sync/token/v1"
_SEPARATOR = "\x1f"

# Variants of the same kanji in names (JIS X 0208 level 2 forms to the everyday form).
_KANJI = str.maketrans("邊邉齋齊斎髙﨑澤濱廣嶋瀧櫻惠眞國龍﨟", "辺辺斉斉斉高崎沢浜広島滝桜恵真国竜蝋")

_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x180E))))
"""Variation selectors: which drawing of a character is meant."""


@lru_cache(maxsize=256)
def _key(secret: bytes, field: str, version: str) -> bytes:
    info = f"{field}|{version}".encode()
    return HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=info).derive(secret)


def _token(by: Generation, field: str, value: str) -> str:
    data = b"dicom-token\0" + field.encode() + b"\0" + value.encode("utf-8", "surrogatepass")
    digest = hmac.digest(_key(by.secret, field, by.version), data, "sha256")[:16]
    return by.version + base64.b32encode(digest).decode("ascii").rstrip("=")


def keyed_digest(domain: Domain, sha256: bytes) -> str:
    """Digest of a source file that the store can compare and nobody without the domain can test.

    Keyed by the first generation for ever: it is how a terminal asks what is held already, so another key
    after a rotation would send every image again. It finds no patient, so an old key of it is no harm.

    Args:
        domain: whose secret keys it.
        sha256: SHA-256 of the file, 32 bytes.

    Returns:
        64 hexadecimal digits.
    """
    first = domain.first
    return hmac.digest(_key(first.secret, "source", first.version), sha256, "sha256").hex()


def patient_id(by: Generation, identifier: str, issuer: str = "") -> list[str]:
    """The token of a patient ID; with an issuer, the one that holds for that issuer only.

    Rows carry both, so a search without issuer finds the ID at every issuer.
    """
    value = normal_id(identifier)
    if not value:
        return []
    scope = unicodedata.normalize("NFKC", issuer).strip().casefold()
    return [_token(by, "pid", f"{scope}{_SEPARATOR}{value}")]


def patient_id_row(by: Generation, identifier: str, issuer: str) -> list[str]:
    """The tokens of a patient ID for a row."""
    return list(dict.fromkeys(patient_id(by, identifier) + patient_id(by, identifier, issuer)))


def accession(by: Generation, number: str) -> list[str]:
    """The token of an accession number."""
    value = normal_id(number)
    return [_token(by, "accession", value)] if value else []


def person(by: Generation, name: str, born: date | None) -> list[str]:
    """A token of each writing of a name together with the birth date; none without a birth date."""
    if born is None:
        return []
    groups = dict.fromkeys(filter(None, (normal_name(group) for group in name.split("=")[:3])))
    return [_token(by, "person", f"{group}{_SEPARATOR}{born.isoformat()}") for group in groups]


def normal_id(text: str) -> str:
    """An identifier as it is compared: NFKC, trimmed, upper case; leading zeros count."""
    return unicodedata.normalize("NFKC", text).replace("\0", "").strip().upper()


def normal_name(group: str) -> str:
    """One component group of a PN (PS3.5 section 6.2.1) as it is compared: `family^given^middle`.

    Titles and suffixes are left out. Blanks, hyphens, apostrophes and middle dots go; accents go from
    Latin, Greek and Cyrillic letters only (a Japanese voicing mark makes another syllable); katakana
    becomes hiragana; common kanji variants become one.
    """
    parts = [_normal_part(part) for part in group.split("^")[:3]]
    return "^".join(parts).rstrip("^")


def _normal_part(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_KANJI)
    kept: list[str] = []
    for char in unicodedata.normalize("NFD", folded):
        if unicodedata.combining(char):
            if kept and _drops_accents(kept[-1]):
                continue
        elif unicodedata.category(char)[0] not in "LMN" or char in _SELECTORS:
            continue  # blanks, hyphens, apostrophes, dots, controls; vowel signs (Thai, Devanagari) stay
        kept.append(char)
    composed = unicodedata.normalize("NFC", "".join(kept))
    return "".join(_hiragana(char) for char in composed)


def _drops_accents(base: str) -> bool:
    return unicodedata.name(base, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _hiragana(char: str) -> str:
    return chr(ord(char) - 0x60) if "ァ" <= char <= "ヶ" else char
