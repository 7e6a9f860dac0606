"""What is said about the store's audit log: its checkpoints, and a facility's question about its own data.

Guarantees: those of `schemas.messages`, whose kinds these are.

Leaves to others: the log itself (`central_store.audit`), who may ask (`central_store.requests`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schemas import names
from schemas.messages import Message, _count, _digest, _is, _moment, _optional, _text


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Message):
    """The store says: up to event `sequence`, whose hash is `head`, my audit log is this.

    `table` is the SHA-256 of the segment that ends there, `previous` that of the checkpoint before it.
    """

    TYPE: ClassVar[str] = "checkpoint"
    store: names.FacilityName = _is(names.facility_name)
    segment: int = _is(_count)
    events: int = _is(_count)
    sequence: int = _is(_count)
    head: str = _is(_digest)
    table: str = _is(_digest)
    previous: str = _is(_optional(_digest))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class AuditRequest(Message):
    """A person asks for audit events about the facility's data: below number `before` (0: the newest)."""

    TYPE: ClassVar[str] = "audit-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    user: names.UserName = _is(names.user_name)
    password: str = _is(_text(1024), repr=False)
    since: str = _is(_optional(_moment))
    before: int = _is(_count)
    limit: int = _is(_count)
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class AuditAnswer(Message):
    """The store answers with a table of events, newest first, and its newest checkpoint with its signature.

    `more` is the number to ask below for what is older, or 0.
    """

    TYPE: ClassVar[str] = "audit-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    returned: int = _is(_count)
    table: str = _is(_digest)
    more: int = _is(_count)
    checkpoint: str = _is(_text(2000))
    signature: str = _is(_text(2000))
    answered: str = _is(_moment)
