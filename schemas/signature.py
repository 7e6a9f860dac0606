"""SSHSIG signatures (OpenSSH PROTOCOL.sshsig): `ssh-keygen -Y verify` checks what is signed here.

Guarantees: a signature is made for one namespace and counts in that one only; `verify` accepts the one
spelling `sign` produces and nothing else, and raises `SealError` for every other text.

Leaves to others: whose key is right for which signer (the cards), which bytes are
signed (`schemas.messages`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import SealError
from schemas.keys import SSH_TYPE, public_key, ssh_blob, ssh_line, ssh_string

MAGIC = b"SSHSIG"
VERSION = 1
HASH = b"sha512"
ORIGIN = "facility-sync"
"""Namespaces are `<type of message>@facility-sync`."""

_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----\n", "\n-----END SSH SIGNATURE-----\n"
_COLUMNS = 70


def namespace(message_type: str) -> str:
    """The SSHSIG namespace of a message type: one each, so that no signature counts as another."""
    return f"{message_type}@{ORIGIN}"


def _signed_blob(space: str, data: bytes) -> bytes:
    digest = hashlib.sha512(data).digest()
    return MAGIC + ssh_string(space.encode()) + ssh_string(b"") + ssh_string(HASH) + ssh_string(digest)


def _armored(blob: bytes, space: str, raw: bytes) -> str:
    outer = (
        MAGIC
        + struct.pack(">I", VERSION)
        + ssh_string(blob)
        + ssh_string(space.encode())
        + ssh_string(b"")
        + ssh_string(HASH)
        + ssh_string(ssh_string(SSH_TYPE) + ssh_string(raw))
    )
    text = base64.b64encode(outer).decode("ascii")
    return _BEGIN + "\n".join(text[i : i + _COLUMNS] for i in range(0, len(text), _COLUMNS)) + _END


def sign(key: Ed25519PrivateKey, space: str, data: bytes) -> str:
    """Sign `data` for `space`; returns the armor, byte for byte that of `ssh-keygen -Y sign`."""
    return _armored(ssh_blob(ssh_line(key.public_key())), space, key.sign(_signed_blob(space, data)))


def raw(armored: str) -> bytes:
    """The 64 bytes of the Ed25519 signature in an armor; with the signer they say all of it."""
    return _last_bytes(armored, 64)


def armor(signer: str, space: str, signed: bytes) -> str:
    """The armor again, from the signer (an `ssh-ed25519 …` line) and `raw`."""
    return _armored(ssh_blob(signer), space, signed)


def verify(armored: str, signer: str, space: str, data: bytes) -> None:
    """Check that `signer` (an `ssh-ed25519 …` line) signed `data` for `space`.

    Raises:
        SealError: another signer, another namespace, other bytes, or not an SSHSIG signature.
    """
    # An Ed25519 signature fixes everything else in the armor, so only its 64 bytes are taken from the
    # text; the rest is written anew and compared: no parser, no second spelling.
    raw = _last_bytes(armored, 64)
    if armored != _armored(ssh_blob(signer), space, raw):
        raise SealError("the signature is not of the expected signer, or not for this purpose")
    try:
        public_key(signer).verify(raw, _signed_blob(space, data))
    except InvalidSignature as error:
        raise SealError("the signature does not fit the bytes it stands beside") from error


def _last_bytes(armored: str, count: int) -> bytes:
    if not (armored.startswith(_BEGIN) and armored.endswith(_END) and len(armored) < 4096):
        raise SealError("this is not an SSH signature")
    body = armored[len(_BEGIN) : -len(_END)].replace("\n", "")
    try:
        decoded = base64.b64decode(body.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise SealError("this is not an SSH signature") from error
    if len(decoded) < count:
        raise SealError("this is not an SSH signature")
    return decoded[-count:]
