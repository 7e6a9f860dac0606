"""What a terminal is told of the rows it may keep, and the manifests it gets.

Guarantees: a terminal hears of batches of facilities it may see at this moment, and of no others; a batch it
may not see and one that is not here are both `missing`. What it hears follows from what differs, and an
answer is bounded in ids and bytes: the rest is asked for again.

No password is asked for: a terminal is known by its key, and what it gets is for itself alone. A store whose
`offline_rows` is 0 gives no rows away.

Leaves to others: who may see what (`central_store.access`), sealing (`central_store.replies`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from central_store import batches, packs
from central_store.catalog import Catalog
from central_store.replies import Refused
from central_store.settings import Store
from schemas import container, row_marks
from schemas.container import TABLE
from schemas.errors import Damaged
from schemas.messages import rfc3339
from schemas.names import BatchId, FacilityName
from schemas.row_messages import (
    MOST_LISTED,
    ManifestsAnswer,
    ManifestsRequest,
    RowsAnswer,
    RowsRequest,
)

PIECE_BYTES = 4 << 20
"""An answer holds manifests of about so many bytes, or one larger one."""


def rows(
    store: Store, catalog: Catalog, request: RowsRequest, owners: Sequence[FacilityName], now: datetime
) -> RowsAnswer:
    """What is different here from what the terminal has.

    Args:
        store: ours.
        catalog: which batches there are.
        request: what the terminal has.
        owners: the facilities it may see.
        now: the time written into the answer.

    Raises:
        FormatError: its marks are none.
        Refused: this store gives no rows away.
    """
    if not store.settings.offline_rows:
        raise Refused("not-offered", "this store gives no rows away for questions with the line down")
    agreed: dict[FacilityName, tuple[int, ...]] = {}
    listed: dict[FacilityName, tuple[BatchId, ...]] = {}
    until: dict[FacilityName, int] = {}
    left, seen = MOST_LISTED, set[BatchId]()
    for owner, known in catalog.inventory(owners).items():
        marks = [row_marks.mark(text) for text in request.marks.get(owner, ())]
        told = row_marks.compare(known, marks, left)
        left -= len(told.listed)
        seen |= {batch for _, batch in known}
        if told.agreed:
            agreed[owner] = tuple(told.agreed)
        if told.listed:
            listed[owner] = tuple(told.listed)
        if told.until is not None:
            until[owner] = told.until
    return RowsAnswer(
        store=store.name,
        request=request.id,
        owners=tuple(owners),
        agreed=agreed,
        listed=listed,
        until=until,
        damaged=tuple(sorted(packs.damaged(store.layout) & seen)),
        answered=rfc3339(now),
    )


class Manifests(NamedTuple):
    """The container with the answer, and how many rows it holds of which facility."""

    plain: bytes
    rows: dict[FacilityName, int]


def manifests(
    store: Store, catalog: Catalog, request: ManifestsRequest, owners: Sequence[FacilityName], now: datetime
) -> Manifests:
    """As many of the manifests asked for as one answer holds, with the answer.

    Args:
        store: ours.
        catalog: whose batches they are.
        request: which ones.
        owners: the facilities the terminal may see.
        now: the time written into the answer.

    Raises:
        Damaged: a manifest of ours cannot be read.
        Refused: this store gives no rows away.
    """
    if not store.settings.offline_rows:
        raise Refused("not-offered", "this store gives no rows away for questions with the line down")
    found = {batch.batch: batch for batch in catalog.batches_of(request.batches, owners)}
    chosen: list[tuple[BatchId, bytes]] = []
    size = 0
    for name in dict.fromkeys(batch for batch in request.batches if batch in found):
        path = store.layout.manifest(*found[name]) / TABLE
        try:
            if chosen and size + path.stat().st_size > PIECE_BYTES:
                break
            chosen.append((name, path.read_bytes()))
        except FileNotFoundError as error:
            raise Damaged(f"the manifest of batch {name} is missing") from error
        size += len(chosen[-1][1])
    sent = [found[name] for name, _ in chosen]
    said = [batches.statement(store.layout, batch)[0] for batch in sent]
    answer = ManifestsAnswer(
        store=store.name,
        request=request.id,
        statements=tuple(statement.to_bytes().decode() for statement in said),
        receipts=tuple(batches.receipt(store.layout, batch).data.decode() for batch in sent),
        sizes=tuple(len(data) for _, data in chosen),
        missing=tuple(batch for batch in request.batches if batch not in found),
        answered=rfc3339(now),
    )
    plain = container.manifests_bytes(container.sign(answer, store.keys.signing), chosen)
    rows: Counter[FacilityName] = Counter()
    for statement in said:
        rows[statement.facility] += statement.objects
    return Manifests(plain, dict(rows))
