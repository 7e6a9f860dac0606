"""From a value to the rows that may have it: narrow look-ups beside the catalog's tables.

    recent    kind, key, number    what came last, in the database: part of a batch's transaction
    runs      file, kind, entries  which sorted files (`central_store.keyruns`) hold the rest

What keys are, and where a kind of them leads, says `central_store.keys`.

Guarantees: a look-up and an addition cost the same however large the archive is: the recent keys are at most
about `SEAL`, and the runs few, because `FAN` runs of about one size become one, in a thread beside the
service. The recent keys are in memory too, sorted, so that looking up reads no table. The list of live runs
changes in one transaction; a file that is in no list is removed when the catalog is opened. So a crash leaves
no key missing and none twice.

Leaves to others: comparing the values themselves (`central_store.catalog`): a number found may be of another
value with the same key.
"""

from __future__ import annotations

import logging
import operator
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from central_store.keyruns import Recent, Run, Stopped, merge, write
from central_store.keys import KINDS, keys
from schemas.errors import Damaged

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger("central_store")

SEAL = 1 << 18
"""Recent keys of a kind before they become a run."""
FAN = 8
SUFFIX = ".run"

DDL: tuple[str, ...] = (
    "CREATE TABLE runs (file VARCHAR NOT NULL, kind VARCHAR NOT NULL, entries BIGINT NOT NULL)",
    "CREATE TABLE recent (kind VARCHAR NOT NULL, key UBIGINT NOT NULL, number UBIGINT NOT NULL)",
)

_RECENT = "SELECT key, number FROM recent WHERE kind = $kind"


class Lookups:
    """The look-ups of one open catalog.

    Args:
        connection: the catalog's.
        folder: where the runs lie.
        seal: see `SEAL`.

    Raises:
        Damaged: a run is missing or has another size.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path, *, seal: int = SEAL) -> None:
        self._connection = connection
        self._folder = folder
        self._seal = seal
        self._runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
        listed = set()
        for file, kind, entries in connection.execute("SELECT file, kind, entries FROM runs").fetchall():
            self._runs[kind].append(Run(folder / file, entries))
            listed.add(file)
        for path in folder.glob(f"*{SUFFIX}"):
            if path.name not in listed:
                path.unlink()
        self._recent: dict[str, list[Recent]] = {kind: [] for kind in KINDS}
        self._added: list[str] = []
        for kind in KINDS:  # by kinds, and not sorted by DuckDB, which would keep the memory that it takes
            rows = connection.sql(_RECENT, params={"kind": kind}).to_arrow_table()
            if len(rows):
                self._recent[kind] = [Recent(rows.sort_by("key"))]
        self._merging: _Merging | None = None

    def add(self, rows: pa.Table) -> None:
        """Within a transaction: take in new keys; then say `kept` or `forgotten`.

        Args:
            rows: columns `kind`, `key` and `number`, sorted by the first two.
        """
        self._connection.register("incoming_keys", rows)
        try:
            self._connection.execute("INSERT INTO recent FROM incoming_keys")
        finally:
            self._connection.unregister("incoming_keys")
        self._append(rows)

    def _append(self, rows: pa.Table) -> None:
        kinds, start = rows["kind"].value_counts(), 0
        for kind, count in zip(kinds.field(0).to_pylist(), kinds.field(1).to_pylist(), strict=True):
            self._recent[kind].append(Recent(rows.slice(start, count).select(["key", "number"])))
            self._added.append(kind)
            start += count

    def kept(self) -> None:
        """The transaction is lasting: what it added is like the rest, in few pieces."""
        self._added.clear()
        for pieces in self._recent.values():
            while len(pieces) > 1 and len(pieces[-2]) < 2 * len(pieces[-1]):
                pieces[-2:] = [pieces[-2] + pieces[-1]]

    def forgotten(self) -> None:
        """The transaction failed."""
        for kind in self._added:
            self._recent[kind].pop()
        self._added.clear()

    def find(self, kind: str, values: Sequence[str | None], owners: Sequence[str] = ()) -> list[int]:
        """Numbers of the rows that may have one of these values, each once, ascending.

        Args:
            kind: one of `KINDS`.
            values: what is looked for.
            owners: of a kind `WITHIN`, the facilities whose rows are meant.
        """
        return sorted(self.of_keys(kind, keys(kind, values, owners)))

    def of_keys(self, kind: str, asked: Sequence[int]) -> set[int]:
        """Numbers of the rows with these keys, which ascend."""
        pieces: tuple[Recent | Run, ...] = (*self._recent[kind], *self._runs[kind])
        return {number for piece in pieces for number in piece.find(asked)}

    def tidy(self, *, settle: bool = False) -> None:
        """Seal one kind's recent keys if they are many, and keep the runs few; between transactions.

        Args:
            settle: everything that is due, now, without a thread.
        """
        for kind in KINDS:
            if self._sealed(kind) and not settle:
                break
        self._take_merged(wait=settle)
        while self._merging is None and (due := next(self._due(), None)):
            self._merging = _Merging(*due, self._folder / f"{secrets.token_hex(8)}{SUFFIX}")
            if not settle:
                break
            self._take_merged(wait=True)

    def _sealed(self, kind: str) -> bool:
        pieces = self._recent[kind]
        if sum(map(len, pieces)) < self._seal:
            return False
        rows = reduce(operator.add, reversed(pieces)).rows
        path = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        write(path, *(rows[name].combine_chunks() for name in ("key", "number")))
        self._swap(kind, [], Run(path, rows.num_rows), "DELETE FROM recent WHERE kind = $1")
        pieces.clear()
        return True

    def _due(self) -> Iterator[tuple[str, list[Run]]]:
        for kind, runs in self._runs.items():
            tiers: dict[int, list[Run]] = {}
            for run in runs:
                tiers.setdefault(_tier(len(run), self._seal), []).append(run)
            yield from ((kind, tier) for _, tier in sorted(tiers.items()) if len(tier) >= FAN)

    def _take_merged(self, *, wait: bool) -> None:
        merging = self._merging
        if merging is None or (merging.is_alive() and not wait):
            return
        merging.join()
        self._merging = None
        if merging.error is not None:
            raise merging.error
        self._swap(merging.kind, merging.parts, Run(merging.path, merging.entries))

    def _swap(self, kind: str, old: list[Run], new: Run, also: str | None = None) -> None:
        self._connection.execute("BEGIN")
        try:
            gone = [run.path.name for run in old]
            self._connection.execute("DELETE FROM runs WHERE file IN (SELECT unnest($1::VARCHAR[]))", [gone])
            self._connection.execute("INSERT INTO runs VALUES (?, ?, ?)", [new.path.name, kind, len(new)])
            if also:
                self._connection.execute(also, [kind])
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        self._runs[kind] = [run for run in self._runs[kind] if run not in old] + [new]
        for run in old:
            run.close()
            run.path.unlink()

    def close(self) -> None:
        """Close all files, and stop a merge that runs; its file is removed by the next start."""
        if self._merging is not None:
            self._merging.stop()
            self._merging.join()
        for runs in self._runs.values():
            for run in runs:
                run.close()

    def sizes(self) -> Mapping[str, list[int]]:
        """Entries of each kind's runs."""
        return {kind: [*map(len, runs)] for kind, runs in self._runs.items()}


def _tier(entries: int, seal: int) -> int:
    tier = 0
    while entries >= seal * FAN:
        entries //= FAN
        tier += 1
    return tier


class _Merging(threading.Thread):
    """One merge beside the service: files only, the database is not touched."""

    def __init__(self, kind: str, parts: list[Run], path: Path) -> None:
        super().__init__(name="merge", daemon=True)
        self.kind, self.parts, self.path = kind, parts, path
        self.entries = 0
        self.error: Exception | None = None
        self._stopped = threading.Event()
        self.start()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            self.entries = merge(self.parts, self.path, self._stopped.is_set)
        except Stopped:
            self.error = Damaged("a merge of the catalog's look-ups was stopped")
        except OSError as error:
            self.error = error
