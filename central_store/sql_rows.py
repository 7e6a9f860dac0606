"""The rows of one facility as a DuckDB file of its own: what SQL from outside is run on.

    views/<facility>.duckdb   the tables of `schemas.row_tables`
    views/<facility>.state    which batches it was made of; written last
    views/<facility>.lock     shared while somebody reads, exclusive while it is brought up to date

Guarantees: a file holds rows of its facility and no others, so whoever may read all of them may read the
file: nothing in it has to be hidden. The views give what the catalog answers: the same duplicates left out,
the same conflicts, the same roll-ups. It is derived from the manifests alone, by their strict reader, and
follows them: a batch costs its own rows, the studies they touch, and one look at two key columns of its
facility's rows. Whatever is wrong with a file, it is made again from nothing.

Leaves to others: who may read it (`central_store.access`), running statements (`central_store.sql_child`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import duckdb

from central_store import batches, packs, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from schemas import manifest, names, row_tables
from schemas.container import TABLE
from schemas.errors import Damaged, FormatError
from schemas.messages import Receipt
from schemas.names import BatchId, FacilityName
from schemas.transit import durable

VERSION = hashlib.sha256("\n".join((row_tables.SHAPE, duckdb.__version__)).encode()).hexdigest()
"""Of the shape of the files: another one makes them anew."""


@contextmanager
def reading(layout: Layout, owners: Sequence[FacilityName], memory_mb: int) -> Iterator[list[Path]]:
    """The files of these facilities, up to date, and nobody writes in them while the block runs.

    Args:
        layout: the store.
        owners: sorted, so that two who wait never wait for each other.
        memory_mb: DuckDB may use to bring one up to date.

    Raises:
        Damaged: a manifest cannot be read.
        OSError: the disk failed.
    """
    durable.make_dirs(layout.views)
    locks: list[int] = []
    try:
        for owner in owners:
            locks.append(_locked(layout, owner, memory_mb))
        yield [layout.view(owner) for owner in owners]
    finally:
        for lock in locks:
            os.close(lock)


def forget(layout: Layout, owner: FacilityName) -> None:
    """Remove a facility's file if it was made of other batches than there are: some may be erased.

    Nobody is waited for: who reads it keeps what is open, and who was about to open it asks again.
    """
    if not _current(layout, owner, *_inventory(layout, owner)):
        for path in layout.views.glob(f"{owner}.duckdb*"):
            path.unlink(missing_ok=True)
        layout.view_state(owner).unlink(missing_ok=True)


def _locked(layout: Layout, owner: FacilityName, memory_mb: int) -> int:
    path = layout.views / f"{owner}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _current(layout, owner, *_inventory(layout, owner)):
            fcntl.flock(lock, fcntl.LOCK_EX)
            _follow(layout, owner, memory_mb)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _inventory(layout: Layout, owner: FacilityName) -> tuple[frozenset[BatchId], frozenset[BatchId]]:
    """A facility's committed batches that are not erased, and which of them are damaged."""
    found = set()
    with suppress(FileNotFoundError):
        for entry in (layout.manifests / owner).iterdir():
            with suppress(FormatError):
                found.add(names.batch_id(entry.name))
    found -= tombstones.of(layout, owner)
    return frozenset(found), packs.damaged(layout) & found


def _state(found: frozenset[BatchId], damaged: frozenset[BatchId]) -> bytes:
    lines = [VERSION, *sorted(found), "damaged", *sorted(damaged)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest().encode()


def _current(
    layout: Layout, owner: FacilityName, found: frozenset[BatchId], damaged: frozenset[BatchId]
) -> bool:
    try:
        same = layout.view_state(owner).read_bytes() == _state(found, damaged)
        return same and layout.view(owner).exists()
    except FileNotFoundError:
        return False


def _follow(layout: Layout, owner: FacilityName, memory_mb: int) -> None:
    found, damaged = _inventory(layout, owner)
    if _current(layout, owner, found, damaged):
        return  # somebody else did it while we waited
    try:
        if not _update(layout, owner, found, damaged, memory_mb):
            raise duckdb.Error("of another shape")
    except duckdb.Error:
        for path in layout.views.glob(f"{owner}.duckdb*"):
            path.unlink()
        try:
            _update(layout, owner, found, damaged, memory_mb)
        except duckdb.Error as error:
            raise Damaged(f"the rows for SQL cannot be made ({type(error).__name__})") from error
    durable.publish(layout.view_state(owner), _state(found, damaged), replace=True, lasting=False)


def _update(
    layout: Layout,
    owner: FacilityName,
    found: frozenset[BatchId],
    damaged: frozenset[BatchId],
    memory_mb: int,
) -> bool:
    """Bring a file up to date, or make it; returns False for one that cannot be."""
    path = layout.view(owner)
    config: dict[str, Any] = {
        "memory_limit": f"{memory_mb}MB",
        "threads": 1,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "temp_directory": str(layout.staging / "views"),
    }
    fresh = not path.exists()
    with duckdb.connect(str(path), config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        if fresh:
            for ddl in row_tables.TABLES:
                connection.execute(ddl)
            connection.execute("CREATE TABLE version AS SELECT ? AS value", [VERSION])
        if connection.execute("SELECT value FROM version").fetchall() != [(VERSION,)]:
            return False
        have = {batch for (batch,) in connection.execute("SELECT batch_id FROM batches").fetchall()}
        if not have <= found:
            return False  # something was taken away: none of it may be left
        connection.execute("BEGIN")
        for batch in sorted(found - have):
            _add(connection, layout, Batch(owner, batch))
        for step in row_tables.follow(sorted(found - have), damaged):
            connection.execute(*step)
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    return True


def _add(connection: duckdb.DuckDBPyConnection, layout: Layout, batch: Batch) -> None:
    try:
        data = (layout.manifest(*batch) / TABLE).read_bytes()
        rows = manifest.from_parquet(data, facility=batch.facility)
    except (FormatError, FileNotFoundError) as error:
        raise Damaged(f"the manifest of batch {batch.batch} cannot be read") from error
    connection.register("incoming", rows)
    connection.execute(row_tables.ADD_ROWS, {"batch": batch.batch})
    connection.unregister("incoming")
    said, _ = batches.statement(layout, batch)
    receipt = cast(Receipt, batches.receipt(layout, batch).message)
    for step in row_tables.add(said, receipt):
        connection.execute(*step)
