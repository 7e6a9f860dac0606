"""The rows this terminal keeps for questions with the line down: a DuckDB file for each facility it may see.

    offline/<facility>.duckdb    the tables of `schemas.row_tables`, and the version of their shape
    offline/state.json           what they are (`facility_sync.kept_state`)
    offline/lock                 shared while somebody reads, exclusive while rows change

Guarantees: files have mode 0600. A change of a facility's rows is one transaction: whoever asks sees all of
it or nothing. Before it the state forgets which batches the file has, after it the state is written anew; so
what the state says is in the file. Rows come in through the strict reader of manifests. A file that is
damaged, or of another shape, is removed and said to be so: the next round brings its rows again.

Leaves to others: what is to be kept (`facility_sync.bring_rows`), questions (`facility_sync.offline`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from facility_sync import kept_state
from facility_sync.kept_state import State
from schemas import manifest, names, row_tables
from schemas.errors import Damaged, FormatError
from schemas.messages import Receipt, Statement
from schemas.names import BatchId, FacilityName
from schemas.row_marks import Known
from schemas.transit import durable

HINT = "`fsync sync` or `fsync offline` brings them again."
CONFIG: dict[str, Any] = {
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}
"""Settings of every connection."""
SHAPE = row_tables.SHAPE_WITH_PARTS
"""Of the tables: a file of another shape is brought anew."""
_READ = ("rows", "parts", "studies", "series", "batches", "receipts", "conflicts")
BROKEN = (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)
"""What DuckDB says of a file that is damaged."""


class Arrived(NamedTuple):
    """A batch as the store gave it."""

    statement: Statement
    receipt: Receipt
    table: bytes


class KeptRows:
    """The folder with the rows.

    Args:
        folder: `offline` in the terminal's home.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, facility: FacilityName) -> Path:
        """The file with a facility's rows."""
        return kept_state.path_of(self._folder, facility)

    def facilities(self) -> list[FacilityName]:
        """Whose rows are here."""
        found = []
        for path in self._folder.glob("*.duckdb"):
            with suppress(FormatError):
                found.append(names.facility_name(path.stem))
        return sorted(found)

    def state(self) -> State:
        """What is kept; of a state that cannot be read, nothing is believed."""
        return kept_state.load(self._folder)

    def save(self, state: State) -> None:
        """Write the state."""
        kept_state.save(self._folder, state)

    @contextmanager
    def held(self, *, changing: bool) -> Iterator[None]:
        """Keep others from changing the rows, or from reading them too; waits for them."""
        durable.make_dirs(self._folder)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if changing else fcntl.LOCK_SH)
            yield
        finally:
            os.close(lock)

    # -- what `facility_sync.bring_rows` does with them --------------------------------------------

    def known(self, facility: FacilityName) -> list[Known]:
        """The batches of a facility whose rows are here; none of a file that cannot be read, which goes."""
        if not self.path(facility).exists():
            return []
        try:
            with self._opened(facility, read_only=True) as connection:
                rows = connection.execute("SELECT sequence, batch_id FROM batches").fetchall()
            return [Known(sequence, names.batch_id(batch)) for sequence, batch in rows]
        except (duckdb.Error, FormatError):
            self.remove(facility)
            return []

    def change(
        self,
        facility: FacilityName,
        added: Sequence[Arrived],
        dropped: Collection[BatchId],
        damaged: Collection[BatchId],
    ) -> None:
        """Take batches out and put others in, in one transaction.

        Raises:
            FormatError: what came is no manifest of this facility.
            Damaged: the file is broken, and was removed; or it cannot be written.
        """
        tables = [
            (item, manifest.from_parquet(item.table, facility=facility)) for item in added
        ]  # before anything is touched
        try:
            with self.held(changing=True), self._opened(facility, read_only=False) as connection:
                connection.execute("BEGIN")
                if dropped:
                    _do(connection, row_tables.drop(dropped))
                for item, table in tables:
                    connection.register("incoming", table)
                    connection.execute(row_tables.ADD_ROWS, {"batch": item.statement.batch})
                    connection.unregister("incoming")
                    _do(connection, row_tables.add(item.statement, item.receipt))
                came = [item.statement.batch for item in added]
                _do(connection, row_tables.follow(came, damaged, parts=True))
                connection.execute("COMMIT")
                connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise self.broken([facility]) from error

    @contextmanager
    def _opened(self, facility: FacilityName, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        path = self.path(facility)
        fresh = not path.exists()
        with duckdb.connect(str(path), read_only=read_only, config=CONFIG) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if fresh:
                path.chmod(0o600)
                make(connection)
            check(connection, "main")
            yield connection

    def remove(self, facility: FacilityName) -> None:
        """Take a facility's rows away."""
        with self.held(changing=True):
            for path in self._folder.glob(f"{facility}.duckdb*"):
                durable.remove(path)

    def forget(self) -> None:
        """Take everything away."""
        for facility in self.facilities():
            self.remove(facility)
        durable.remove(self._folder / "state.json")

    def broken(self, facilities: Sequence[FacilityName]) -> Damaged:
        """Remove those of these files that cannot be read to the end; the error that says so.

        They are unlinked without waiting for readers, who keep what they have open.
        """
        lost = []
        for facility in facilities:
            try:
                with duckdb.connect(str(self.path(facility)), read_only=True, config=CONFIG) as connection:
                    check(connection, "main")
                    for table in _READ:
                        connection.execute(f"SELECT bit_xor(hash(r)) FROM {table} r").fetchall()
            except duckdb.Error:
                lost.append(facility)
                for path in self._folder.glob(f"{facility}.duckdb*"):
                    path.unlink(missing_ok=True)
        if not lost:
            return Damaged("the rows kept here cannot be read or written", hint="Check this machine's disk.")
        return damaged(", ".join(lost))


def make(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables of a new file, in one transaction with their version."""
    connection.execute("BEGIN")
    for ddl in (*row_tables.TABLES, row_tables.PARTS):
        connection.execute(ddl)
    connection.execute("CREATE TABLE version AS SELECT ? AS shape", [SHAPE])
    connection.execute("COMMIT")


def check(connection: duckdb.DuckDBPyConnection, database: str) -> None:
    """Raise `duckdb.Error` unless a database, named by us, is of our shape."""
    found = connection.execute(f"SELECT shape FROM {database}.version").fetchall()
    if found != [(SHAPE,)]:
        raise duckdb.SerializationException("of another shape")


def damaged(facility: str) -> Damaged:
    """The error that says so."""
    return Damaged(f"the rows kept here of {facility} are damaged, or of another version", hint=HINT)


def _do(connection: duckdb.DuckDBPyConnection, steps: Sequence[row_tables.Step]) -> None:
    for sql, parameters in steps:
        connection.execute(sql, parameters)


def arrived(statement: str, receipt: str, table: bytes) -> Arrived:
    """A batch from the texts of an answer, which fit each other.

    Raises:
        FormatError: they do not.
    """
    said = Statement.from_bytes(statement.encode())
    signed = Receipt.from_bytes(receipt.encode())
    if (said.batch, said.facility, said.sequence) != (signed.batch, signed.facility, signed.sequence):
        raise FormatError("a batch's statement and receipt do not fit each other")
    return Arrived(said, signed, table)


def owner(item: Arrived) -> FacilityName:
    """Whose batch it is."""
    return item.statement.facility
