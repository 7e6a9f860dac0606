"""What is said about, and between, stores that replicate with each other.

Guarantees: those of `schemas.messages`, whose kinds these are.

Leaves to others: who may ask (`central_store.requests`, `central_store.talk`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schemas import names
from schemas.errors import FormatError
from schemas.messages import Message, StoreCard, _is, _list, _moment


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
