"""The bundles of an open catalog: sheets of them, which follow its parts.

    sheets    file, first, last, crc    in the database: the files, and of which parts each has the bundles
    renewed   low, high                 parts of which the bundles in files do not count any more

Bundles of what came last, and of what was renewed, are in memory: they are made from the parts again when the
catalog is opened. Where they are many, they go behind the last file, which is written anew until it is full;
a file of which much was renewed is written anew too.

Guarantees: what a batch costs follows the batch, but for one file of about `FULL` rows after `SEAL` of them.
Both tables change in transactions of the catalog, and files that are in no list are removed when it is
opened: a crash leaves no bundle missing and none twice.

Leaves to others: the transactions (`central_store.catalog`), the statement (`central_store.bundles`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from central_store import bundles
from central_store.sheets import Sheet, Span, coded, joined, read, within, write

if TYPE_CHECKING:
    import duckdb

SEAL = 4096
"""Bundles in memory before they go to a file."""
FULL = 1 << 16
"""Rows of a file that gets no more."""
WIDE = 64 << 20
"""Bytes of the same, whatever a facility sends."""
PATCHED = 16
"""Batches that were renewed before their file is written anew."""
SUFFIX = ".sheet"
_SLICE = 1 << 16
"""Objects whose bundles are made at once in a rebuild."""
_END = (1 << 63) - 1

DDL: tuple[str, ...] = (
    "CREATE TABLE sheets (file VARCHAR NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, crc BIGINT)",
    "CREATE TABLE renewed (low BIGINT NOT NULL, high BIGINT NOT NULL)",
)
_LISTED = "SELECT file, first, last, crc FROM sheets ORDER BY first"
_RENEWED = "SELECT DISTINCT low, high FROM renewed WHERE high <= ?"
_SPANS = "SELECT first, first + rows - 1 FROM spans WHERE first > ? ORDER BY first"


@dataclass(frozen=True)
class _File:
    """A sheet in a file, which has the bundles of these parts."""

    path: Path
    span: Span
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
        listed = connection.execute(_LISTED).fetchall()
        for path in folder.glob(f"*{SUFFIX}"):
            if path.name not in {file for file, *_ in listed}:
                path.unlink()
        self._files = [
            _File(folder / file, (low, high), read(folder / file, crc)) for file, low, high, crc in listed
        ]
        self._recent: list[Sheet] = []
        self._fresh: list[tuple[Span, Sheet]] = []
        self._through = self._sealed
        for span in connection.execute(_RENEWED, [self._sealed]).fetchall():
            self._take(span)
        (last,) = connection.execute("SELECT coalesce(max(first + rows), 1) - 1 FROM spans").fetchall()[0]
        if last > self._sealed:
            self._take((self._sealed + 1, last))
        self.kept()

    @property
    def _sealed(self) -> int:
        """No bundle of later parts is in a file."""
        return self._files[-1].span[1] if self._files else 0

    def sheets(self) -> Sequence[Sheet]:
        """All of them: each bundle that counts is in one."""
        return (*(file.sheet for file in self._files), *self._recent)

    # -- within a transaction of the catalog: afterwards say `kept` or `forgotten` ------------------

    def add(self, span: Span) -> None:
        """Take in the bundles of a new batch, which has these parts."""
        self._take(span)

    def renew(self, spans: Sequence[Span]) -> None:
        """Make the bundles of batches with these parts anew: counts changed, or numbers, or the rows went."""
        for low, high in spans:
            self._connection.execute("INSERT INTO renewed VALUES (?, ?)", [low, high])
            self._take((low, high))

    def _take(self, span: Span) -> None:
        low, high = span
        rows = self._connection.sql(bundles.SELECT, params={"low": low, "high": high}).to_arrow_table()
        self._fresh.append((span, Sheet(coded(rows))))

    def kept(self) -> None:
        """The transaction is lasting."""
        for span, made in self._fresh:
            self._files = [replace(file, sheet=file.sheet.without([span])) for file in self._files]
            self._recent = [sheet.without([span]) for sheet in self._recent]
            self._through = max(self._through, span[1])
            if len(made.rows):
                self._recent.append(made)
        self._fresh.clear()
        while len(self._recent) > 1 and len(self._recent[-2].rows) < 2 * len(self._recent[-1].rows):
            self._recent[-2:] = [joined(self._recent[-2:])]

    def forgotten(self) -> None:
        """The transaction failed."""
        self._fresh.clear()

    # -- between transactions ---------------------------------------------------------------------

    def tidy(self, *, settle: bool = False) -> None:
        """Let bundles go to files if many are in memory.

        Args:
            settle: leave nothing in files that does not count any more.
        """
        for file in self._files:
            if len(file.sheet.dropped) >= (1 if settle else PATCHED):
                self._write(file, file.span)
        new = [sheet.rows for sheet in self._recent if sheet.span[1] > self._sealed]
        if sum(map(len, new)) >= self._seal or sum(rows.nbytes for rows in new) >= WIDE // 4:
            last = self._files[-1] if self._files else None
            if last is None or len(last.sheet.rows) >= FULL or last.sheet.rows.nbytes >= WIDE:
                self._write(None, (self._sealed + 1, self._through))
            else:
                self._write(last, (last.span[0], self._through))

    def _write(self, old: _File | None, span: Span) -> None:
        """Put the rows of these parts into a file, perhaps in the place of another one."""
        path = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        crc = write(path, joined([*([old.sheet] if old else []), *within(self._recent, span)]))
        execute = self._connection.execute
        execute("BEGIN")
        try:
            execute("DELETE FROM sheets WHERE file = ?", [old.path.name if old else ""])
            execute("INSERT INTO sheets VALUES (?, ?, ?, ?)", [path.name, *span, crc])
            execute("DELETE FROM renewed WHERE low >= ? AND high <= ?", [*span])
        except BaseException:
            execute("ROLLBACK")
            raise
        execute("COMMIT")
        made = _File(path, span, read(path, crc))
        self._files = sorted([*(file for file in self._files if file is not old), made], key=lambda f: f.span)
        self._recent = [sheet.without([span]) for sheet in self._recent]
        self._recent = [sheet for sheet in self._recent if len(sheet.kept())]
        if old:
            old.path.unlink()

    def remake(self) -> None:
        """Make all of them from the parts, which they are not of yet: the last step of a rebuild."""
        spans = self._connection.execute(_SPANS, [self._through]).fetchall()
        low, high = self._through + 1, self._through
        for _, last in spans:
            high = last
            if high - low >= _SLICE:
                self._taken((low, high))
                low = high + 1
        if high >= low:
            self._taken((low, high))

    def _taken(self, span: Span) -> None:
        self._take(span)
        self.kept()
        self.tidy()
