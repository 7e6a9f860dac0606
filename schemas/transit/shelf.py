"""A shelf: a folder both sides reach, where files appear whole or not at all.

Guarantees: a name is only ever a `ShelfName`; a file under its final name is complete; putting a file that
lies there already with the same size changes nothing, so every step may be repeated; `names()` never shows
a file that is still being written, nor one that has no place on a shelf.

Leaves to others: what is in the files (`schemas.container`), who may reach which shelf
(`central_store.sftp_server`), the same over a network (`schemas.transit.sftp`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from schemas.errors import Damaged, FormatError, TransitError
from schemas.names import ShelfName, shelf_name
from schemas.transit import durable

Progress = Callable[[int], None]
"""Called with the number of bytes moved since the last call."""

PIECE = 1 << 20


class Absent(TransitError):
    """There is no such file on the shelf (yet, or any more)."""

    hint = "Nothing is lost. It may not have been written yet: try again later."


class ShelfFull(TransitError):
    """The store has no room on the shelf now."""

    hint = "Nothing is lost. It has room again when it has taken in what waits; if not: tell its operator."


class Shelf(Protocol):
    """What both sides do with a shelf. All may raise `TransitError` or `AccessDenied` over a network."""

    def put(self, name: ShelfName, source: BinaryIO, size: int, progress: Progress | None = None) -> None:
        """Put a file on the shelf; lasting when it returns, as far as the other side can promise it.

        Args:
            name: its final name; left alone if it is there with the same size, replaced otherwise.
            source: read from where it stands, exactly `size` bytes to its end.
            size: bytes.
            progress: told about bytes sent.

        Raises:
            Damaged: the source is shorter or longer than `size`.
        """

    def get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        """Copy a file into `sink` and return its size in bytes.

        After an error the sink may hold part of the file.

        Raises:
            Absent: there is no such file.
            FormatError: it is larger than `limit` bytes; nothing was written.
        """

    def try_get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> bool:
        """As `get`, but returns False when there is no such file: the cheap way to wait for one."""

    def names(self) -> list[ShelfName]:
        """The files that lie here complete, sorted by name."""

    def size(self, name: ShelfName) -> int | None:
        """Size in bytes, or None if it is not there."""

    def remove(self, name: ShelfName) -> None:
        """Take a file off the shelf; one that is gone already is fine."""


class Shelves(NamedTuple):
    """The two shelves of a facility as one end sees them."""

    put: Shelf
    take: Shelf


def store_shelves(folder: Path) -> Shelves:
    """The store's view of a facility's folder: it takes from `in` and puts into `out`."""
    return Shelves(put=FolderShelf(folder / "out"), take=FolderShelf(folder / "in"))


def terminal_shelves(folder: Path) -> Shelves:
    """The terminal's view of the same folder, reached locally."""
    return Shelves(put=FolderShelf(folder / "in"), take=FolderShelf(folder / "out"))


class FolderShelf:
    """A shelf that is a folder of this machine; the folder exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: ShelfName) -> Path:
        """Where a file lies; for the owner of the folder, who may want to read it in place."""
        return self._folder / str(shelf_name(str(name)))

    def put(self, name: ShelfName, source: BinaryIO, size: int, progress: Progress | None = None) -> None:
        """See `Shelf.put`. Raises `OSError` when the disk fails."""
        if self.size(name) == size:
            durable.settle(self.path(name))
            return
        durable.publish(self.path(name), lambda sink: copy(source, sink, size, progress), replace=True)

    def get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        """See `Shelf.get`."""
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Absent("there is no such file on the shelf") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Absent("there is no such file on the shelf")
            check_limit(status.st_size, limit)
            copy(file, sink, status.st_size, progress)
        return status.st_size

    def try_get(self, name: ShelfName, sink: BinaryIO, limit: int, progress: Progress | None = None) -> bool:
        """See `Shelf.try_get`."""
        try:
            self.get(name, sink, limit, progress)
        except Absent:
            return False
        return True

    def names(self) -> list[ShelfName]:
        """See `Shelf.names`."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FormatError):
                    name = shelf_name(entry.name)
                    if entry.is_file(follow_symlinks=False):
                        found.append(name)
        return sorted(found)

    def size(self, name: ShelfName) -> int | None:
        """See `Shelf.size`."""
        try:
            status = self.path(name).lstat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def remove(self, name: ShelfName) -> None:
        """See `Shelf.remove`."""
        durable.remove(self.path(name))


def check_limit(size: int, limit: int) -> None:
    """Refuse a file that is too large before anything of it is read."""
    if size > limit:
        raise FormatError(f"a file on the shelf is larger than the {limit} bytes allowed here")


def read_piece(source: BinaryIO, length: int) -> bytes:
    """Read `length` bytes of a file that has them; raises `Damaged`."""
    piece = source.read(length)
    while len(piece) < length:
        more = source.read(length - len(piece))
        if not more:
            raise Damaged("a file became shorter while it was read", hint="Run the command again.")
        piece += more
    return piece


def check_end(source: BinaryIO) -> None:
    """A file ends where its size says; raises `Damaged`."""
    if source.read(1):
        raise Damaged("a file became longer while it was read", hint="Run the command again.")


def copy(source: BinaryIO, sink: BinaryIO, size: int, progress: Progress | None = None) -> None:
    """Copy exactly `size` bytes, all there are; raises `Damaged`."""
    left = size
    while left:
        piece = read_piece(source, min(PIECE, left))
        sink.write(piece)
        left -= len(piece)
        if progress is not None:
            progress(len(piece))
    check_end(source)
