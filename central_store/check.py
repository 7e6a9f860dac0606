"""Is everything that was promised there? Batches against packs, catalog against batches.

Order: for each batch: its files and signatures; its manifest; its pack's presence and size; with
`read_data` every byte re-hashed and compared with its row. Then the other way round: packs nobody points
at, and the catalog's rows of each batch against its statement.

Guarantees: every problem is one line with a stable code; no problem hides another. Works while the service
runs, except for the catalog, which only the service can read then. Without `read_data` nothing is changed.
With it, batches are taken least recently checked first, each result is kept (`central_store.checks`), so that
a run that ends early is gone on with by the next; and a pack that turns out damaged is set aside and its
facility told (`central_store.damage`). The audit log has the beginning of such a run before it keeps or
changes anything, so that one that was killed is in it too.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

from central_store import audit, batches, checks, damage, erased_batch, facilities, lock, packs, tombstones
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.checks import OK, RESENT
from central_store.settings import Store
from schemas import container, keys, manifest, ustar
from schemas.container import TABLE
from schemas.errors import Busy, Damaged, SettingsError, SyncError
from schemas.messages import Receipt, Statement
from schemas.names import BatchId, FacilityName
from schemas.transit import durable

CODES: dict[str, str] = {
    "batch-unreadable": "A file of the batch is missing or not what it should be.",
    "signature": "The statement or the receipt is not signed by who should have signed it.",
    "manifest": "The manifest is not the one the statement names.",
    "pack-missing": "The batch's pack is missing.",
    "pack-size": "The batch's pack has another size than its manifest says.",
    "pack-bytes": "An object's bytes changed.",
    "pack-unreadable": "The disk does not give the pack's bytes: check the disk, then run this again.",
    "tombstone": "The tombstone of an erased batch, or our word about it, is not what it should be.",
    "erased-left": "A pack or table of an erased batch is still in its place: the service moves it at start.",
    "not-resent": "Damaged before; its facility was told and has not sent every file again.",
    "pack-orphan": "A pack belongs to no batch. Harmless: it is space only.",
    "catalog-rows": "The catalog has other rows than the batch: run `fstore rebuild`.",
    "catalog-unread": "The catalog cannot be read: run `fstore rebuild`.",
}
"""Codes of problems, and what they mean."""
_PACKS = ("pack-missing", "pack-size", "pack-bytes")


@dataclass
class Problem:
    """One thing that is wrong."""

    code: str
    facility: str
    batch: str
    detail: str


@dataclass
class Report:
    """What `check` found.

    `batches` of `known` were looked at; `resent` of them are damaged, and their files are in other batches;
    `erased` have a tombstone; `set_aside` are the damaged packs this run moved to quarantine.
    """

    batches: int = 0
    known: int = 0
    resent: int = 0
    erased: int = 0
    set_aside: list[str] = field(default_factory=list)
    repaired: int = 0
    objects: int = 0
    bytes: int = 0
    read_data: bool = False
    catalog: str = "not checked"
    problems: list[Problem] = field(default_factory=list)


class Step(NamedTuple):
    """How far a run is: batches begun, of how many, and bytes read since the last step."""

    batch: int
    known: int
    bytes: int


def check(
    store: Store,
    *,
    read_data: bool,
    max_seconds: float | None = None,
    progress: Callable[[Step], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    monotonic: Callable[[], float] = time.monotonic,
) -> Report:
    """Check a store.

    Args:
        store: an opened store.
        read_data: read every pack, keep results, set damaged packs aside.
        max_seconds: begin no further batch after this long.
        progress: told each object that was read.
        now: the time, in UTC.
        monotonic: seconds.

    Raises:
        Busy: another `check` reads this store's packs.
        SettingsError: the folders of the packs are not there: is their disk mounted?
    """
    return _Check(store, read_data, progress, now, monotonic).run(max_seconds)


class _Check:
    def __init__(
        self,
        store: Store,
        read_data: bool,
        progress: Callable[[Step], None],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._progress = store, progress
        self._now, self._monotonic = now, monotonic
        self._report = Report(read_data=read_data)
        self._counts = dict[BatchId, tuple[FacilityName, int]]()

    def run(self, max_seconds: float | None) -> Report:
        layout, report = self._store.layout, self._report
        known = list(batches.listing(layout))
        report.known = len(known)
        self._damaged, self._resent = packs.damaged(layout), damage.resent(layout, known)
        if report.read_data:
            self._read_all(known, max_seconds)
        else:
            for batch in known:
                self._outcome(batch)
        for batch in set(tombstones.everything(layout)).difference(known):  # it may still come
            self._erased(batch)
        present = {batch.batch for batch in batches.listing(layout)}  # some may have come meanwhile
        for path in sorted(layout.packs.glob("*/*")):
            if path.stem not in present and not (layout.journal / path.stem).exists():
                report.problems.append(Problem("pack-orphan", "", path.stem, CODES["pack-orphan"]))
        _catalog(self._store, self._counts, present, report)
        details = audit.operator(
            batches=report.batches, bytes=report.bytes, catalog=report.catalog, objects=report.objects,
            problems=len(report.problems), read_data=report.read_data,
        )  # fmt: skip
        audit.record(layout, "check", details=details, now=self._now())
        return report

    def _read_all(self, known: Collection[Batch], max_seconds: float | None) -> None:
        layout, started = self._store.layout, self._monotonic()
        durable.make_dirs(layout.checks, mode=0o755)
        with (
            lock.held(layout.checks / "lock", busy="another check reads this store's packs"),
            checks.Run(layout, self._now(), self._monotonic) as run,
        ):
            details = audit.operator(known=len(known), results=run.name)
            audit.record(layout, "check-begun", details=details, now=self._now())
            for batch in checks.least_recent_first(layout, known):
                if max_seconds is not None and self._monotonic() - started >= max_seconds:
                    break
                begun, before = self._now(), self._report.bytes
                outcome = self._outcome(batch)
                size = self._report.bytes - before
                run.add(checks.Result(*batch, begun, self._now(), size, outcome))

    def _outcome(self, batch: Batch) -> str:
        """Look at one batch and do what follows from it; returns `OK`, `RESENT` or a code."""
        report, layout = self._report, self._store.layout
        report.batches += 1
        if tombstones.erased(layout, batch):
            return self._erased(batch)
        recorded = batch.batch in self._damaged
        try:
            rows, statement, head = _papers(self._store, batch)
            self._counts[batch.batch] = (batch.facility, len(rows))
            if recorded and not (report.read_data and layout.pack(batch.batch).exists()):
                raise _Wrong("not-resent")
            self._pack(batch, head, rows)
        except _Wrong as wrong:
            if wrong.code == "not-resent":
                return self._still_damaged(batch)
            self._wrong(batch, wrong)
            return wrong.code
        if recorded:  # somebody put it back
            damage.repaired(layout, batch)
            report.repaired += 1
        report.objects += len(rows)
        report.bytes += statement.bytes
        return OK

    def _erased(self, batch: Batch) -> str:
        self._report.erased += 1
        self._counts[batch.batch] = (batch.facility, 0)
        try:
            if batches.committed(self._store.layout, batch):
                _documents(self._store, batch)
            else:
                del self._counts[batch.batch]  # the catalog never heard of it
            erased_batch.look(self._store, batch)
        except _Wrong as wrong:
            self._wrong(batch, wrong)
            return wrong.code
        except Damaged as error:
            self._wrong(batch, _Wrong("tombstone", str(error)))
            return "tombstone"
        if erased_batch.left(self._store.layout, batch):
            self._wrong(batch, _Wrong("erased-left"))
            return "erased-left"
        return OK

    def _still_damaged(self, batch: Batch) -> str:
        if batch.batch in self._resent:
            self._report.resent += 1
            return RESENT
        self._report.problems.append(Problem("not-resent", batch.facility, batch.batch, CODES["not-resent"]))
        if self._report.read_data:
            damage.tell(self._store, batch)
        return "not-resent"

    def _wrong(self, batch: Batch, wrong: _Wrong) -> None:
        if wrong.code in _PACKS and tombstones.erased(self._store.layout, batch):
            return  # at this moment
        self._report.problems.append(Problem(wrong.code, batch.facility, batch.batch, str(wrong)))
        if not self._report.read_data or wrong.code not in _PACKS:
            return
        if not self._store.layout.pack(batch.batch).parent.is_dir():
            raise SettingsError("folders of objects/packs are missing", hint="Is their disk mounted?")
        if damage.found(self._store, batch, wrong.code, self._now(), wrong.at):
            self._report.set_aside.append(batch.batch)

    def _pack(self, batch: Batch, head: bytes, rows: list[tuple[str, int, str]]) -> None:
        """The pack's presence and size, and with `read_data` its every byte."""
        expected = len(head) + len(ustar.END)
        expected += sum(ustar.BLOCK + size + len(ustar.padding(size)) for _, size, _ in rows)
        try:
            file = self._store.layout.pack(batch.batch).open("rb")
        except FileNotFoundError:
            raise _Wrong("pack-missing") from None
        with file:
            status = os.fstat(file.fileno())
            at = damage.seen(status)
            if status.st_size != expected:
                raise _Wrong("pack-size", f"it has {status.st_size} bytes instead of {expected}", at)
            if self._report.read_data:
                try:
                    self._read(file, head, rows)
                except SyncError as error:
                    raise _Wrong("pack-bytes", str(error), at) from error
                except OSError as error:
                    raise _Wrong("pack-unreadable") from error

    def _read(self, file: BinaryIO, head: bytes, rows: list[tuple[str, int, str]]) -> None:
        """The head as it stands in the batch's folder, then each object."""
        if file.read(len(head)) != head:
            raise Damaged("the head of the pack is not the batch's")
        tar = ustar.Reader(file, limit=container.MAX_CONTENT)
        for stored in container.read_objects(tar, iter(rows)):
            self._progress(Step(self._report.batches, self._report.known, stored.length))


class _Wrong(Exception):
    """What is wrong with a batch, and in which file if it is a pack that was read."""

    def __init__(self, code: str, detail: str = "", at: damage.Seen | None = None) -> None:
        super().__init__(detail or CODES[code])
        self.code = code
        self.at = at


def _papers(store: Store, batch: Batch) -> tuple[list[tuple[str, int, str]], Statement, bytes]:
    """The rows of a batch, its statement, and what must stand at the head of its pack."""
    statement, signed = _documents(store, batch)
    rows = _rows(store, batch, statement)
    return rows, statement, container.head_bytes(signed, (store.layout.manifest(*batch) / TABLE).read_bytes())


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
