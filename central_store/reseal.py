"""Put a stored batch onto a peer's shelf: the pack as it is, sealed for that store.

Guarantees: every byte is hashed and compared with the manifest before the file appears; the statement and the
facility's signature are those that came. Runs in a worker process.

Leaves to others: which batch for whom (`central_store.talk`).
"""

from __future__ import annotations

from typing import BinaryIO

from central_store import audit, batches
from central_store.settings import Store
from central_store.talk import Wanted
from schemas import container, envelope, manifest, ustar
from schemas.container import TABLE
from schemas.envelope import BUFFER
from schemas.errors import Damaged, SyncError
from schemas.names import ShelfName
from schemas.transit import durable


def send(store: Store, wanted: Wanted) -> None:
    """Seal a batch for a peer, unless it lies on its shelf already.

    Raises:
        Damaged: the pack is not what its manifest says.
        FileNotFoundError: pack or shelf are gone.
    """
    layout, batch = store.layout, wanted.batch
    path = layout.outbound(wanted.peer.name) / str(ShelfName(batch.batch, "batch"))
    if path.exists():
        return
    with layout.pack(batch.batch).open("rb", BUFFER) as pack:
        _check(store, wanted, pack)
        pack.seek(0)

        def write(sink: BinaryIO) -> None:
            envelope.seal(pack, sink, [wanted.peer.card.age_recipient])

        details = {"peer": wanted.peer.name}
        audit.record(layout, "replicate", facility=batch.facility, subject=batch.batch, details=details)
        durable.publish(path, write, replace=True, lasting=False)


def _check(store: Store, wanted: Wanted, pack: BinaryIO) -> None:
    batch = wanted.batch
    signed = batches.statement(store.layout, batch)[1]
    table = (store.layout.manifest(*batch) / TABLE).read_bytes()
    head = container.head_bytes(signed, table)
    try:
        if pack.read(len(head)) != head:
            raise Damaged("the head of the pack is not the batch's")
        tar = ustar.Reader(pack, limit=container.MAX_CONTENT)
        rows = manifest.objects(manifest.from_parquet(table, facility=batch.facility))
        for _ in container.read_objects(tar, rows):
            pass
    except SyncError as error:
        raise Damaged(f"the pack of batch {batch.batch} is damaged") from error
