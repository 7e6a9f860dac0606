"""Shelves over SFTP: the same code against the store's own server and against OpenSSH.

Guarantees: a put goes to `<name>.part`, every WRITE is answered, the file is brought to the disk where
`fsync@openssh.com` is offered, its size is looked at, and only then it gets its name (`posix-rename`). When
the answer to the rename is lost, we connect again and look before anything is said about it.

An interrupted put leaves a `.part`. With a `Mark` it is gone on with, at the last offset for which the server
confirmed an fsync after every WRITE before it, and only if the part begins as our file does and has our bytes
before that offset (`_HEAD`, `_WINDOW`: a sealed file begins with a random key of its own, so another file or
another sealing of the same batch differs there). A size alone proves nothing: after a power cut a file may be
long and empty. Without a mark, without fsync, or when anything differs, the put begins again. A part of a
file that is brought here is gone on with in the same way (`get_rest`); its owner knows what of it is lasting.

Leaves to others: proof. A reply over SFTP is not a receipt; only the store's signed one lets a terminal
forget its copy. One thread per session; sessions in several threads do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import BinaryIO, Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import keys
from schemas.errors import AccessDenied, Damaged, FormatError, OutcomeUnknown, SyncError, TransitError
from schemas.names import PART_SUFFIX, ShelfName, shelf_name
from schemas.transit import sftp_packets as p
from schemas.transit.dial import Link, dial, paramiko_key
from schemas.transit.pump import Lost, Pump, refusal
from schemas.transit.shelf import Absent, Progress, ShelfFull, check_limit, read_piece

MAX_NAMES = 1_000_000
"""Entries of a folder listing that are looked at."""
_RENAMING = 300.0  # seconds: the embedded server brings file and folder to the disk before it answers
_AHEAD = 4  # READDIR requests under way
_HEAD, _WINDOW = 16 * 1024, 256 * 1024  # bytes of a part that are read back before it is gone on with


class Mark(Protocol):
    """Remembers on this side how much of one upload is on the other side's disk; a hint, always proved."""

    def load(self) -> int:
        """Bytes from the beginning that were confirmed; 0 if nothing is known."""

    def save(self, offset: int) -> None:
        """Remember an offset; 0 forgets."""


def connect(
    *,
    host: str,
    port: int,
    user: str,
    key: bytes | Ed25519PrivateKey,
    host_key: str,
    timeout: float = 30,
    reach: float | None = None,
) -> SftpSession:
    """Open a session with a store; use it in a `with` statement.

    Args:
        host: name or address of the store.
        port: TCP port.
        user: the facility's name (the Unix account, on OpenSSH).
        key: this terminal's key, an OpenSSH private key file's bytes or the key itself.
        host_key: the pinned host key, `ssh-ed25519 AAAA…`.
        timeout: seconds without an answer after which the connection counts as lost.
        reach: seconds for the first answer to a call, if that is to be quicker.

    Raises:
        HostKeyError: the server is not the one that was trusted: never try again.
        AccessDenied: the store does not know this key.
        TransitError: no connection: try again later.
        FormatError: `key` or `host_key` is not an Ed25519 key.
    """
    ours, theirs = paramiko_key(key), keys.ssh_blob(host_key)
    return SftpSession(lambda: dial(host, port, user, ours, theirs, timeout, reach))


class SftpSession:
    """A session with a store. Closed by `close` or at the end of a `with` statement."""

    def __init__(self, call: Callable[[], Link]) -> None:
        self._call = call
        self._link = call()

    def shelf(self, folder: Literal["in", "out"]) -> SftpShelf:
        """One of the facility's two shelves."""
        return SftpShelf(self, folder)

    @property
    def pump(self) -> Pump:
        """The conversation under way."""
        return self._link.pump

    def call_again(self) -> None:
        """Replace a connection that broke; raises as `connect` does."""
        self._link.close()
        self._link = self._call()

    def close(self) -> None:
        """End the session."""
        self._link.close()

    def __enter__(self) -> SftpSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SftpShelf:
    """A `Shelf` at the other end of an SFTP session."""

    def __init__(self, session: SftpSession, folder: str) -> None:
        self._session = session
        self._folder = folder.encode("ascii")

    def put(
        self,
        name: ShelfName,
        source: BinaryIO,
        size: int,
        progress: Progress | None = None,
        mark: Mark | None = None,
    ) -> None:
        """See `Shelf.put`.

        Args:
            name: its final name.
            source: as for every shelf; with a mark it can seek, and stands at its beginning.
            size: bytes.
            progress: told about bytes sent.
            mark: where an earlier try of this very file ended, kept up to date.

        Raises:
            ShelfFull: the store has no room for it now.
            TransitError: it did not get there: try again later.
            OutcomeUnknown: it may have got there, and the store could not be asked.
            AccessDenied: the store does not take it.
            Damaged: the source is shorter or longer than `size`.
        """
        pump, final, part = self._session.pump, self._path(name), self._path(name, PART_SUFFIX)
        begun = mark.load() if mark is not None and pump.can_fsync else 0
        if mark is not None and begun:
            if self.size(name) == size:
                mark.save(0)
                self._discard(part)
                return
            handle = self._open_again(part, source, begun, size)
            if handle is not None:
                self._fill(handle, part, source, size, progress, start=begun, mark=mark)
                self._publish(name, part, final, size)
                mark.save(0)
                return
            mark.save(0)  # before there is a new part that it does not speak of
            source.seek(0)
        # one round trip: is it there, away with a part left behind, open a new one
        there = pump.request(p.LSTAT, p.string(final))
        swept = pump.request(p.REMOVE, p.string(part))
        flags = p.FLAG_WRITE | p.FLAG_CREATE | p.FLAG_EXCLUSIVE
        opened = pump.request(p.OPEN, p.string(part), p.u32(flags), p.NO_ATTRIBUTES)
        pump.forget(swept)
        if self._size_of(there) == size:
            with suppress(SyncError):
                pump.close(pump.handle(opened, "open a file"))
                self._discard(part)
            return
        handle = pump.handle(opened, "create a file")
        self._fill(handle, part, source, size, progress, start=0, mark=mark)
        self._publish(name, part, final, size)
        if mark is not None:
            mark.save(0)

    def _open_again(self, part: bytes, source: BinaryIO, begun: int, size: int) -> bytes | None:
        """Open a part whose bytes before `begun` are ours, and bring the source there; None if it is not."""
        pump = self._session.pump
        flags = p.FLAG_READ | p.FLAG_WRITE
        opened = pump.request(p.OPEN, p.string(part), p.u32(flags), p.NO_ATTRIBUTES)
        try:
            handle = pump.handle(opened, "open a file")
        except Lost:
            raise
        except (TransitError, AccessDenied):
            return None
        try:
            found = pump.attributes(pump.request(p.FSTAT, p.string(handle)), "look at a file")
            ours = found.regular and found.size is not None and begun <= found.size <= size
            ours = ours and self._alike(handle, source, begun)
        except Lost:
            raise
        except (TransitError, AccessDenied, Damaged):
            ours = False
        if ours:
            return handle
        pump.close(handle)
        return None

    def _fill(
        self,
        handle: bytes,
        part: bytes,
        source: BinaryIO,
        size: int,
        progress: Progress | None,
        *,
        start: int,
        mark: Mark | None,
    ) -> None:
        """Write the rest of a part and close it; what failed for another reason than the road is removed."""
        pump, confirmed = self._session.pump, None if mark is None else mark.save
        try:
            pump.write_file(handle, source, size, progress, start=start, confirmed=confirmed)
            if pump.can_fsync:
                pump.close(handle)
            else:  # then the answer to CLOSE is the last to say that a disk is full
                pump.status(pump.request(p.CLOSE, p.string(handle)), "close a file")
        except Lost:
            raise
        except BaseException as error:
            room = True
            with suppress(SyncError):
                room = not isinstance(error, TransitError) or pump.has_room(self._folder)
                pump.close(handle)
                self._discard(part)
            if mark is not None:
                mark.save(0)
            if not room:
                raise ShelfFull("the disk of the store's shelf is full") from error
            raise

    def get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        """See `Shelf.get`; a small file costs two round trips."""
        pump = self._session.pump
        with self._opened(name) as handle:
            looked = pump.request(p.FSTAT, p.string(handle))
            first = pump.request(p.READ, p.string(handle), p.u64(0), p.u32(p.SAFE_DATA))
            try:
                size = self._size_within(looked, limit)
            except BaseException:
                pump.forget(first)
                raise
            pump.read_file(handle, size, sink, progress, first=first)
            return size

    def get_rest(
        self, name: ShelfName, part: BinaryIO, begun: int, limit: int, progress: Progress | None = None
    ) -> int | None:
        """Get what is missing of a file.

        Args:
            name: its name.
            part: can be read, written and positioned; its first `begun` bytes are of an earlier try. It
                is written from there on, if they prove to be this file's as for `put`.
            begun: how many, at least 1.
            limit: as for `get`.
            progress: told about bytes received.

        Returns:
            The size of the file; None if the part is not of this file: nothing was written.

        Raises:
            As `get`.
        """
        pump = self._session.pump
        with self._opened(name) as handle:
            size = self._size_within(pump.request(p.FSTAT, p.string(handle)), limit)
            if begun > size or not self._alike(handle, part, begun):
                return None
            part.seek(begun)
            pump.read_file(handle, size, part, progress, start=begun)
            return size

    @contextmanager
    def _opened(self, name: ShelfName) -> Iterator[bytes]:
        """A handle to read a file."""
        pump = self._session.pump
        asked = p.string(self._path(name)), p.u32(p.FLAG_READ), p.NO_ATTRIBUTES
        handle = pump.handle(pump.request(p.OPEN, *asked), "open a file")
        try:
            yield handle
        finally:
            with suppress(Lost):
                pump.close(handle)

    def _size_within(self, looked: int, limit: int) -> int:
        found = self._session.pump.attributes(looked, "look at a file")
        if found.size is None or not found.regular:
            raise FormatError("what lies on the shelf is not a file")
        check_limit(found.size, limit)
        return found.size

    def _alike(self, handle: bytes, ours: BinaryIO, begun: int) -> bool:
        """Whether the first `begun` bytes on both sides are of one file, as far as its ends show."""
        for at, length in ((0, min(_HEAD, begun)), (max(0, begun - _WINDOW), min(_WINDOW, begun))):
            ours.seek(at)
            if self._session.pump.read_window(handle, at, length) != read_piece(ours, length):
                return False
        return True

    def try_get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> bool:
        """See `Shelf.try_get`; one round trip when there is nothing."""
        try:
            self.get(name, sink, limit, progress)
        except Absent:
            return False
        return True

    def names(self) -> list[ShelfName]:
        """See `Shelf.names`."""
        pump = self._session.pump
        handle = pump.handle(pump.request(p.OPENDIR, p.string(self._folder)), "list a shelf")
        found: list[ShelfName] = []
        seen, asked = 0, [pump.request(p.READDIR, p.string(handle)) for _ in range(_AHEAD)]
        try:
            while True:
                kind, fields = pump.reply(asked.pop(0))
                if kind == p.STATUS:
                    code = fields.u32()
                    if code != p.EOF:
                        raise refusal(code, "list a shelf")
                    return sorted(found)
                count = fields.u32() if kind == p.NAME else 0
                if count == 0:
                    raise FormatError("the server answered a listing with something else")
                for _ in range(count):
                    seen += 1
                    if seen > MAX_NAMES:
                        raise FormatError("there are too many files on the shelf")
                    text, _, attributes = fields.string(), fields.blob(), fields.attributes()
                    with suppress(FormatError):
                        name = shelf_name(text.decode("ascii", "replace"))
                        if attributes.regular:
                            found.append(name)
                asked.append(pump.request(p.READDIR, p.string(handle)))
        finally:
            pump.forget(*asked)
            with suppress(Lost):
                pump.close(handle)

    def size(self, name: ShelfName) -> int | None:
        """See `Shelf.size`; one round trip."""
        return self._size_of(self._session.pump.request(p.LSTAT, p.string(self._path(name))))

    def remove(self, name: ShelfName) -> None:
        """See `Shelf.remove`; one round trip."""
        pump = self._session.pump
        with suppress(Absent):
            pump.status(
                pump.request(p.REMOVE, p.string(self._path(name))), "remove a file", patience=_RENAMING
            )

    def _publish(self, name: ShelfName, part: bytes, final: bytes, size: int) -> None:
        pump = self._session.pump
        try:
            if p.POSIX_RENAME in pump.extensions:
                fields = p.string(p.POSIX_RENAME), p.string(part), p.string(final)
                number = pump.request(p.EXTENDED, *fields)
            else:
                self._discard(final)  # version 3's own rename refuses a name that is taken
                number = pump.request(p.RENAME, p.string(part), p.string(final))
            pump.status(number, "publish a file", patience=_RENAMING)
        except Lost as lost:
            self._look(name, size, lost)

    def _look(self, name: ShelfName, size: int, lost: Lost) -> None:
        try:
            self._session.call_again()
            found = self.size(name)
        except TransitError as error:
            raise OutcomeUnknown("the connection broke before the store confirmed the file") from error
        if found != size:
            raise lost

    def _discard(self, path: bytes) -> None:
        pump = self._session.pump
        with suppress(Absent):
            pump.status(pump.request(p.REMOVE, p.string(path)), "remove a file")

    def _size_of(self, number: int) -> int | None:
        try:
            found = self._session.pump.attributes(number, "look at a file")
        except Absent:
            return None
        return found.size if found.regular else None

    def _path(self, name: ShelfName, suffix: str = "") -> bytes:
        return self._folder + b"/" + str(shelf_name(str(name))).encode("ascii") + suffix.encode("ascii")
