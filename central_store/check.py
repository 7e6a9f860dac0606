"""Is everything that was promised there? Batches against packs, catalog against batches.

Order: for each batch: its files and signatures; its manifest; its pack's presence and size; with
`read_data` every byte re-hashed and compared with its row. Then the other way round: packs nobody points
at, and the catalog's rows of each batch against its statement.

Guarantees: nothing is changed. Every problem is one line with a stable code; no problem hides another. Works
while the service runs, except for the catalog, which only the service can read then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from central_store import batches, facilities, lock
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.settings import Store
from schemas import container, keys, manifest, ustar
from schemas.container import TABLE
from schemas.errors import Busy, Damaged, SyncError
from schemas.messages import Receipt, Statement
from schemas.names import BatchId, FacilityName

CODES: dict[str, str] = {
    "batch-unreadable": "A file of the batch is missing or not what it should be.",
    "signature": "The statement or the receipt is not signed by who should have signed it.",
    "manifest": "The manifest is not the one the statement names.",
    "pack-missing": "The batch's pack is missing.",
    "pack-size": "The batch's pack has another size than its manifest says.",
    "pack-bytes": "An object's bytes changed.",
    "pack-orphan": "A pack belongs to no batch. Harmless: it is space only.",
    "catalog-rows": "The catalog has other rows than the batch: run `fstore rebuild`.",
    "catalog-unread": "The catalog cannot be read: run `fstore rebuild`.",
}
"""Codes of problems, and what they mean."""


@dataclass
class Problem:
    """One thing that is wrong."""

    code: str
    facility: str
    batch: str
    detail: str


@dataclass
class Report:
    """What `check` found."""

    batches: int = 0
    objects: int = 0
    bytes: int = 0
    read_data: bool = False
    catalog: str = "not checked"
    problems: list[Problem] = field(default_factory=list)


def check(store: Store, *, read_data: bool, progress: Callable[[int], None] = lambda _: None) -> Report:
    """Check a store; calls `progress` with the bytes read since the last call."""
    report, counts = Report(read_data=read_data), dict[BatchId, tuple[FacilityName, int]]()
    for batch in batches.listing(store.layout):
        report.batches += 1
        try:
            counts[batch.batch] = (batch.facility, _one(store, batch, report, progress))
        except _Wrong as wrong:
            report.problems.append(Problem(wrong.code, batch.facility, batch.batch, str(wrong)))
    known = {batch.batch for batch in batches.listing(store.layout)}
    for path in sorted(store.layout.packs.glob("*/*")):
        if path.stem not in known and not (store.layout.journal / path.stem).exists():
            report.problems.append(Problem("pack-orphan", "", path.stem, CODES["pack-orphan"]))
    _catalog(store, counts, known, report)
    return report


class _Wrong(Exception):
    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail or CODES[code])
        self.code = code


def _one(store: Store, batch: Batch, report: Report, progress: Callable[[int], None]) -> int:
    statement, signed = _documents(store, batch)
    rows = _rows(store, batch, statement)
    pack = store.layout.pack(batch.batch)
    head = container.head_bytes(signed, (store.layout.manifest(*batch) / TABLE).read_bytes())
    expected = len(head) + len(ustar.END)
    expected += sum(ustar.BLOCK + size + len(ustar.padding(size)) for _, size, _ in rows)
    try:
        actual = pack.stat().st_size
    except FileNotFoundError:
        raise _Wrong("pack-missing") from None
    if actual != expected:
        raise _Wrong("pack-size", f"the pack has {actual} bytes instead of {expected}")
    if report.read_data:
        _read(pack, head, rows, progress)
    report.objects += len(rows)
    report.bytes += statement.bytes
    return len(rows)


def _documents(store: Store, batch: Batch) -> tuple[Statement, container.Signed]:
    try:
        statement, signed = batches.statement(store.layout, batch)
        receipt = batches.receipt(store.layout, batch)
    except Damaged as error:
        raise _Wrong("batch-unreadable", str(error)) from error
    ours = keys.ssh_line(store.keys.signing.public_key())
    signers = facilities.signers(store.layout, batch.facility)
    if not any(_signed_by(signed, key) for key in signers) or not _signed_by(receipt, ours):
        raise _Wrong("signature")
    message = receipt.message
    said = (statement.facility, statement.batch, statement.sequence, statement.objects, statement.bytes)
    if not isinstance(message, Receipt) or said != (
        message.facility, message.batch, message.sequence, message.objects, message.bytes
    ):  # fmt: skip
        raise _Wrong("batch-unreadable", "statement and receipt do not say the same")
    return statement, signed


def _signed_by(signed: container.Signed, key: str) -> bool:
    try:
        container.verify(signed.data, signed.armor, key)
    except SyncError:
        return False
    return True


def _rows(store: Store, batch: Batch, statement: Statement) -> list[tuple[str, int, str]]:
    try:
        table = (store.layout.manifest(*batch) / TABLE).read_bytes()
        if Batch(statement.facility, statement.batch) != batch:
            raise _Wrong("batch-unreadable", "the statement is another batch's")
        if hashlib.sha256(table).hexdigest() != batch.batch:
            raise _Wrong("manifest")
        rows = list(manifest.objects(manifest.from_parquet(table, facility=batch.facility)))
    except (SyncError, FileNotFoundError) as error:
        raise _Wrong("manifest", str(error)) from error
    if (len(rows), sum(size for _, size, _ in rows)) != (statement.objects, statement.bytes):
        raise _Wrong("manifest")
    return rows


def _read(pack: Path, head: bytes, rows: list[tuple[str, int, str]], progress: Callable[[int], None]) -> None:
    """Every byte of a pack: the head as it stands in the batch's folder, then each object."""
    with pack.open("rb") as file:
        if file.read(len(head)) != head:
            raise _Wrong("pack-bytes", "the head of the pack is not the batch's")
        tar = ustar.Reader(file, limit=container.MAX_CONTENT)
        try:
            for stored in container.read_objects(tar, iter(rows)):
                progress(stored.length)
        except SyncError as error:
            raise _Wrong("pack-bytes", str(error)) from error


def _catalog(
    store: Store, counts: dict[BatchId, tuple[FacilityName, int]], known: set[BatchId], report: Report
) -> None:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(store.layout.lock))
            catalog = stack.enter_context(Catalog(store.layout, store.settings, rebuild=False))
            rows = catalog.rows_of_batches()
        except Busy:
            report.catalog = "not checked: the service is using it"
            return
        except Damaged as error:
            report.catalog = "cannot be read"
            report.problems.append(Problem("catalog-unread", "", "", str(error)))
            return
    report.catalog = "checked"
    report.problems += _differences(counts, known, rows)


def _differences(
    counts: dict[BatchId, tuple[FacilityName, int]], known: set[BatchId], rows: dict[BatchId, int]
) -> Iterator[Problem]:
    for batch, (facility, count) in counts.items():
        if rows.get(batch) != count:
            detail = f"{rows.get(batch, 0)} rows instead of {count}"
            yield Problem("catalog-rows", facility, batch, detail)
    for batch in sorted(set(rows) - known):
        yield Problem("catalog-rows", "", batch, "rows of a batch that is not there")
