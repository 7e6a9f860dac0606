"""Whether an erased batch is as it should be: signed by its facility, and nothing of it in its place.

Guarantees: nothing is changed; every failure is `Damaged`.

Leaves to others: which batches (`central_store.check`), finishing what is not done (`central_store.erasure`).
"""

from __future__ import annotations

from central_store import facilities, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.settings import Store
from schemas import container, keys
from schemas.container import TABLE, Signed
from schemas.erasure_messages import name_of
from schemas.errors import Damaged, SyncError


def look(store: Store, batch: Batch) -> None:
    """Check the tombstone of an erased batch, and our word about it; raises `Damaged`."""
    message, signed = tombstones.load(store.layout, batch)
    signers = facilities.signers(store.layout, batch.facility)
    if not any(_signed_by(signed, key) for key in signers):
        raise Damaged(f"the tombstone of batch {batch.batch} is not signed by its facility")
    if message.facility != batch.facility or batch.batch not in message.batches:
        raise Damaged(f"the tombstone of batch {batch.batch} names others")
    said = tombstones.said(store.layout, batch)
    if said is None:
        return  # the service gives it when it is done
    word, ours = said
    if not _signed_by(ours, keys.ssh_line(store.keys.signing.public_key())):
        raise Damaged(f"what was said about erased batch {batch.batch} is not signed by this store")
    if (word.facility, word.batch, word.tombstone) != (*batch, name_of(signed.data)):
        raise Damaged(f"what was said about erased batch {batch.batch} is about another one")


def left(layout: Layout, batch: Batch) -> bool:
    """Whether bytes or rows of it are where those of stored batches are."""
    if not layout.manifest(*batch).is_dir():
        return False  # it never came: a pack of that name is another facility's
    return layout.pack(batch.batch).exists() or (layout.manifest(*batch) / TABLE).exists()


def _signed_by(signed: Signed, key: str) -> bool:
    try:
        container.verify(signed.data, signed.armor, key)
    except SyncError:
        return False
    return True
