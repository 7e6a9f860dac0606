"""SFTP version 3 packets: built and parsed, nothing else.

Guarantees: `Splitter` and `Fields` refuse, with `FormatError`, whatever is not a well-formed packet within
the size limit, before memory is set aside for it. No I/O here; both the client and the server use it.

Source: draft-ietf-secsh-filexfer-02 (version 3) and OpenSSH's PROTOCOL file, section 4 (extensions).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from schemas.errors import FormatError

VERSION = 3

INIT, VERSION_REPLY, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
SETSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH = 9, 10, 11, 12, 13, 14, 15, 16
STAT, RENAME, READLINK, SYMLINK = 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST, OP_UNSUPPORTED = 5, 6, 7, 8
STATUS_TEXT = {
    OK: "success",
    EOF: "end of file",
    NO_SUCH_FILE: "no such file",
    PERMISSION_DENIED: "permission denied",
    FAILURE: "failure",
    BAD_MESSAGE: "bad message",
    OP_UNSUPPORTED: "not supported",
}

FLAG_READ, FLAG_WRITE, FLAG_APPEND, FLAG_CREATE, FLAG_TRUNCATE, FLAG_EXCLUSIVE = 1, 2, 4, 8, 16, 32

POSIX_RENAME, FSYNC, LIMITS = b"posix-rename@openssh.com", b"fsync@openssh.com", b"limits@openssh.com"
STATVFS = b"statvfs@openssh.com"

SHELF_FULL = b"the shelf is full"
"""Text of the store's FAILURE when a quota or its disk is in the way; version 3 has no code for it."""

MAX_PACKET = 256 * 1024
"""Largest packet in bytes after its length field: OpenSSH's `SFTP_MAX_MSG_LENGTH`, ours too."""
MAX_DATA = MAX_PACKET - 1024
"""Largest piece of a file in one READ or WRITE, in bytes, where the other side allows it."""
SAFE_DATA = 32 * 1024
"""The piece every server takes (draft section 3); larger ones only after asking for its limits."""

_U32, _U64, _HEAD = struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">IBI")

_ATTR_SIZE, _ATTR_OWNER, _ATTR_MODE, _ATTR_TIMES, _ATTR_EXTENDED = 1, 2, 4, 8, 0x80000000
NO_ATTRIBUTES = _U32.pack(0)


class Attributes(NamedTuple):
    """What is known about a file."""

    size: int | None = None
    mode: int | None = None
    mtime: int | None = None

    @property
    def regular(self) -> bool:
        """False only if the server says that it is something else than a file."""
        return self.mode is None or stat.S_IFMT(self.mode) in (0, stat.S_IFREG)


def u32(value: int) -> bytes:
    """`uint32` of RFC 4251."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """`uint64` of RFC 4251."""
    return _U64.pack(value)


def string(value: bytes) -> bytes:
    """`string` of RFC 4251: length and bytes."""
    return _U32.pack(len(value)) + value


def packet(kind: int, number: int, *fields: bytes) -> bytes:
    """A whole packet: length, type, request number (or version), fields."""
    return b"".join((_HEAD.pack(5 + sum(map(len, fields)), kind, number), *fields))


def attributes(known: Attributes) -> bytes:
    """`ATTRS` of the draft, section 5."""
    flags, out = 0, b""
    if known.size is not None:
        flags, out = flags | _ATTR_SIZE, out + u64(known.size)
    if known.mode is not None:
        flags, out = flags | _ATTR_MODE, out + u32(known.mode)
    if known.mtime is not None:
        flags, out = flags | _ATTR_TIMES, out + u32(known.mtime) + u32(known.mtime)
    return u32(flags) + out


class Fields:
    """Reads the fields of one packet from the front; every method raises `FormatError`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def view(self, length: int) -> memoryview:
        """The next `length` bytes, not copied."""
        end = self._at + length
        if end > len(self._data):
            raise FormatError("an SFTP packet is shorter than its fields say")
        view = self._data[self._at : end]
        self._at = end
        return view

    def u8(self) -> int:
        """`byte`."""
        return self.view(1)[0]

    def u32(self) -> int:
        """`uint32`."""
        return int.from_bytes(self.view(4), "big")

    def u64(self) -> int:
        """`uint64`."""
        return int.from_bytes(self.view(8), "big")

    def blob(self) -> memoryview:
        """`string`, not copied."""
        return self.view(self.u32())

    def string(self) -> bytes:
        """`string`."""
        return bytes(self.blob())

    def attributes(self) -> Attributes:
        """`ATTRS` (section 5)."""
        flags = self.u32()
        size = self.u64() if flags & _ATTR_SIZE else None
        if flags & _ATTR_OWNER:
            self.view(8)
        mode = self.u32() if flags & _ATTR_MODE else None
        mtime = None
        if flags & _ATTR_TIMES:
            self.view(4)
            mtime = self.u32()
        if flags & _ATTR_EXTENDED:
            for _ in range(self.u32()):
                self.blob()
                self.blob()
        return Attributes(size, mode, mtime)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Name and data of each extension, to the end of the packet."""
        while self:
            yield self.string(), self.string()


class Splitter:
    """Cuts a byte stream into packets; holds at most one incomplete packet."""

    def __init__(self, limit: int = MAX_PACKET) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._held = 0
        self._wanted = 4  # bytes that must be held before there is anything new to see

    @property
    def partial(self) -> bool:
        """Whether a packet began that is not whole yet."""
        return self._held > 0

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Take the next bytes of the stream; yields each complete packet without its length field.

        Raises:
            FormatError: a packet is empty or larger than the limit. The stream cannot be used any more.
        """
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._wanted:
            return
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        view, at = memoryview(whole), 0
        self._wanted = 4
        while len(view) - at >= 4:
            length = int.from_bytes(view[at : at + 4], "big")
            if not 1 <= length <= self._limit:
                raise FormatError("an SFTP packet is larger than allowed")
            if len(view) - at - 4 < length:
                self._wanted = 4 + length
                break
            yield view[at + 4 : at + 4 + length]
            at += 4 + length
        rest = bytes(view[at:])
        self._pieces, self._held = ([rest] if rest else []), len(rest)


def version_packet(kind: int, extensions: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """`INIT` or `VERSION`: they carry a version where others have a request number."""
    return packet(kind, VERSION, *(string(name) + string(data) for name, data in extensions))
