"""Open a request, decide whether it may be answered, and answer it.

Order: opened for our key; signed by the facility whose shelf it lay on, speaking for that facility, named
by its own id; for search, SQL and fetch the password, before anything else is looked at; then only rows of
facilities the asker may see exist at all. Rows that a terminal keeps for itself need its key alone.

Guarantees: a wrong password, an unknown user and a user of another facility get the same refusal, and after
several of them nothing is checked for a while; a search ends after `search_seconds`; whatever the bytes, only
`SyncError` comes out. Nothing of a request's conditions or password is logged.

Leaves to others: when (`central_store.service`), sealing many objects (`central_store.fetch`).
"""

from __future__ import annotations

import io
import logging
import os
from collections import Counter as Tally
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from central_store import (
    access,
    audit,
    audit_answers,
    audit_conditions,
    fetch,
    grants,
    inbox,
    peers,
    replies,
    row_answers,
    search,
    sql,
)
from central_store.accounts import Doorman
from central_store.catalog import Catalog
from central_store.replies import Refused
from central_store.settings import Store
from schemas import container, envelope, messages, ustar
from schemas.audit_messages import AuditRequest
from schemas.errors import FormatError
from schemas.messages import (
    FacilityCard,
    FetchRequest,
    HeldRequest,
    Message,
    SearchRequest,
    SqlRequest,
    rfc3339,
)
from schemas.names import FacilityName, RequestId, ShelfName
from schemas.peer_messages import StoresAnswer, StoresRequest
from schemas.row_messages import ManifestsRequest, RowsRequest

log = logging.getLogger("central_store")

LIMIT = messages.MAX_BYTES + 64 * 1024
"""Most bytes of an opened request: its message and what stands around it."""


class Counter:
    """Answers requests for one store, in the service's process.

    Args:
        store: whose shelves and keys.
        catalog: where rows are found.
        doorman: checks passwords.
    """

    def __init__(self, store: Store, catalog: Catalog, doorman: Doorman) -> None:
        self._store = store
        self._catalog = catalog
        self._doorman = doorman
        self.asker = ""
        """The user of the request that was opened last, if there is such an account."""

    def answer(self, card: FacilityCard, name: ShelfName, now: datetime) -> fetch.Order | sql.Question | None:
        """Answer one request on a facility's shelf.

        Returns:
            None when the answer is on the shelf, or what a worker has to send or to run.

        Raises:
            FormatError, SealError, AccessDenied, Damaged: refuse it.
            FileNotFoundError: it is not there any more.
        """
        self.asker = ""
        request = self._open(card, name)
        if isinstance(request, (HeldRequest, StoresRequest, RowsRequest, ManifestsRequest)):
            self._put(card, name, self._for_terminal(card, request, now))
            return None
        if not isinstance(request, (SearchRequest, SqlRequest, FetchRequest, AuditRequest)):
            raise FormatError("a container on the shelf of requests holds no request")
        if self._store.layout.account(card.facility, request.user).exists():
            self.asker = request.user  # a name that is none may be a password in the wrong field
        self._doorman.check(card.facility, request.user, request.password, now.timestamp())
        owners = access.visible(card.facility, grants.given(self._store.layout))
        if isinstance(request, SearchRequest):
            found, table, whose = search.search(self._catalog, self._store.name, request, owners, now)
            details = {
                "level": request.level, "count_only": request.count_only, "matches": found.matches,
                "returned": found.returned, "rows": whose,
                "conditions": audit_conditions.conditions(request.conditions, owners),
                "owners": _others(card, owners),
            }  # fmt: skip
            self._record("search", request, now, details)
            self._put(card, name, replies.sealed(self._store, card, found, table))
            log.info(
                "searched facility=%s request=%s level=%s matches=%d returned=%d",
                card.facility, name.id, request.level, found.matches, found.returned,
            )  # fmt: skip
            return None
        if isinstance(request, AuditRequest):
            self._record("log-read", request, now, {"since": request.since, "before": request.before})
            events, table = audit_answers.answer(self._store, request, now)
            self._put(card, name, replies.sealed(self._store, card, events, table))
            return None
        if isinstance(request, SqlRequest):
            log.info("sql facility=%s request=%s characters=%d", card.facility, name.id, len(request.sql))
            question = sql.Question(
                card, RequestId(name.id), request.sql, owners, rfc3339(now), request.user
            )  # fmt: skip
            details = {
                "characters": len(request.sql),
                "names": question.named(),
                "owners": _others(card, owners),
                "tokens": audit_conditions.tokens(request.sql),
            }
            self._record("sql", request, now, details)
            return question
        places = self._catalog.places(request.objects, owners)
        fetch.check_size(places)
        present = {place.object for place in places}
        missing = tuple(item for item in dict.fromkeys(request.objects) if item not in present)
        log.info("fetch facility=%s request=%s objects=%d", card.facility, name.id, len(places))
        details = {
            "objects": Tally(place.facility for place in places), "missing": len(missing),
            "bytes": sum(place.length for place in places),
        }  # fmt: skip
        self._record("fetch", request, now, details)
        return fetch.Order(card, RequestId(name.id), tuple(places), missing, rfc3339(now), request.user)

    def _for_terminal(
        self,
        card: FacilityCard,
        request: HeldRequest | StoresRequest | RowsRequest | ManifestsRequest,
        now: datetime,
    ) -> bytes:
        """The sealed answer to the terminal itself: its key is enough."""
        if isinstance(request, HeldRequest):
            held = search.held(self._catalog, self._store.name, request, now)
            return replies.sealed(self._store, card, held)
        if isinstance(request, StoresRequest):
            cards = tuple(peer.card.to_bytes().decode() for peer in peers.everyone(self._store.layout))
            stores = StoresAnswer(
                store=self._store.name, request=request.id, cards=cards, answered=rfc3339(now)
            )
            return replies.sealed(self._store, card, stores)
        owners = access.visible(card.facility, grants.given(self._store.layout))
        if isinstance(request, RowsRequest):
            told = row_answers.rows(self._store, self._catalog, request, owners, now)
            return replies.sealed(self._store, card, told)
        given = row_answers.manifests(self._store, self._catalog, request, owners, now)
        audit.record(
            self._store.layout, "rows", facility=card.facility, subject=request.id,
            details={"rows": given.rows, "owners": _others(card, tuple(given.rows))}, now=now,
        )  # fmt: skip
        return envelope.seal_bytes(given.plain, [card.age_recipient])

    def _record(
        self,
        kind: str,
        request: SearchRequest | SqlRequest | FetchRequest | AuditRequest,
        now: datetime,
        details: dict[str, Any],
    ) -> None:
        """Into the audit log, before the answer is seen."""
        audit.record(
            self._store.layout, kind, facility=request.facility, user=request.user, subject=request.id,
            details=details, now=now,
        )  # fmt: skip

    def _put(self, card: FacilityCard, name: ShelfName, data: bytes) -> None:
        replies.put(self._store, card, ShelfName(name.id, "answer"), data)

    def _open(self, card: FacilityCard, name: ShelfName) -> Message:
        with inbox.open_arrival(self._store.layout, card.facility, name) as file:
            if os.fstat(file.fileno()).st_size > envelope.sealed_size(LIMIT, 64 * 1024):
                raise FormatError("a request is larger than any request may be")
            sink = io.BytesIO()
            envelope.open_sealed(file, sink, [self._store.keys.age_identity], limit=LIMIT)
        sink.seek(0)
        tar = ustar.Reader(sink, limit=LIMIT)
        message = container.read_head(tar, lambda message: _signer(message, card)).signed.message
        if tar.next() is not None:
            raise FormatError("there is more in a request than its message")
        if getattr(message, "id", None) != name.id:
            raise Refused("other-name", "the name on the shelf is not the request's id")
        return message


def _others(card: FacilityCard, owners: Sequence[FacilityName]) -> list[str]:
    return [owner for owner in owners if owner != card.facility]


def _signer(message: Message, card: FacilityCard) -> str:
    if getattr(message, "facility", card.facility) != card.facility:
        raise Refused("other-facility", "the request is another facility's than the shelf")
    return card.ssh_key
