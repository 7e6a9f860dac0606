"""Seal and open a stream with age (C2SP age.md), and notice every failure on the way.

Guarantees:
    * `seal` returns only if every byte reached the writer: pyrage drops an error of its last buffered
      write, so the bytes written are counted and compared with the size the format demands.
    * `open_sealed` raises unless the stream was complete, unaltered and for one of our identities. The
      plaintext is handed out before that is known, so callers write it to a staging place and use it
      only after the function returned.
    * A header is at most 64 KiB and begins as binary age files do, before pyrage sees more of it: it reads
      the header again for each stanza, and one of two megabytes takes it a minute.
    * An error of the reader or writer (a full disk, our own limits) comes out as it was raised; whatever
      else is wrong with sealed bytes comes out as `SealError`.

Leaves to others: who signed the content (`schemas.signature`), processes (pyrage holds the
interpreter lock while it works: callers that have something else to do run it in a worker process).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import pyrage

from schemas.errors import FormatError, SealError
from schemas.keys import age_identity, age_recipient

BUFFER = 1024 * 1024
"""Buffer in bytes of a file that is sealed or opened: pyrage reads and writes 8 KiB at a time."""
_CHUNK = 65536  # age.md, "Payload": plaintext is sealed in chunks of 64 KiB
_TAG = 16
_NONCE = 16
_MAX_HEADER = 65536
_FIRST_LINE = b"age-encryption.org/v1\n"


class _Watched:
    """A file object for pyrage that remembers what went wrong and how much went through."""

    def __init__(self, inner: BinaryIO, *, limit: int | None = None, sealed: bool = False) -> None:
        self._inner = inner
        self._limit = limit
        self._in_header = sealed
        self.head = b""
        self.count = 0
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        self._alive()
        try:
            data = self._inner.read(size)
            if self._in_header:
                self.head += data[: _MAX_HEADER - len(self.head)]
                self._in_header = bool(data) and not _header_ends(self.head)
        except BaseException as error:
            self.error = error
            raise
        self.count += len(data)
        return data

    def write(self, data: bytes) -> int:
        self._alive()
        try:
            if self._limit is not None and self.count + len(data) > self._limit:
                raise _too_large(self._limit)
            if len(self.head) < _MAX_HEADER:
                self.head += bytes(data[: _MAX_HEADER - len(self.head)])
            done = self._inner.write(data)
            while done < len(data):
                more = self._inner.write(memoryview(data)[done:])
                if not more:
                    raise OSError("the disk took no more bytes")
                done += more
        except BaseException as error:
            self.error = error
            raise
        self.count += done
        return done

    def flush(self) -> None:
        self._alive()
        try:
            self._inner.flush()
        except BaseException as error:
            self.error = error
            raise

    def _alive(self) -> None:
        if self.error is not None:  # a dead stream stays dead, whatever the caller makes of the first error
            raise self.error


def _too_large(limit: int) -> FormatError:
    return FormatError(f"the sealed content is larger than the {limit} bytes allowed here")


def sealed_size(plain: int, header: int) -> int:
    """Size in bytes of an age file with `plain` bytes of content and a `header` of that many bytes."""
    return header + _NONCE + plain + _TAG * max(1, -(-plain // _CHUNK))


def _header_ends(head: bytes) -> bool:
    """Whether the first bytes of an age file hold its whole header; raises `SealError` if they cannot."""
    if head[: len(_FIRST_LINE)] != _FIRST_LINE[: len(head)]:
        raise SealError("this is not an age file")
    if b"\n---" in head:
        return True
    if len(head) >= _MAX_HEADER:
        raise SealError(f"the header of a sealed file is longer than {_MAX_HEADER} bytes")
    return False


def _header_size(head: bytes) -> int:
    """Length of an age header: it ends with the line that begins with `---` (age.md, "Header")."""
    mac_line = head.find(b"\n---")
    end = head.find(b"\n", mac_line + 1) if mac_line >= 0 else -1
    if end < 0:
        raise SealError("the sealed file has no age header")
    return end + 1


def seal(reader: BinaryIO, writer: BinaryIO, recipients: Sequence[str]) -> int:
    """Encrypt everything `reader` gives to `recipients`; returns the number of bytes written.

    Args:
        reader: the plaintext, read to its end.
        writer: takes the age file; an error it raises comes out of here unchanged.
        recipients: age X25519 recipients (`age1…`), at least one.

    Raises:
        SealError: fewer bytes were written than the format demands.
        OSError: the reader or the writer failed.
    """
    source, sink = _Watched(reader), _Watched(writer)
    keys = _recipients(recipients)
    try:
        pyrage.encrypt_io(source, sink, keys)
    except BaseException as error:
        raise (source.error or sink.error or _translated(error)) from None
    if failed := (source.error or sink.error):
        raise failed
    if sink.count != sealed_size(source.count, _header_size(sink.head)):
        raise SealError("the sealed file is incomplete: the disk lost its last bytes")
    return sink.count


def seal_pieces(pieces: Iterator[bytes], writer: BinaryIO, recipients: Sequence[str]) -> int:
    """`seal` for content that is made piece by piece."""
    return seal(cast(BinaryIO, _Pieces(pieces)), writer, recipients)


class _Pieces:
    """An iterator of byte strings, read like a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        size = len(self._rest) if size < 0 else size
        block, self._rest = self._rest[:size], self._rest[size:]
        return bytes(block)


def open_sealed(reader: BinaryIO, writer: BinaryIO, identities: Sequence[str], *, limit: int) -> int:
    """Decrypt an age file; returns the number of plaintext bytes written.

    Args:
        reader: the age file.
        writer: takes the plaintext; use it only after this function returned.
        identities: age X25519 identities (`AGE-SECRET-KEY-1…`), any of which may fit.
        limit: most plaintext bytes accepted.

    Raises:
        SealError: not for these identities, cut short, altered, or not an age file.
        FormatError: more than `limit` bytes.
        OSError: the reader or the writer failed.
    """
    source, sink = _Watched(reader, sealed=True), _Watched(writer, limit=limit)
    keys = _identities(identities)
    try:
        pyrage.decrypt_io(source, sink, keys)
    except BaseException as error:
        raise (source.error or sink.error or _translated(error)) from None
    if failed := (source.error or sink.error):
        raise failed
    return sink.count


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        return error
    if isinstance(error, pyrage.DecryptError) and "No matching keys" in str(error):
        return SealError("this is sealed for somebody else")
    # Truncation arrives as OSError, a broken header as DecryptError, a panic as a bare BaseException.
    return SealError("this is not a whole, unaltered age file")


def seal_bytes(plain: bytes, recipients: Sequence[str]) -> bytes:
    """`seal` for content in memory."""
    try:
        sealed: bytes = pyrage.encrypt(plain, _recipients(recipients))
    except BaseException as error:
        raise _translated(error) from None
    if len(sealed) != sealed_size(len(plain), _header_size(sealed[:_MAX_HEADER])):
        raise SealError("the sealed content is incomplete")
    return sealed


def open_bytes(sealed: bytes, identities: Sequence[str], *, limit: int) -> bytes:
    """`open_sealed` for content in memory: nothing is returned unless all of it is right."""
    if len(sealed) > sealed_size(limit, _MAX_HEADER):
        raise _too_large(limit)
    _header_ends(sealed[:_MAX_HEADER])
    try:
        plain: bytes = pyrage.decrypt(sealed, _identities(identities))
    except BaseException as error:
        raise _translated(error) from None
    if len(plain) > limit:
        raise _too_large(limit)
    return plain


def _recipients(texts: Sequence[str]) -> list[object]:
    if not texts:
        raise SealError("nothing is sealed without a recipient")
    return [pyrage.x25519.Recipient.from_str(age_recipient(text)) for text in texts]


def _identities(texts: Sequence[str]) -> list[object]:
    return [pyrage.x25519.Identity.from_str(age_identity(text)) for text in texts]
