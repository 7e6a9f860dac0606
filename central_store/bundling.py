"""The bundles of an open catalog: sheets of them, which follow its parts.

    sheets    file, last, crc    in the database: the files; of later parts than the last no bundle is in any
    renewed   study              of these studies no bundle in a file counts

Bundles of what came last, and those of renewed studies, are in memory: they are made from the parts again
when the catalog is opened. Where they are many, they go behind the last file, which is written anew until it
is full; what came of one study and modality by then is put together. Where many were renewed, every file
with some is written anew.

Guarantees: what a batch costs follows the batch, but for one file of about `FULL` rows after `SEAL` of them.
Both tables change in transactions of the catalog, and files that are in no list are removed when it is
opened: a crash leaves no bundle missing and none twice.

Leaves to others: the transactions (`central_store.catalog`), the statements (`central_store.bundles`).
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from central_store import bundles
from central_store.sheets import Sheet, coded, joined, put_together, read, write
from schemas.errors import Damaged

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SEAL = 4096
"""Bundles in memory before they go to a file; and studies that are renewed before files are written anew."""
KEYS = 64
"""So many recent keys of look-ups go to a file at once for one bundle that does."""
FULL = 1 << 15
"""Rows of a file that gets no more."""
WIDE = 32 << 20
"""Bytes of the same, whatever a facility sends."""
FEW = 256
"""Parts of a batch that become bundles in less time than DuckDB needs to plan how."""
SUFFIX = ".sheet"
_SLICE = 1 << 16
"""Objects whose bundles are made at once in a rebuild."""

DDL: tuple[str, ...] = (
    "CREATE TABLE sheets (file VARCHAR NOT NULL, last BIGINT NOT NULL, crc BIGINT NOT NULL)",
    "CREATE TABLE renewed (study BIGINT NOT NULL)",
)
_LAST = "SELECT coalesce(max(first + rows), 1) - 1 FROM spans"
_FOLD = "SELECT t, lower(t) FROM (SELECT unnest($1::VARCHAR[]) AS t)"
_ENDS = "SELECT first + rows - 1 FROM spans ORDER BY first"


@dataclass(frozen=True)
class _File:
    path: Path
    last: int
    sheet: Sheet


class Bundles:
    """The live sheets.

    Args:
        connection: the catalog's.
        folder: where the files lie.
        seal: see `SEAL`.

    Raises:
        Damaged: a file is missing or not what was written.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path, *, seal: int = SEAL) -> None:
        self._connection, self._folder, self._seal = connection, folder, seal
        self._recent: list[Sheet] = []
        self._renewed: list[Sheet] = []
        self._fresh: list[tuple[Sequence[int], int, Sheet]] = []
        listed = connection.execute("SELECT file, last, crc FROM sheets ORDER BY last").fetchall()
        files = {file for file, *_ in listed}
        for path in folder.glob(f"*{SUFFIX}"):
            if path.name not in files:
                path.unlink()
        renewed = [study for (study,) in connection.execute("SELECT DISTINCT study FROM renewed").fetchall()]
        self._files = [
            _File(folder / file, last, read(folder / file, crc).without(renewed))
            for file, last, crc in listed
        ]
        if renewed:
            self._renewed = [self._made(bundles.OF_STUDIES, studies=renewed)]
        ((self._last,),) = connection.execute(_LAST).fetchall()
        if self._last > self._sealed:
            self._recent = [self._made(bundles.OF_PARTS, low=self._sealed + 1, high=self._last, but=renewed)]

    @property
    def _sealed(self) -> int:
        return self._files[-1].last if self._files else 0

    def _made(self, sql: str, **given: Any) -> Sheet:
        return Sheet(coded(self._connection.sql(sql, params=given).to_arrow_table()))

    def sheets(self) -> Sequence[Sheet]:
        """All of them: what counts of a part is in one bundle."""
        return (*(file.sheet for file in self._files), *self._renewed, *self._recent)

    def release(self) -> None:
        """Give the memory of mapped files back."""
        for file in self._files:
            file.sheet.release()

    # -- within a transaction of the catalog: afterwards say `kept` or `forgotten` ------------------

    def add(self, parts: pa.Table, last: int) -> None:
        """Take in the bundles of a new batch.

        Args:
            parts: as `central_store.catalog_rows.arrange` makes them.
            last: the number of its last object.
        """
        if len(parts) <= FEW:
            made = Sheet(coded(bundles.of_parts(parts, self._folded)))
        else:
            low = parts["part"][0].as_py()  # they ascend
            made = self._made(bundles.OF_PARTS, low=low, high=last, but=[])
        self._fresh.append(((), last, made))

    def _folded(self, texts: list[str | None]) -> list[str | None]:
        other = {text for text in texts if text and not text.isascii()}
        known = dict(self._connection.execute(_FOLD, [[*other]]).fetchall()) if other else {}
        return [text and known.get(text, text.lower()) for text in texts]

    def renew(self, studies: Sequence[int]) -> None:
        """Make the bundles of these studies anew: counts changed, or numbers, or rows went."""
        if studies:
            self._connection.execute("INSERT INTO renewed SELECT unnest($1::BIGINT[])", [list(studies)])
            self._fresh.append((studies, 0, self._made(bundles.OF_STUDIES, studies=list(studies))))

    def kept(self) -> None:
        """The transaction is lasting."""
        for studies, last, made in self._fresh:
            self._last = max(self._last, last)
            if studies:
                self._files = [_File(f.path, f.last, f.sheet.without(studies)) for f in self._files]
                self._recent = [sheet.without(studies) for sheet in self._recent]
                self._renewed = [*(sheet.without(studies) for sheet in self._renewed), made]
            else:
                self._recent.append(made)
        self._fresh.clear()
        for pieces in (self._recent, self._renewed):
            while len(pieces) > 1 and len(pieces[-2].rows) < 2 * len(pieces[-1].rows):
                pieces[-2:] = [joined(pieces[-2:])]

    def forgotten(self) -> None:
        """The transaction failed."""
        self._fresh.clear()

    # -- between transactions ---------------------------------------------------------------------

    def tidy(self, *, settle: bool = False) -> None:
        """Let bundles go to files if many are in memory.

        Args:
            settle: leave nothing in files that does not count any more.
        """
        dropped = [file for file in self._files if file.sheet.dropped]
        left = sum(len(file.sheet.dropped) for file in dropped)
        if (left and (settle or left > self._seal)) or self._many(self._renewed):
            self._write(dropped, [*self._renewed, *self._recent], whole=True)
        elif self._many(self._recent):
            self._write([], self._recent)

    def _many(self, sheets: Sequence[Sheet]) -> bool:
        return sum(len(sheet.rows) for sheet in sheets) > self._seal or _wide(sheets) > WIDE // 4

    def _write(self, anew: Sequence[_File], new: Sequence[Sheet], *, whole: bool = False) -> None:
        """Put sheets into a file, or behind the last one; write others anew without what does not count.

        Args:
            anew: the others.
            new: the sheets.
            whole: they are all there are in memory.
        """
        behind = self._files[-1] if self._files else None
        if behind and (len(behind.sheet.rows) >= FULL or _wide([behind.sheet]) >= WIDE):
            behind = None
        old = [file for file in self._files if file is behind or file in anew]
        made = [self._file(file.last, joined([file.sheet])) for file in old if file is not behind]
        made.append(self._file(self._last, put_together(behind.sheet if behind else None, new)))
        execute = self._connection.execute
        execute("BEGIN")
        try:
            for file in old:
                execute("DELETE FROM sheets WHERE file = ?", [file.path.name])
            for file, crc in made:
                execute("INSERT INTO sheets VALUES (?, ?, ?)", [file.path.name, file.last, crc])
            if whole:
                execute("DELETE FROM renewed")
        except BaseException:
            execute("ROLLBACK")
            raise
        execute("COMMIT")
        stay = [file for file in self._files if file not in old]
        self._files = sorted([*stay, *(file for file, _ in made)], key=lambda file: file.last)
        self._recent = []
        if whole:
            self._renewed = []
        for file in old:
            file.path.unlink()

    def _file(self, last: int, sheet: Sheet) -> tuple[_File, int]:
        path = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        crc = write(path, sheet)
        try:
            return _File(path, last, read(path, crc)), crc
        except Damaged as error:
            raise OSError(errno.EIO, "a file is not what was written") from error

    def remake(self) -> None:
        """Make all of them from the parts, of which there are none yet: the last step of a rebuild."""
        low, high = 1, 0
        for (high,) in self._connection.execute(_ENDS).fetchall():
            if high - low >= _SLICE:
                self._take(low, high)
                low = high + 1
        if low <= high:
            self._take(low, high)

    def _take(self, low: int, high: int) -> None:
        self._recent.append(self._made(bundles.OF_PARTS, low=low, high=high, but=[]))
        self._last = high
        self.tidy()


def _wide(sheets: Iterable[Sheet]) -> int:
    return sum(sheet.rows.nbytes for sheet in sheets)
