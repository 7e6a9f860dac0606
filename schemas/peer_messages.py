"""What is said about, and between, stores that replicate with each other.

Guarantees: those of `schemas.messages`, whose kinds these are.

Leaves to others: who may ask (`central_store.requests`, `central_store.talk`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schemas import keys, names
from schemas.erasure_messages import Tombstone
from schemas.errors import FormatError
from schemas.messages import (
    FacilityCard,
    Message,
    Notice,
    Receipt,
    StoreCard,
    _count,
    _flag,
    _is,
    _list,
    _moment,
    _optional,
    _text,
)  # fmt: skip


def _store_card(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("this is not a store's card")
    return StoreCard.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")


@dataclass(frozen=True, kw_only=True)
class StoresRequest(Message):
    """A terminal asks: which other stores do you replicate with?"""

    TYPE: ClassVar[str] = "stores-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class StoresAnswer(Message):
    """The store says: these, each with its card (the text of a `store-card`); their keys sign replicas."""

    TYPE: ClassVar[str] = "stores-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    cards: tuple[str, ...] = _is(_list(_store_card, 1000))
    answered: str = _is(_moment)


def _receipt(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("this is not a receipt")
    return Receipt.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")


def _notice(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("this is not a notice")
    return Notice.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")


def _facility_card(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("this is not a facility's card")
    return FacilityCard.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")


def _tombstone(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("this is not a tombstone")
    return Tombstone.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")


MOST_ENTRIES = 128
"""Most log entries in one answer: whoever hears it checks a signature for each, and others wait meanwhile."""
MOST_BATCHES = 64
"""Most batches in one request."""
MOST_NOTICES = 256
"""Most notices in one answer."""
MOST_CHANGES = 5_000
"""Most changes, and cards, in one answer."""
MOST_TOMBSTONES = 1000
"""Most tombstones in one answer."""


@dataclass(frozen=True, kw_only=True)
class LogRequest(Message):
    """A store asks a peer: what is in your log from `start` on? I wait for `wanted` of your batches.

    Mine has `size` entries, and this is its root; `people` is the digest of what my `people-answer` would
    hold.
    """

    TYPE: ClassVar[str] = "log-request"
    VERSION: ClassVar[int] = 2
    id: names.RequestId = _is(names.request_id)
    store: names.FacilityName = _is(names.facility_name)
    start: int = _is(_count)
    wanted: int = _is(_count)
    size: int = _is(_count)
    root: str = _is(names.object_id)
    people: str = _is(names.object_id)
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class LogAnswer(Message):
    """The peer says: my log has `size` entries and this root; these stand from `start` on, with signatures.

    Of yours I know the first `known`, and wait for `wanted` of your batches. `people` is the digest of what a
    `people-answer` would hold. `checkpoint` is the newest of my audit log, or empty.
    `notices` are those of all batches that are damaged here now.
    """

    TYPE: ClassVar[str] = "log-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    start: int = _is(_count)
    size: int = _is(_count)
    root: str = _is(names.object_id)
    receipts: tuple[str, ...] = _is(_list(_receipt, MOST_ENTRIES))
    signatures: tuple[str, ...] = _is(_list(_text(1024), MOST_ENTRIES))
    people: str = _is(names.object_id)
    known: int = _is(_count)
    wanted: int = _is(_count)
    checkpoint: str = _is(_text(2000))
    checkpoint_signature: str = _is(_text(2000))
    notices: tuple[str, ...] = _is(_list(_notice, MOST_NOTICES))
    notice_signatures: tuple[str, ...] = _is(_list(_text(1024), MOST_NOTICES))
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class BatchesRequest(Message):
    """A store asks a peer for batches; each comes as an ordinary container."""

    TYPE: ClassVar[str] = "batches-request"
    id: names.RequestId = _is(names.request_id)
    store: names.FacilityName = _is(names.facility_name)
    batches: tuple[names.BatchId, ...] = _is(_list(names.batch_id, MOST_BATCHES))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class BatchesAnswer(Message):
    """The peer says: I do not have these, or not whole. It comes after the others were put on the shelf."""

    TYPE: ClassVar[str] = "batches-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    missing: tuple[names.BatchId, ...] = _is(_list(names.batch_id, MOST_BATCHES))
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Change(Message):
    """A store says: here, a grant or an account (`subject`) became this (`content`; empty: it ended)."""

    TYPE: ClassVar[str] = "change"
    store: names.FacilityName = _is(names.facility_name)
    subject: str = _is(_text(200))
    content: str = _is(_text(4096))
    changed: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class PeopleRequest(Message):
    """A store asks a peer: which facilities have you enrolled, who may search, who sees whose images?

    And which tombstones? I have those with the SHA-256s `tombstones`; begin behind `after`, if it is given.
    """

    TYPE: ClassVar[str] = "people-request"
    VERSION: ClassVar[int] = 2
    id: names.RequestId = _is(names.request_id)
    store: names.FacilityName = _is(names.facility_name)
    tombstones: tuple[str, ...] = _is(_list(names.object_id))
    after: str = _is(_optional(names.object_id))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class PeopleAnswer(Message):
    """The peer says: these. `cards`: of each facility the present one, then former ones.

    `changes` are the last of each store about each subject, each with that store's key and signature.
    `tombstones` are those the asker lacks, by their SHA-256, each with its facility's signature; with `more`
    they are not all. `people` is the digest of all of it, as it stands in a `log-answer`.
    """

    TYPE: ClassVar[str] = "people-answer"
    VERSION: ClassVar[int] = 2
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    cards: tuple[str, ...] = _is(_list(_facility_card, MOST_CHANGES))
    changes: tuple[str, ...] = _is(_list(_text(8192), MOST_CHANGES))
    keys: tuple[str, ...] = _is(_list(keys.ssh_key, MOST_CHANGES))
    signatures: tuple[str, ...] = _is(_list(_text(1024), MOST_CHANGES))
    tombstones: tuple[str, ...] = _is(_list(_tombstone, MOST_TOMBSTONES))
    tombstone_signatures: tuple[str, ...] = _is(_list(_text(1024), MOST_TOMBSTONES))
    more: bool = _is(_flag)
    people: str = _is(names.object_id)
    answered: str = _is(_moment)
