"""The bytes of a tar (POSIX.1-2001 ustar, pax section "ustar Interchange Format"), one spelling only.

Guarantees: a header written here is the only header read here: every field but name and size is fixed,
and the reader writes each header anew and compares. So links, devices, sparse files, long-name
extensions, odd modes and prefixes cannot occur; whatever the bytes, only `FormatError` comes out, no
length from outside is used before it was compared with its limit, and nothing may follow the end.

Numbers are filled with blanks, as tar did before POSIX and every tar still reads: a patient whose ID is a
row of zeros must not seem to be found by an auditor who searches the packs for it.

Written by hand because it is the wire format itself and `tarfile` is the slow part of a pipeline; GNU tar,
bsdtar and `tarfile` read it.

Leaves to others: which members there may be, in which order (`schemas.container`).
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

from schemas.errors import FormatError

BLOCK = 512
MAX_SIZE = 8 * 1024**3 - 1
"""Largest member in bytes: eleven octal digits."""
END = bytes(2 * BLOCK)
"""Two blocks of zeros end the tar."""

_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class Member(NamedTuple):
    """One file in a tar: its name, its size in bytes, and where its content begins."""

    name: str
    size: int
    offset: int


def header(name: str, size: int) -> bytes:
    """The 512 header bytes of a regular file, mode 0644, owner and times zero."""
    raw = name.encode("ascii")
    if not _NAME.fullmatch(raw) or len(raw) > 100 or not 0 <= size <= MAX_SIZE:
        raise FormatError("a tar member's name or size is outside what this format allows")
    number = b"%7o\0" % 0
    fields = b"".join((
        raw.ljust(100, b"\0"), b"%7o\0" % 0o644, number, number, b"%11o\0" % size, b"%11o\0" % 0,
        b" " * 8, b"0", bytes(100), b"ustar\x0000", bytes(64), number, number, bytes(167),
    ))  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def padding(size: int) -> bytes:
    """Zeros that fill the last block of a member."""
    return bytes(-size % BLOCK)


class Reader:
    """Walk a tar from front to end.

    Args:
        source: the tar; read forward only.
        limit: most bytes of content accepted in all members together.
    """

    def __init__(self, source: BinaryIO, *, limit: int) -> None:
        self._source = source
        self._position = 0
        self._budget = limit
        self._left = 0
        self._pad = 0

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise FormatError("the tar is cut short")
        self._position += size
        return data

    def next(self) -> Member | None:
        """The next member, or None at the proper end; the member before must have been read whole."""
        if self._left:
            raise AssertionError("the member before was not read whole")
        if any(self._exactly(self._pad)):
            raise FormatError("a tar member is not padded with zeros")
        self._pad = 0
        head = self._exactly(BLOCK)
        if head == END[:BLOCK]:
            if self._exactly(BLOCK) != END[BLOCK:] or self._source.read(1):
                raise FormatError("the tar does not end where it says")
            return None
        raw = head[:100].rstrip(b"\0")
        digits = head[124:135]
        if not _NAME.fullmatch(raw) or not re.fullmatch(rb" *[0-7]+", digits):
            raise FormatError("a tar header is not one this format allows")
        name, size = raw.decode("ascii"), int(digits, 8)
        if size > MAX_SIZE:
            raise FormatError("a tar member is larger than this format allows")
        if head != header(name, size):
            raise FormatError("a tar header is not one this format allows")
        if size > self._budget:
            raise FormatError("the tar holds more than is allowed here")
        self._budget -= size
        self._left = size
        self._pad = -size % BLOCK
        return Member(name, size, self._position)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the current member; empty at its end."""
        data = self._exactly(min(size, self._left))
        self._left -= len(data)
        return data

    def read_all(self, member: Member, *, limit: int) -> bytes:
        """The whole content of the current member; raises `FormatError` above `limit` bytes."""
        if member.size > limit:
            raise FormatError(f"{member.name} is larger than the {limit} bytes allowed")
        return self.read(member.size)
