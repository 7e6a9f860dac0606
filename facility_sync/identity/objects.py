"""An object as it is stored, protected or sealed whole, and the original from it.

    encoding      stored bytes                                              read by
    dicom         a protected DICOM file                                    any viewer
    dicom+zstd    the same in one zstd frame                                zstd -d
    age           the original, sealed                                      age -d
    age+zstd      the original in one zstd frame, sealed                    age -d | zstd -d

Guarantees: what comes out of `open_object` has exactly the size the row says, or an error; memory follows
the header, not the pixels.

Leaves to others: which of them it shall be (`facility_sync.capture`), comparing what comes out with the
row (`facility_sync.restore`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, cast

from facility_sync.identity import capsule, cms, frames, protect, sealed
from facility_sync.identity.domains import Keyring
from facility_sync.identity.layout import Front, Layout, read_front
from schemas.container import MAX_CONTENT
from schemas.errors import FormatError

PROTECTED = frozenset({"dicom", "dicom+zstd"})


def store_protected(
    face: protect.Face, layout: Layout, source: BinaryIO, sink: BinaryIO, *, stored: bool = True
) -> frames.Encoded:
    """Write a protected object.

    Args:
        face: all of it but the pixel value.
        layout: of the original.
        source: the original, seekable.
        sink: takes the object from where it stands.
        stored: name it by its SHA-256, and compress it where that saves something; else neither.
    """
    size = len(face.head) + layout.pixels_bytes + len(face.tail)
    counted = frames.Counted(sink, hashing=stored)
    if size <= frames.WHOLE:
        data = b"".join(_pieces(face, layout, source))
        frame = frames.compressor().compress(data) if stored else data
        saves = frames.is_smaller(frame, size)
        counted.write(frame if saves else data)
    else:
        saves = stored and frames.would_save(source, len(layout.front.head) + layout.pixels_bytes)
        deflater = frames.compressor().compressobj(size=size) if saves else None
        for piece in _pieces(face, layout, source):
            counted.write(piece if deflater is None else deflater.compress(piece))
        if deflater is not None:
            counted.write(deflater.flush())
    return frames.Encoded(
        counted.digest.hexdigest() if stored else "", counted.size, "dicom+zstd" if saves else "dicom"
    )


def _pieces(face: protect.Face, layout: Layout, source: BinaryIO) -> Iterator[bytes]:
    yield face.head
    source.seek(len(layout.front.head))
    yield from _exactly(source, layout.pixels_bytes)
    yield face.tail


def _exactly(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        block = source.read(min(size, frames.BLOCK))
        if not block:
            raise FormatError("an object ends inside its pixel value")
        size -= len(block)
        yield block


def open_object(source: BinaryIO, sink: BinaryIO, encoding: str, keyring: Keyring, *, size: int) -> str:
    """Write the original of an object.

    Args:
        source: the stored bytes, read forwards.
        sink: takes the original; use it only after this function returned.
        encoding: as the row says.
        keyring: any of its domains may fit.
        size: of the original in bytes, as the row says; nothing else is accepted.

    Returns:
        The SHA-256 of the original that its facility signed in the capsule; empty for a sealed object.

    Raises:
        SealError: not for these domains, cut short or altered.
        FormatError: another encoding or size than the row says.
    """
    if encoding not in PROTECTED:
        sealed.open_object(source, sink, encoding, keyring, size=size)
        return ""
    exact = frames.Exact(sink, size)
    stored = plain(source, encoding)
    found = opened(stored, readers(keyring), domain_keys(keyring))
    write_original(found, stored, cast(BinaryIO, exact))
    exact.finish()
    return found.capsule.message.original


def plain(source: BinaryIO, encoding: str) -> BinaryIO:
    """A protected object as the DICOM file it is, read forwards."""
    return source if encoding == "dicom" else cast(BinaryIO, frames.Inflated(source))


def write_protected(source: BinaryIO, sink: BinaryIO, encoding: str) -> None:
    """Write the protected DICOM file of an object; raises `FormatError`."""
    if encoding not in PROTECTED:
        raise FormatError("an object that is sealed whole has no protected file")
    stored, left = plain(source, encoding), MAX_CONTENT
    while block := stored.read(frames.BLOCK):
        left -= len(block)
        if left < 0:
            raise FormatError("an object holds more than any file this program takes")
        sink.write(block)


class Opened(NamedTuple):
    """A protected object read up to its pixel value, and the capsule that proved itself in it."""

    front: Front
    capsule: capsule.Capsule


def opened(
    source: BinaryIO, keys: Sequence[cms.Reader], domains: Mapping[str, bytes], *, anyone: bool = False
) -> Opened:
    """Read a protected DICOM file up to its pixel value; arguments and errors as `protect.unprotect`."""
    front = read_front(source)
    return Opened(front, protect.unprotect(front, keys, domains, anyone=anyone))


def write_original(found: Opened, source: BinaryIO, sink: BinaryIO) -> None:
    """Write the original; `source` stands where `opened` left it, and is read forwards.

    The caller compares the SHA-256 of what was written with that in the capsule or the row. Raises
    `FormatError` when the object has fewer bytes of pixels than the original.
    """
    proved = found.capsule
    at, wanted = proved.message.pixels_at, proved.pixels_bytes
    sink.write(proved.rest[:at])
    ahead = found.front.ahead[:wanted]
    sink.write(ahead)
    for block in _exactly(source, wanted - len(ahead)):
        sink.write(block)
    sink.write(proved.rest[at:])


def readers(keyring: Keyring) -> tuple[cms.Reader, ...]:
    """The private keys of every generation of every domain here."""
    return tuple(cms.Reader(item.rsa_key, item.certificate) for item in keyring.generations)


def domain_keys(keyring: Keyring) -> dict[str, bytes]:
    """The capsule key of every domain here."""
    return {domain.id: domain.capsule_key for domain in keyring.domains}
