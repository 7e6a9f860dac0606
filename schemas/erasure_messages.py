"""What is said about erasing: the facility's tombstone, and what a store did about it.

A batch is immutable and named by its content, so it is erased whole. A tombstone counts wherever it comes
from, because the facility signed it; a batch that has one is never taken again.

Guarantees: those of `schemas.messages`, whose kinds these are. A reason is one of `REASONS`, stable codes, so
that nothing about a person is ever written into it.

Leaves to others: what a store does (`central_store.erasure`), what must be safe before a terminal signs
(`facility_sync.erase`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from schemas import names
from schemas.messages import Message, _digest, _is, _list, _moment, _one_of, _optional
from schemas.names import BatchId

REASONS: dict[str, str] = {
    "asked": "The patient, or who speaks for the patient, asked for it.",
    "expired": "They were kept as long as they have to be.",
    "wrong-patient": "They were stored under another patient's identity.",
    "not-meant": "They were not meant for the store: tests, phantoms, a wrong folder.",
    "ordered": "A court or an authority ordered it.",
    "other": "None of these.",
}
"""Why a facility erases; each store keeps the code."""

MOST_BATCHES = 64
"""Most batches in one tombstone."""


@dataclass(frozen=True, kw_only=True)
class Tombstone(Message):
    """A facility says: these batches of mine are erased, for good and everywhere."""

    TYPE: ClassVar[str] = "tombstone"
    facility: names.FacilityName = _is(names.facility_name)
    batches: tuple[BatchId, ...] = _is(_list(names.batch_id, MOST_BATCHES))
    reason: str = _is(_one_of(*REASONS))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Erasure(Message):
    """The store says: since `taken` this batch is in no answer here, as `tombstone` (its SHA-256) wants it.

    With `purged` it is the certificate that its bytes are gone too; until then they wait for the operator.
    """

    TYPE: ClassVar[str] = "erasure"
    store: names.FacilityName = _is(names.facility_name)
    facility: names.FacilityName = _is(names.facility_name)
    batch: BatchId = _is(names.batch_id)
    tombstone: str = _is(_digest)
    taken: str = _is(_moment)
    purged: str = _is(_optional(_moment))


def name_of(data: bytes) -> str:
    """What a tombstone is called on a shelf and in a terminal's home: the SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()
