"""What a terminal and a store say about the rows a terminal keeps for questions with the line down.

First the terminal tells which batches it has rows of, in a few digests, and hears what is different; then it
asks for the manifests it lacks, and gets as many as one answer holds.

Guarantees: those of `schemas.messages`, whose kinds these are.

Leaves to others: which batches differ (`schemas.row_marks`), who may see what (`central_store.row_answers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from schemas import names, row_marks
from schemas.errors import FormatError
from schemas.messages import Message, Receipt, Statement, _count, _is, _list, _map, _moment

MOST_OWNERS = 10_000
MOST_LISTED = 50_000
"""Most batch ids in one answer."""
MOST_BATCHES = 1000
"""Most manifests in one request."""


def _mark(value: object) -> str:
    return str(row_marks.mark(value))


def _text_of(kind: type[Message]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str):
            raise FormatError(f"this is not a {kind.TYPE}")
        return kind.from_bytes(value.encode("utf-8", "replace")).to_bytes().decode("utf-8")

    return check


@dataclass(frozen=True, kw_only=True)
class RowsRequest(Message):
    """A terminal asks: whose rows may I keep, and of which batches? It has those its marks tell."""

    TYPE: ClassVar[str] = "rows-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    marks: dict[names.FacilityName, tuple[str, ...]] = _is(
        _map(names.facility_name, _list(_mark, row_marks.MOST_MARKS), MOST_OWNERS)
    )
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class RowsAnswer(Message):
    """The store says: you may see the rows of these facilities, and of none but them.

    Of each: the marks that are the same here, by their last sequence number, and every other batch; nothing
    is said of sequence numbers from `until` on. `damaged` are the batches whose rows stand behind others.
    """

    TYPE: ClassVar[str] = "rows-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    owners: tuple[names.FacilityName, ...] = _is(_list(names.facility_name, MOST_OWNERS))
    agreed: dict[names.FacilityName, tuple[int, ...]] = _is(
        _map(names.facility_name, _list(_count, row_marks.MOST_MARKS), MOST_OWNERS)
    )
    listed: dict[names.FacilityName, tuple[names.BatchId, ...]] = _is(
        _map(names.facility_name, _list(names.batch_id, MOST_LISTED), MOST_OWNERS)
    )
    until: dict[names.FacilityName, int] = _is(_map(names.facility_name, _count, MOST_OWNERS))
    damaged: tuple[names.BatchId, ...] = _is(_list(names.batch_id))
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class ManifestsRequest(Message):
    """A terminal asks for the manifests of these batches."""

    TYPE: ClassVar[str] = "manifests-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    batches: tuple[names.BatchId, ...] = _is(_list(names.batch_id, MOST_BATCHES))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class ManifestsAnswer(Message):
    """The store says: these follow in the same container, in this order; the rest has to be asked for again.

    `statements` and `receipts` are the texts of these messages, `sizes` the bytes of each manifest; `missing`
    are batches that are not here, or nothing the asker may see.
    """

    TYPE: ClassVar[str] = "manifests-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    statements: tuple[str, ...] = _is(_list(_text_of(Statement), MOST_BATCHES))
    receipts: tuple[str, ...] = _is(_list(_text_of(Receipt), MOST_BATCHES))
    sizes: tuple[int, ...] = _is(_list(_count, MOST_BATCHES))
    missing: tuple[names.BatchId, ...] = _is(_list(names.batch_id, MOST_BATCHES))
    answered: str = _is(_moment)
