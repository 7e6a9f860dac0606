"""The events about one facility's data, newest first, a page at a time.

Its own: what its people did, what happened to what it sent, what an operator did about it. Of others:
searches that looked at its rows, terminals that took them, and fetches of its objects; of these it sees who,
when, by which columns and how much of its own, not for what, nor what else they saw. And each time the whole
store was copied for handing over.

Guarantees: a page reads at most `SEGMENTS` segments, so that no question holds up the service for long.

Leaves to others: whether the asker may ask (`central_store.requests`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from central_store import audit, audit_conditions, audit_segments
from central_store.audit_events import Event
from central_store.settings import Store
from schemas import answer_table
from schemas.audit_messages import AuditAnswer, AuditRequest
from schemas.messages import canonical, rfc3339
from schemas.names import FacilityName

SEGMENTS = 16
"""Most segments of a page."""
MOST = 10_000
"""Most events of a page."""
SHARED = ("owners", "rows", "objects")
"""Details that name facilities: whose rows were looked at, shown and handed out."""


def answer(store: Store, request: AuditRequest, now: datetime) -> tuple[AuditAnswer, bytes]:
    """The answer and its table, with the columns of a segment but for `previous`."""
    found, more = _page(store, request)
    table = pa.Table.from_pylist(found, audit_segments.SCHEMA).drop_columns(["previous"])
    data = answer_table.to_parquet(table)
    checkpoint = audit.newest(store.layout)
    message = AuditAnswer(
        store=store.name,
        request=request.id,
        returned=len(found),
        table=hashlib.sha256(data).hexdigest(),
        more=more,
        checkpoint="" if checkpoint is None else checkpoint.read_text("utf-8"),
        signature="" if checkpoint is None else checkpoint.with_suffix(".json.sig").read_text("ascii"),
        answered=rfc3339(now),
    )
    return message, data


def _page(store: Store, request: AuditRequest) -> tuple[list[dict[str, object]], int]:
    """The rows of a page, and the number to ask below for the next one."""
    limit = max(1, min(request.limit, MOST))
    found: list[dict[str, object]] = []
    for events, oldest in _sources(store, request):
        for event in reversed(events):
            if event.time[:19] < request.since[:19]:
                return found, 0
            if request.before and event.sequence >= request.before:
                continue
            if (shown := about(event, request.facility)) is not None:
                if len(found) >= limit:
                    return found, int(str(found[-1]["sequence"]))
                found.append(shown)
        if oldest:
            return found, oldest
    return found, 0


def _sources(store: Store, request: AuditRequest) -> Iterator[tuple[list[Event], int]]:
    """The events that may be meant, newest first; with the last of a page, the number it went down to."""
    layout = store.layout
    journal, _ = audit.read(layout)
    yield journal, 0
    read = 0
    for number in reversed(audit_segments.numbers(layout)):
        path = audit_segments.path(layout, number, "json")
        if not path.exists():
            continue  # it is not finished: its events are in the journal
        checkpoint = audit.checkpoint(path)
        first = checkpoint.sequence - checkpoint.events + 1
        if request.before and first >= request.before:
            continue
        if checkpoint.created < request.since:  # it was made after its last event
            return
        read += 1
        table = audit_segments.table(audit_segments.path(layout, number, "parquet"))
        yield list(_meant(table, request.facility)), first if read == SEGMENTS and number > 1 else 0


def _meant(table: pa.Table, facility: FacilityName) -> Iterable[Event]:
    """Those events of a segment that may be about the facility."""
    own = pc.equal(table["facility"], facility)
    named = pc.match_substring(table["details"], f'"{facility}"')
    subject = pc.equal(table["subject"], facility)
    copied = pc.equal(table["kind"], "kit")
    chosen = table.filter(pc.or_(pc.or_(own, named), pc.or_(subject, copied)))
    return [event for event in audit_segments.rows(chosen) if event is not None]


def about(event: Event, facility: FacilityName) -> dict[str, object] | None:
    """The event as the facility may see it, or None if it is not about its data."""
    details = json.loads(event.details)
    values: dict[str, object] = {
        "sequence": event.sequence, "time": datetime.fromisoformat(event.time), "kind": event.kind,
        "facility": event.facility, "user": event.user, "subject": event.subject, "details": event.details,
        "hash": event.hash,
    }  # fmt: skip
    if event.facility == facility or (event.kind == "kit" and not event.facility):
        return values
    if event.kind in ("grant", "revoke") and event.subject == facility:
        return values
    if event.kind not in ("search", "sql", "fetch", "rows"):
        return None
    shared = {key: _part(details[key], facility) for key in SHARED if facility in details.get(key, ())}
    if not shared:
        return None
    kept = {key: details[key] for key in ("level", "count_only", "names") if key in details}
    if "conditions" in details:
        kept["conditions"] = audit_conditions.counts(details["conditions"])
    return values | {"details": canonical(kept | shared).decode()}


def _part(whole: object, facility: FacilityName) -> object:
    return {facility: whole[facility]} if isinstance(whole, dict) else [facility]
