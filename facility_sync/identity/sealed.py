"""Seals of a domain: a small identity, and a whole object, each an age file.

Guarantees: an object is one zstd frame inside the seal when that saves at least 5 % and the plain bytes
otherwise, and the row says which; what comes out of `open_object` is complete or an error; sizes are
limited before anything is written.

Compression is decided on the whole file up to 8 MiB and on three samples beyond. `age -d | zstd -d`
opens an object without this program.

Leaves to others: comparing what comes out with the row (`facility_sync.restore`), processes (pyrage holds
the interpreter lock).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import BinaryIO, cast

from facility_sync.identity import frames
from facility_sync.identity.domains import Domain, Keyring
from schemas import envelope
from schemas.errors import FormatError, SealError
from schemas.messages import canonical

IDENTITY_VERSION = 1
IDENTITY_KEYS = (
    "patient_name", "patient_id", "issuer", "other_patient_ids", "birth_date", "sex", "accession",
    "study_description", "series_description", "protocol",
)  # fmt: skip
"""What a sealed identity may hold, each a text of at most 300 characters."""
_MAX_IDENTITY = 4096


def seal_identity(identity: Mapping[str, str], domains: Sequence[Domain]) -> bytes:
    """Seal an identity for the domains; empty values are left out, long ones cut."""
    values = {key: identity[key][:300] for key in IDENTITY_KEYS if identity.get(key)}
    plain = canonical(values | {"version": IDENTITY_VERSION})
    while len(plain) > _MAX_IDENTITY:  # only descriptions can be that long
        values.popitem()
        plain = canonical(values | {"version": IDENTITY_VERSION})
    return envelope.seal_bytes(plain, [domain.recipient for domain in domains])


def open_identity(seal: bytes, keyring: Keyring) -> dict[str, str] | None:
    """The identity, or None when no domain here opens it (or it is not one of ours)."""
    try:
        plain = envelope.open_bytes(seal, keyring.age_identities, limit=_MAX_IDENTITY)
        values = json.loads(plain)
    except (SealError, FormatError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.pop("version", None) != IDENTITY_VERSION:
        return None
    return {key: value for key, value in values.items() if key in IDENTITY_KEYS and isinstance(value, str)}


def seal_object(source: BinaryIO, size: int, sink: BinaryIO, domains: Sequence[Domain]) -> frames.Encoded:
    """Seal a file for the domains.

    Args:
        source: seekable, at its beginning.
        size: its size in bytes.
        sink: takes the age file from where it stands.
        domains: who may open it.
    """
    recipients = [domain.recipient for domain in domains]
    compressor = frames.compressor()
    if size <= frames.WHOLE:
        data = source.read()
        frame = compressor.compress(data)
        saves = frames.is_smaller(frame, size)
        stored = envelope.seal_bytes(frame if saves else data, recipients)
        sink.write(stored)
        digest, written = hashlib.sha256(stored), len(stored)
    else:
        saves = frames.would_save(source, size)
        counted = frames.Counted(sink)
        reader = compressor.stream_reader(source, size=size, read_size=frames.BLOCK) if saves else source
        written = envelope.seal(reader, cast(BinaryIO, counted), recipients)
        digest = counted.digest
    return frames.Encoded(digest.hexdigest(), written, "age+zstd" if saves else "age")


def open_object(source: BinaryIO, sink: BinaryIO, encoding: str, keyring: Keyring, *, size: int) -> None:
    """Open a sealed object.

    Args:
        source: the age file.
        sink: takes the plain file; use it only after this function returned.
        encoding: as the row says.
        keyring: any generation of any of its domains may fit.
        size: of the plain file in bytes, as the row says; nothing else is accepted.

    Raises:
        SealError: not for these domains, cut short or altered.
        FormatError: another encoding or size than the row says, or no zstd frame.
    """
    identities = keyring.age_identities
    exact = frames.Exact(sink, size)
    if size <= frames.WHOLE and encoding in ("age", "age+zstd"):
        exact.write(_in_memory(source, encoding, identities, size))
    elif encoding == "age":
        envelope.open_sealed(source, cast(BinaryIO, exact), identities, limit=size)
    elif encoding == "age+zstd":
        frame = frames.Inflating(cast(BinaryIO, exact))
        envelope.open_sealed(source, cast(BinaryIO, frame), identities, limit=size + size // 128 + 1024)
    else:
        raise FormatError("an object has an encoding this program does not know")
    exact.finish()


def _in_memory(source: BinaryIO, encoding: str, identities: Sequence[str], size: int) -> bytes:
    limit = size + size // 128 + 1024  # of what is sealed: a frame may be a little larger than its content
    plain = envelope.open_bytes(source.read(envelope.sealed_size(limit, 65536) + 1), identities, limit=limit)
    return plain if encoding == "age" else frames.inflate(plain, size)
