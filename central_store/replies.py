"""What the store says to a facility: sign, seal, put it into the facility's `out`.

Guarantees: everything on an `out` shelf is sealed for the facility it speaks to and signed by this store;
no facility's answers and refusals fill the disk.

`REASONS` is the table of refusal codes: stable, for programs; the explanation beside them is for people.
"""

from __future__ import annotations

import logging
from datetime import datetime

from central_store import audit, inbox
from central_store.refused import Refused
from central_store.settings import Store
from schemas import container, envelope, messages
from schemas.errors import AccessDenied, Damaged, FormatError, SealError, SyncError, VersionError
from schemas.messages import FacilityCard, Message
from schemas.names import ShelfName
from schemas.transit import durable

__all__ = ["REASONS", "Refused", "make_room", "put", "reason_of", "refuse", "sealed", "sealed_again"]

log = logging.getLogger("central_store")

REASONS: dict[str, str] = {
    "foreign-name": "This name has no place on the `in` shelf.",
    "seal": "Not sealed for this store, altered, or not signed by this facility.",
    "format": "Sealed and signed, but not what both sides agreed on.",
    "version": "Of a format version this store does not know.",
    "other-facility": "It speaks for another facility than the one whose shelf it lay on.",
    "unknown-facility": "Its facility is not enrolled here, and the peer may not bring it.",
    "other-name": "Its name on the shelf is not the id of what is inside.",
    "manifest-mismatch": "Statement, manifest and objects do not say the same.",
    "other-statement": "The batch is stored already, under another statement of its facility.",
    "erased": "The batch is erased: its facility signed a tombstone, and it is never taken again.",
    "crashed-reader": "Reading it ended the process that read it, twice.",
    "access-denied": "The user name or the password is wrong.",
    "throttled": "Too many wrong passwords: wait, then try again.",
    "too-slow": "The search took longer than this store allows: narrow it.",
    "too-large": "The answer would be larger than one answer may be, or than memory allows: ask for less.",
    "sql-refused": "This SQL may not run, or cannot: the explanation says which part and why.",
    "not-offered": "This store gives no rows away for questions with the line down (`offline_rows`).",
    "store-trouble": "The store could not answer; nothing is wrong with the request.",
}


_BY_CLASS: tuple[tuple[type[SyncError], str], ...] = (
    (VersionError, "version"), (FormatError, "format"), (SealError, "seal"),
    (AccessDenied, "access-denied"), (Damaged, "store-trouble"),
)  # fmt: skip


def reason_of(error: SyncError) -> str:
    """The stable code of a refusal."""
    if isinstance(error, Refused):
        return error.reason
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), "store-trouble")


def sealed(store: Store, card: FacilityCard, message: Message, table: bytes | None = None) -> bytes:
    """A message without objects as it lies on a shelf."""
    return sealed_again(card, container.sign(message, store.keys.signing), table)


def sealed_again(card: FacilityCard, signed: container.Signed, table: bytes | None = None) -> bytes:
    """A message that was signed before, as it lies on a shelf."""
    return envelope.seal_bytes(container.whole(signed, table), [card.age_recipient])


def put(store: Store, card: FacilityCard, name: ShelfName, data: bytes, *, lasting: bool = False) -> None:
    """Put a sealed reply onto the facility's `out` shelf, in the place of one of the same name.

    A power cut may take a reply back unless it is `lasting`: whoever misses it asks again.
    """
    path = store.layout.outbound(card.facility) / str(name)
    durable.publish(path, data, replace=True, lasting=lasting)
    if name.kind != "receipt":  # of a receipt there is one for each batch, and it is never in the way
        make_room(store, card)


def make_room(store: Store, card: FacilityCard) -> None:
    """Take away the oldest answers and refusals if more wait than may."""
    folder = store.layout.outbound(card.facility)
    inbox.trim(folder, "answer", size=store.settings.answers_mib << 20)
    inbox.trim(folder, "refusal")


def refuse(
    store: Store,
    card: FacilityCard,
    subject: str,
    kind: str,
    error: SyncError,
    now: datetime,
    *,
    user: str = "",
) -> str:
    """Tell a facility, and the audit log, why something of it was not taken; returns the reason code."""
    reason = reason_of(error)
    if reason == "store-trouble":  # what is wrong here is the operator's business
        log.error("trouble facility=%s %s=%s: %s", card.facility, kind, subject, error)
    ours = reason in ("store-trouble", "access-denied")
    refusal = messages.Refusal(
        store=store.name,
        facility=card.facility,
        subject=subject,
        kind=kind,
        reason=reason,
        explanation=(REASONS[reason] if ours else str(error))[:500],
        refused=messages.rfc3339(now),
    )
    name = ShelfName(subject, "refusal")
    if reason != "foreign-name" or not (store.layout.outbound(card.facility) / str(name)).exists():
        # What has no place and cannot be moved is found again at each look: once is enough.
        audit.record(
            store.layout, "refusal", facility=card.facility, user=user, subject=subject,
            details={"reason": reason, "what": kind}, now=now,
        )  # fmt: skip
    put(store, card, name, sealed(store, card, refusal), lasting=True)
    log.warning("refused facility=%s %s=%s reason=%s", card.facility, kind, subject, reason)
    return reason
