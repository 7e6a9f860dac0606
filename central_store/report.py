"""What a store holds, for `fstore status`: from the files alone, so that it works while the service runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from central_store import batches, chain, facilities, inbox, packs, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.settings import Store
from schemas.errors import SyncError
from schemas.messages import Statement
from schemas.names import FacilityName


@dataclass
class FacilityStatus:
    """One facility's part of the store."""

    facility: FacilityName
    batches: int = 0
    objects: int = 0
    bytes: int = 0
    last_stored: str = ""
    waiting: int = 0
    replies: int = 0
    quarantined: int = 0
    damaged: int = 0
    erased: int = 0
    """Erased batches that are not purged yet; they count as nothing else."""
    missing: int = 0
    forks: int = 0


def status(store: Store) -> list[FacilityStatus]:
    """One line for each enrolled facility; reads receipt and statement of each batch."""
    found = {name: FacilityStatus(name) for name in facilities.enrolled(store.layout)}
    said: dict[FacilityName, list[Statement]] = {}
    damaged = packs.damaged(store.layout)
    for batch in tombstones.everything(store.layout):
        with suppress(SyncError):  # `fstore check` says more
            word = tombstones.said(store.layout, batch)
            line = found.setdefault(batch.facility, FacilityStatus(batch.facility))
            line.erased += word is None or not word[0].purged
    for batch in batches.listing(store.layout):
        line = found.setdefault(batch.facility, FacilityStatus(batch.facility))
        if not tombstones.erased(store.layout, batch):
            _add(line, store.layout, batch)
        found[batch.facility].damaged += batch.batch in damaged
        with suppress(SyncError):  # `fstore check` says more
            said.setdefault(batch.facility, []).append(batches.statement(store.layout, batch)[0])
    for name, statements in said.items():
        found[name].missing, found[name].forks = chain.look(statements)
    for line in found.values():
        arrived = inbox.look(store.layout.inbound(line.facility))
        line.waiting = len(arrived.batches) + len(arrived.requests) + len(arrived.tombstones)
        line.waiting += len(arrived.foreign)
        line.replies = _files(store.layout.outbound(line.facility))
        line.quarantined = sum(
            path.suffix == ".refused" for path in store.layout.quarantine(line.facility).iterdir()
        )
    return [found[name] for name in sorted(found)]


def _add(line: FacilityStatus, layout: Layout, batch: Batch) -> None:
    try:
        receipt: Any = batches.receipt(layout, batch).message
    except SyncError:
        return  # `fstore check` says more
    line.batches += 1
    line.objects += receipt.objects
    line.bytes += receipt.bytes
    line.last_stored = max(line.last_stored, receipt.stored)


def _files(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())
