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
from functools import cache
from typing import BinaryIO, NamedTuple, cast

import zstandard

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
_SAVES = 0.95
_LEVEL = 1
_SAMPLE = 1024 * 1024
_WHOLE = 8 * 1024 * 1024
_BLOCK = 256 * 1024
_WINDOW = 1 << 27  # bytes a frame may make the decoder remember


class SealedObject(NamedTuple):
    """A sealed object: SHA-256 and size of the stored bytes, and how they are encoded."""

    sha256: str
    size: int
    encoding: str


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


class _Counted:
    """Writes through, counts and hashes."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        self._sink.flush()


def seal_object(source: BinaryIO, size: int, sink: BinaryIO, domains: Sequence[Domain]) -> SealedObject:
    """Seal a file for the domains.

    Args:
        source: seekable, at its beginning.
        size: its size in bytes.
        sink: takes the age file from where it stands.
        domains: who may open it.
    """
    recipients = [domain.recipient for domain in domains]
    compressor = _compressor()
    if size <= _WHOLE:
        data = source.read()
        frame = compressor.compress(data)
        saves = len(frame) <= _SAVES * size
        stored = envelope.seal_bytes(frame if saves else data, recipients)
        sink.write(stored)
        digest, written = hashlib.sha256(stored), len(stored)
    else:
        saves = _saves(compressor, source, size)
        counted = _Counted(sink)
        reader = compressor.stream_reader(source, size=size, read_size=_BLOCK) if saves else source
        written = envelope.seal(reader, cast(BinaryIO, counted), recipients)
        digest = counted.digest
    return SealedObject(digest.hexdigest(), written, "age+zstd" if saves else "age")


@cache
def _compressor() -> zstandard.ZstdCompressor:
    """One for each process: making its tables costs a third of compressing a slice."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=True)


@cache
def _decoder() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW)


def _saves(compressor: zstandard.ZstdCompressor, source: BinaryIO, size: int) -> bool:
    """Whether compression saves enough, by three samples; leaves the source at its beginning."""
    taken = 0
    for offset in (0, size // 2, size - _SAMPLE):
        source.seek(offset)
        taken += len(compressor.compress(source.read(_SAMPLE)))
    source.seek(0)
    return taken <= _SAVES * 3 * _SAMPLE


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
    exact = _Exact(sink, size)
    if size <= _WHOLE and encoding in ("age", "age+zstd"):
        exact.write(_in_memory(source, encoding, identities, size))
    elif encoding == "age":
        envelope.open_sealed(source, cast(BinaryIO, exact), identities, limit=size)
    elif encoding == "age+zstd":
        # Written in pieces: a few bytes of zstd may hold gigabytes, and none of them is held here.
        frame = _decoder().stream_writer(cast(BinaryIO, exact), write_size=_BLOCK, closefd=False)
        try:
            envelope.open_sealed(source, cast(BinaryIO, frame), identities, limit=size + size // 128 + 1024)
        except zstandard.ZstdError as error:
            raise FormatError("an object holds no readable zstd frame") from error
    else:
        raise FormatError("an object has an encoding this program does not know")
    exact.finish()


def _in_memory(source: BinaryIO, encoding: str, identities: Sequence[str], size: int) -> bytes:
    limit = size + size // 128 + 1024  # of what is sealed: a frame may be a little larger than its content
    plain = envelope.open_bytes(source.read(envelope.sealed_size(limit, 65536) + 1), identities, limit=limit)
    if encoding == "age":
        return plain
    try:
        if zstandard.get_frame_parameters(plain).content_size != size:
            raise FormatError("an object holds another size than its row says")
        return _decoder().decompress(plain, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError("an object holds no readable zstd frame") from error


class _Exact:
    """Writes through exactly `size` bytes."""

    def __init__(self, sink: BinaryIO, size: int) -> None:
        self._sink = sink
        self._left = size

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise FormatError("an object holds more than its row says")
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        self._sink.flush()

    def finish(self) -> None:
        """All of it must have come."""
        if self._left:
            raise FormatError("an object holds less than its row says")
