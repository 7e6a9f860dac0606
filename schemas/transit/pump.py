"""SFTP requests over one SSH channel: many outstanding, every reply looked at.

Guarantees: `write_file` returns only when each WRITE was answered with success, `read_file` only when each
byte arrived, in order; a failed request raises whatever its place in the stream. An offset is confirmed only
when every WRITE before it and an fsync after them were answered with success. Requests are as large as
the other side says it takes (`limits@openssh.com`), 32 KiB if it does not say.

Leaves to others: which files (`schemas.transit.sftp`), the connection (`schemas.transit.dial`). Used by
one thread. After `Lost` the pump is of no more use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import BinaryIO, Protocol

from schemas.errors import AccessDenied, FormatError, TransitError
from schemas.transit import sftp_packets as p
from schemas.transit.shelf import Absent, Progress, ShelfFull, check_end, read_piece
from schemas.transit.ssh import paramiko

IN_FLIGHT = 16 * 1024 * 1024
"""Bytes asked for or sent and not yet answered: 125 MB/s at a round trip of 130 ms."""
_GULP = 4 * 1024 * 1024
CHECKPOINT = 4 * 1024 * 1024
"""Least bytes between two points at which an upload is brought to the server's disk, to go on from there."""
CHECKPOINT_SECONDS = 2.0
"""Least time between them: on a fast line they would save nothing and cost the time of an fsync."""
_SLOW = 300.0  # seconds a disk may take for an fsync or a rename


class Lost(TransitError):
    """The connection broke or fell silent: what was not answered may or may not have happened."""


class Channel(Protocol):
    """What is used of `paramiko.Channel`."""

    def recv(self, nbytes: int) -> bytes:
        """Bytes from the other side, empty at the end."""

    def send(self, s: bytes | memoryview) -> int:
        """Sends some of the bytes and returns how many; 0 when closed."""

    def settimeout(self, timeout: float) -> None:
        """Seconds after which `recv` and `send` raise `TimeoutError`."""


def send_all(channel: Channel, data: bytes) -> None:
    """Send all bytes without copying the rest for each piece; raises `OSError` when the channel is closed."""
    view = memoryview(data)
    while view:
        sent = channel.send(view)
        if sent == 0:
            raise ConnectionResetError("the channel is closed")
        view = view[sent:]


class Pump:
    """A conversation with an SFTP server.

    Args:
        channel: open, with the sftp subsystem started.
        timeout: seconds of silence after which the connection counts as lost.

    Raises:
        Lost: no answer.
        FormatError: the other side does not speak SFTP version 3.
    """

    def __init__(self, channel: Channel, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout
        self._splitter = p.Splitter()
        self._number = 0
        self._replies: dict[int, tuple[int, p.Fields]] = {}
        self._awaited: set[int] = set()
        self._pieces: tuple[int, int] | None = None
        channel.settimeout(timeout)
        self._send(p.version_packet(p.INIT))
        _, fields = self.reply(p.VERSION)
        self.extensions = dict(fields.pairs())
        self._number = p.VERSION

    # -- requests and replies --------------------------------------------------------------------

    def request(self, kind: int, *fields: bytes) -> int:
        """Send a request; returns its number. Each number is asked for once, or forgotten."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._awaited.add(self._number)
        self._send(p.packet(kind, self._number, *fields))
        return self._number

    def reply(self, number: int, *, patience: float | None = None) -> tuple[int, p.Fields]:
        """Wait for a reply: its type and fields. Raises `Lost`, `FormatError`."""
        if patience is not None:
            self._channel.settimeout(max(patience, self._timeout))
        try:
            while number not in self._replies:
                self._receive()
        finally:
            if patience is not None:
                self._channel.settimeout(self._timeout)
        self._awaited.discard(number)
        return self._replies.pop(number)

    def forget(self, *numbers: int) -> None:
        """Nobody will ask for these replies."""
        for number in numbers:
            self._awaited.discard(number)
            self._replies.pop(number, None)

    def status(self, number: int, what: str, *, patience: float | None = None) -> None:
        """Wait for a reply that says success; raises what it says otherwise."""
        kind, fields = self.reply(number, patience=patience)
        code = fields.u32() if kind == p.STATUS else -1
        if code != p.OK:
            raise refusal(code, what, fields)

    def handle(self, number: int, what: str) -> bytes:
        """Wait for a handle; raises what the reply says otherwise."""
        kind, fields = self.reply(number)
        if kind != p.HANDLE:
            raise refusal(fields.u32() if kind == p.STATUS else -1, what, fields)
        return fields.string()

    def attributes(self, number: int, what: str) -> p.Attributes:
        """Wait for a file's attributes; raises what the reply says otherwise."""
        kind, fields = self.reply(number)
        if kind != p.ATTRS:
            raise refusal(fields.u32() if kind == p.STATUS else -1, what)
        return fields.attributes()

    def close(self, handle: bytes) -> None:
        """Give a handle back; nothing depends on the answer."""
        self.forget(self.request(p.CLOSE, p.string(handle)))

    # -- files -----------------------------------------------------------------------------------

    def write_file(
        self,
        handle: bytes,
        source: BinaryIO,
        size: int,
        progress: Progress | None,
        *,
        start: int = 0,
        confirmed: Callable[[int], None] | None = None,
    ) -> None:
        """Write a file from `start` to its `size`, then fsync where offered; each reply was a success.

        Args:
            handle: of an open file.
            source: stands at `start` and ends at `size`.
            size: bytes of the whole file.
            progress: told about bytes sent.
            start: bytes of it that are there already.
            confirmed: told offsets up to which all is on the server's disk, if it offers fsync.

        Raises:
            TransitError: one of them was not, or the file has another size afterwards.
            Damaged: the source is shorter or longer than `size`.
        """
        _, piece = self._sizes(size)
        waiting: deque[tuple[int, int, int]] = deque()  # number; bytes of a WRITE; or offset of an fsync
        sent, unanswered, due, since = start, 0, start + CHECKPOINT, monotonic()
        try:
            while sent < size or waiting:
                while sent < size and unanswered < IN_FLIGHT:
                    data = read_piece(source, min(piece, size - sent))
                    number = self.request(p.WRITE, p.string(handle), p.u64(sent), p.u32(len(data)), data)
                    waiting.append((number, len(data), 0))
                    sent += len(data)
                    unanswered += len(data)
                    ripe = due <= sent < size and monotonic() - since >= CHECKPOINT_SECONDS
                    if ripe and confirmed is not None and self.can_fsync:
                        waiting.append((self._fsync(handle), 0, sent))
                        due, since = sent + CHECKPOINT, monotonic()
                number, length, point = waiting.popleft()
                if point and confirmed is not None:
                    self.status(number, "bring a file to its disk", patience=_SLOW)
                    confirmed(point)
                    continue
                self.status(number, "write a file")
                unanswered -= length
                if progress is not None:
                    progress(length)
            check_end(source)
        finally:
            self.forget(*(number for number, *_ in waiting))
        synced = self._fsync(handle) if self.can_fsync else None
        looked = self.request(p.FSTAT, p.string(handle))
        if synced is not None:
            self.status(synced, "bring a file to its disk", patience=_SLOW)
        if self.attributes(looked, "look at a file").size != size:
            raise TransitError("a file arrived with another size than was sent")

    def read_file(
        self,
        handle: bytes,
        size: int,
        sink: BinaryIO,
        progress: Progress | None,
        *,
        start: int = 0,
        first: int | None = None,
    ) -> None:
        """Read a file from `start` to its `size` into `sink`.

        Args:
            handle: of an open file.
            size: bytes of the whole file; all of them must come.
            sink: written to in order.
            progress: told about bytes received.
            start: where to begin.
            first: number of a READ of `SAFE_DATA` bytes at `start` that is on its way.
        """
        waiting, requested, at = deque[tuple[int, int, int]](), start, start
        if first is not None:
            requested = min(start + p.SAFE_DATA, size)
            waiting.append((first, start, requested - start))
        piece = self._sizes(size)[0] if requested < size else p.SAFE_DATA
        try:
            while at < size:
                while requested < size and requested - at < IN_FLIGHT:
                    length = min(piece, size - requested)
                    waiting.append((self._read(handle, requested, length), requested, length))
                    requested += length
                number, offset, length = waiting.popleft()
                kind, fields = self.reply(number)
                if kind != p.DATA:
                    raise refusal(fields.u32() if kind == p.STATUS else -1, "read a file")
                data = fields.blob()
                if not 0 < len(data) <= length:
                    raise FormatError("the server answered a READ with nothing, or with more than was asked")
                if len(data) < length:  # allowed: ask for the rest before going on
                    rest = offset + len(data), length - len(data)
                    waiting.appendleft((self._read(handle, *rest), *rest))
                sink.write(data)
                at += len(data)
                if progress is not None:
                    progress(len(data))
        finally:
            self.forget(*(number for number, _, _ in waiting))

    def read_window(self, handle: bytes, offset: int, length: int) -> bytes:
        """Read a few bytes in the midst of a file; fewer than asked for where it ends."""
        pieces = [
            self._read(handle, at, min(p.SAFE_DATA, offset + length - at))
            for at in range(offset, offset + length, p.SAFE_DATA)
        ]
        found = []
        try:
            while pieces:
                kind, fields = self.reply(pieces.pop(0))
                if kind != p.DATA:
                    code = fields.u32() if kind == p.STATUS else -1
                    if code != p.EOF:
                        raise refusal(code, "read a file")
                    continue
                found.append(fields.string())
        finally:
            self.forget(*pieces)
        return b"".join(found)

    def has_room(self, path: bytes) -> bool:
        """Whether the disk of a folder has room left; True also when the server does not say."""
        if p.STATVFS not in self.extensions:
            return True
        kind, fields = self.reply(self.request(p.EXTENDED, p.string(p.STATVFS), p.string(path)))
        if kind != p.EXTENDED_REPLY:
            return True
        _, _, _, _, blocks, *_ = (fields.u64() for _ in range(11))  # f_bavail is the fifth
        return blocks > 0

    @property
    def can_fsync(self) -> bool:
        """Whether the server offers `fsync@openssh.com`."""
        return p.FSYNC in self.extensions

    def _fsync(self, handle: bytes) -> int:
        return self.request(p.EXTENDED, p.string(p.FSYNC), p.string(handle))

    def _read(self, handle: bytes, offset: int, length: int) -> int:
        return self.request(p.READ, p.string(handle), p.u64(offset), p.u32(length))

    def _sizes(self, size: int) -> tuple[int, int]:
        """Bytes per READ and per WRITE; asks the server once, and only for a file that is worth it."""
        if self._pieces is None:
            if size <= p.SAFE_DATA or p.LIMITS not in self.extensions:
                return p.SAFE_DATA, p.SAFE_DATA
            kind, fields = self.reply(self.request(p.EXTENDED, p.string(p.LIMITS)))
            if kind != p.EXTENDED_REPLY:
                self._pieces = p.SAFE_DATA, p.SAFE_DATA
            else:
                whole, read, write = fields.u64(), fields.u64(), fields.u64()
                room = max(min(whole, p.MAX_PACKET) - 1024, 1024) if whole else p.SAFE_DATA
                self._pieces = min(read or p.SAFE_DATA, room), min(write or p.SAFE_DATA, room)
        return self._pieces

    # -- the channel -----------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        try:
            send_all(self._channel, data)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Lost("the connection to the store broke") from error

    def _receive(self) -> None:
        try:
            data = self._channel.recv(_GULP)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Lost("the store has not answered in time") from error
        if not data:
            raise Lost("the store closed the connection")
        for view in self._splitter.feed(data):
            fields = p.Fields(view)
            kind, number = fields.u8(), fields.u32()
            if kind == p.VERSION_REPLY and number != p.VERSION:  # it stands in the place of the number
                raise FormatError("the server does not speak SFTP version 3")
            if kind == p.VERSION_REPLY or number in self._awaited:
                self._replies[number] = kind, fields


def refusal(code: int, what: str, rest: p.Fields | None = None) -> Exception:
    """The error for a status that is not success (draft section 7); `rest` begins with its text."""
    if code == p.FAILURE and rest and rest.string() == p.SHELF_FULL:
        return ShelfFull("the store's shelf is full")
    if code == p.NO_SUCH_FILE:
        return Absent("there is no such file on the shelf")
    if code == p.PERMISSION_DENIED:
        return AccessDenied(f"the store did not allow this terminal to {what}")
    if code == p.FAILURE:
        return TransitError(
            f"the store could not {what}",
            hint="Its disk may be full: tell its operator. Nothing is lost; run the command again later.",
        )
    return TransitError(f"the store could not {what}: {p.STATUS_TEXT.get(code, 'unexpected answer')}")
