"""Keys as text: parse, format, fingerprint; and nothing that stores them.

Guarantees: a key that came from outside is checked before anything uses it and comes back in its one
canonical spelling (an SSH key without its comment); whatever the text, only `FormatError` comes out.

Leaves to others: where secrets lie and with which file mode (`facility_sync.home`, `central_store.home`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from functools import lru_cache

import pyrage
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from schemas.errors import FormatError

SSH_TYPE = b"ssh-ed25519"


def ssh_string(data: bytes) -> bytes:
    """`string` of RFC 4251 section 5: four bytes of length, then the bytes."""
    return struct.pack(">I", len(data)) + data


def ssh_line(key: Ed25519PublicKey) -> str:
    """The public key as OpenSSH writes it: `ssh-ed25519 AAAA…`."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def ssh_blob(line: object) -> bytes:
    """The key blob (RFC 8709 section 4) of an `ssh-ed25519` line; raises `FormatError`."""
    fields = line.split(" ") if isinstance(line, str) and len(line) <= 1024 else []
    try:
        blob = base64.b64decode(fields[1], validate=True)
    except (IndexError, binascii.Error, ValueError) as error:
        raise FormatError("this is not an ssh-ed25519 public key") from error
    prefix = ssh_string(SSH_TYPE) + struct.pack(">I", 32)
    if fields[0] != SSH_TYPE.decode("ascii") or len(blob) != len(prefix) + 32 or not blob.startswith(prefix):
        raise FormatError("this is not an ssh-ed25519 public key")
    return blob


def ssh_key(line: object) -> str:
    """Check an SSH public key; returns `ssh-ed25519 AAAA…` without comment; raises `FormatError`."""
    blob = ssh_blob(line)
    try:
        return ssh_line(Ed25519PublicKey.from_public_bytes(blob[-32:]))
    except ValueError as error:
        raise FormatError("this is not an ssh-ed25519 public key") from error


@lru_cache(maxsize=256)
def public_key(line: str) -> Ed25519PublicKey:
    """The key of an `ssh-ed25519` line; raises `FormatError`."""
    return Ed25519PublicKey.from_public_bytes(ssh_blob(ssh_key(line))[-32:])


def fingerprint(line: str) -> str:
    """`SHA256:…` as `ssh-keygen -l` prints it (RFC 4648 base64 without padding)."""
    digest = hashlib.sha256(ssh_blob(line)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """The private key in OpenSSH's file format, unencrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def load_private(pem: bytes) -> Ed25519PrivateKey:
    """Read an OpenSSH private key file; raises `FormatError` unless it is an unencrypted Ed25519 key."""
    try:
        key = load_ssh_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FormatError("this is not an unencrypted OpenSSH private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError("this is not an Ed25519 private key")
    return key


def new_age_identity() -> str:
    """A fresh age X25519 identity; the randomness is pyrage's own."""
    return str(pyrage.x25519.Identity.generate())


def age_identity(text: object) -> str:
    """Check an age identity (`AGE-SECRET-KEY-1…`); raises `FormatError`."""
    try:
        return str(pyrage.x25519.Identity.from_str(_short(text)))
    except pyrage.IdentityError as error:
        raise FormatError("this is not an age X25519 identity") from error


def age_recipient(text: object) -> str:
    """Check an age recipient (`age1…`); raises `FormatError`."""
    try:
        return str(pyrage.x25519.Recipient.from_str(_short(text)))
    except pyrage.RecipientError as error:
        raise FormatError("this is not an age X25519 recipient") from error


def recipient_of(identity: str) -> str:
    """The public half of an age identity; raises `FormatError`."""
    return str(pyrage.x25519.Identity.from_str(age_identity(identity)).to_public())


def _short(text: object) -> str:
    if not isinstance(text, str) or len(text) > 200 or not text.isascii():
        raise FormatError("this is not an age key")
    return text
