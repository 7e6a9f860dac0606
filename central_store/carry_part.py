"""A batch on its way from or to a peer, whose road breaks: how much of it arrived, and going on from there.

    peers/<peer>/<batch>.batch.mark     how much of an upload is at the peer, as the peer confirmed
    peers/<peer>/<batch>.batch.part     what is here of a download
    peers/<peer>/<batch>.batch.got      how much of that is lasting

Guarantees: a download gets its name when it is whole and lasting. A part is gone on with only from an offset
that was brought to the disk, and only if it proves to be the beginning of what the peer offers now
(`schemas.transit.sftp`); otherwise it begins again. That a batch is right, only its verification says.

Leaves to others: which batches, and when (`central_store.carry`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from schemas.errors import FormatError
from schemas.names import PART_SUFFIX, ShelfName, shelf_name
from schemas.transit import durable
from schemas.transit.marks import FileMark
from schemas.transit.sftp import SftpShelf
from schemas.transit.shelf import Absent

STEP = 16 * 1024 * 1024
"""Bytes of a download between two points from which it may be gone on with."""
_GOT = ".got"


class Download:
    """One batch from a peer.

    Args:
        name: its name on the peer's shelf.
        marks: our folder for that peer.
    """

    def __init__(self, name: ShelfName, marks: Path) -> None:
        self._name = name
        self._part = marks / f"{name}{PART_SUFFIX}"
        self._mark = FileMark(marks / f"{name}{_GOT}")

    def bring(self, shelf: SftpShelf, final: Path, limit: int, progress: Callable[[int], None]) -> None:
        """Get it, or what is missing of it, and publish it.

        Args:
            shelf: the peer's.
            final: where it goes, on the same file system.
            limit: most bytes.
            progress: told about bytes received.

        Raises:
            Absent: the peer has it no more; nothing is left of it here.
            FormatError: it is too large, or none; likewise.
            TransitError: the road broke: try again.
            OSError: our disk.
        """
        begun = self._begun()
        if begun:
            self._part.chmod(0o600)  # a try that ended just before its end took the right to write away
        else:
            self._part.unlink(missing_ok=True)
        with self._part.open("r+b" if begun else "x+b") as file:

            def moved(count: int) -> None:
                if file.tell() >= self._lasting + STEP:
                    self._keep(file)
                progress(count)

            self._lasting = begun
            try:
                if not begun or shelf.get_rest(self._name, file, begun, limit, moved) is None:
                    self._lasting = 0
                    self._mark.save(0)  # before there are bytes it does not speak of
                    file.seek(0)
                    file.truncate()
                    shelf.get(self._name, file, limit, moved)
            except (Absent, FormatError):
                self.forget()
                raise
            file.truncate()  # of an earlier try there may be more
            durable.finish(file, self._part, final, replace=True)
        self._mark.save(0)

    def _begun(self) -> int:
        """How much of an earlier try is lasting here."""
        with suppress(FileNotFoundError):
            begun = self._mark.load()
            return begun if 0 < begun <= self._part.stat().st_size else 0
        return 0

    def _keep(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
        self._lasting = file.tell()
        self._mark.save(self._lasting)

    def forget(self) -> None:
        """Nothing is left of it."""
        self._mark.save(0)
        self._part.unlink(missing_ok=True)


def begun(marks: Path) -> set[ShelfName]:
    """The downloads of which anything is here."""
    return {
        shelf_name(path.name.removesuffix(suffix))
        for suffix in (PART_SUFFIX, _GOT)
        for path in marks.glob(f"*.batch{suffix}")
    }
