"""zstd frames around what is stored, where they save something, and writers that count.

Guarantees: content is compressed only if that saves at least 5 % (of the whole up to 8 MiB, of three samples
beyond); a frame never makes the decoder hold more than a bounded window; sizes are exact or an error.

Leaves to others: what is compressed, and the sealing.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import BinaryIO, NamedTuple

import zstandard

from schemas.errors import FormatError

WHOLE = 8 * 1024 * 1024
"""Up to this size content is handled in memory at once."""
BLOCK = 256 * 1024
_SAVES = 0.95
_LEVEL = 1
_SAMPLE = 1024 * 1024
_NO_FRAME = "an object holds no readable zstd frame"
_WINDOW = 1 << 27  # bytes a frame may make the decoder remember


class Encoded(NamedTuple):
    """An object as it is stored: SHA-256 and size of its bytes, and the row's word for what they are."""

    sha256: str
    size: int
    encoding: str


@cache
def compressor() -> zstandard.ZstdCompressor:
    """One for each process: making its tables costs a third of compressing a slice."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=True)


@cache
def _decoder() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW)


def inflate(frame: bytes, size: int) -> bytes:
    """The content of a frame that must hold `size` bytes; raises `FormatError`."""
    try:
        if zstandard.get_frame_parameters(frame).content_size != size:
            raise FormatError("an object holds another size than its row says")
        return _decoder().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(_NO_FRAME) from error


class Inflated:
    """The content of a frame, read forwards; raises `FormatError`."""

    def __init__(self, source: BinaryIO) -> None:
        self._reader = _decoder().stream_reader(source, read_size=BLOCK, closefd=False)

    def read(self, size: int) -> bytes:
        """The next bytes, as many as asked for unless the content ends."""
        try:
            return self._reader.read(size)
        except zstandard.ZstdError as error:
            raise FormatError(_NO_FRAME) from error


class Inflating:
    """Takes a frame and writes its content through, in pieces: few bytes may hold gigabytes."""

    def __init__(self, sink: BinaryIO) -> None:
        self._writer = _decoder().stream_writer(sink, write_size=BLOCK, closefd=False)

    def write(self, data: bytes) -> int:
        """Take more of the frame; raises `FormatError`."""
        try:
            self._writer.write(data)
        except zstandard.ZstdError as error:
            raise FormatError(_NO_FRAME) from error
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""


def is_smaller(frame: bytes, size: int) -> bool:
    """Whether a frame saves enough over content of that size."""
    return len(frame) <= _SAVES * size


def would_save(source: BinaryIO, size: int) -> bool:
    """Whether compression saves enough, by three samples; leaves the source at its beginning."""
    taken = 0
    for offset in (0, size // 2, size - _SAMPLE):
        source.seek(offset)
        taken += len(compressor().compress(source.read(_SAMPLE)))
    source.seek(0)
    return taken <= _SAVES * 3 * _SAMPLE


class Counted:
    """Writes through, counts and, unless told not to, hashes."""

    def __init__(self, sink: BinaryIO, *, hashing: bool = True) -> None:
        self._sink = sink
        self._hashing = hashing
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Write all of it."""
        if self._hashing:
            self.digest.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        """Flush what is behind."""
        self._sink.flush()


class Exact:
    """Writes through exactly `size` bytes; raises `FormatError`."""

    def __init__(self, sink: BinaryIO, size: int) -> None:
        self._sink = sink
        self._left = size

    def write(self, data: bytes) -> int:
        """Write all of it."""
        self._left -= len(data)
        if self._left < 0:
            raise FormatError("an object holds more than its row says")
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        """Flush what is behind."""
        self._sink.flush()

    def finish(self) -> None:
        """All of it must have come."""
        if self._left:
            raise FormatError("an object holds less than its row says")
