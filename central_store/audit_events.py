"""What an event of the audit log is, and how events follow each other. Pure.

An event's hash is SHA-256(previous hash + body), both as text: the body is the canonical JSON of its other
values, and the hash before the first event is 64 zeros. Names in an event never need an escape in JSON, so
that SQL can write the body again (`docs/auditors.md`).

Guarantees: `from_line` takes the one spelling of an event whose hash fits, and raises `FormatError` for
everything else.

Leaves to others: writing (`central_store.audit`), segments (`central_store.audit_segments`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from schemas.errors import FormatError
from schemas.messages import canonical

KINDS: dict[str, str] = {
    "init": "The store was made.",
    "settings": "`store.toml` was changed; from now on these settings count.",
    "start": "The service began.",
    "stop": "The service ended as it was told.",
    "enrol": "A facility's card was taken in; the subject is its key.",
    "account": "A person may search: a new account, or a new password.",
    "account-removed": "A person may not search any more.",
    "grant": "The subject may see the facility's rows.",
    "revoke": "The subject may not see them any more.",
    "search": "A person searched by `conditions`; `rows` shown of whom, `owners` whose were looked at.",
    "sql": "A person asked in SQL: its views and columns, its `tokens`, and `owners`, others it could see.",
    "fetch": "A person was given objects: `objects` of which facility.",
    "rows": "A terminal took rows for questions with the line down: `rows` of which facility.",
    "log-read": "A person read the events about the facility's data.",
    "refusal": "A batch or request was refused, with its reason.",
    "ingest": "A batch became durable, or was found so.",
    "erase": "A batch was erased, as the facility's tombstone wants it; `reason` is its code.",
    "purge": "What was left of an erased batch was removed for good.",
    "quarantine": "A damaged pack was set aside, or found missing.",
    "repair": "A damaged batch is whole again.",
    "peer": "The subject is a store to replicate with, or what is set for it changed.",
    "peer-removed": "It is none any more.",
    "peer-alarm": "A peer did what no honest, undamaged store does.",
    "check-begun": "Its bytes are being read; if no `check` follows, that was ended early.",
    "check": "The store was checked.",
    "peer-cleared": "A person said to know why.",
    "replicate": "A batch was sealed for a peer.",
    "restore": "What a peer brought counts as enrolled here.",
    "rebuild": "The catalog was made again.",
    "prune": "Files were removed for age or number: from `quarantine`, or `replies` nobody took.",
    "kit": "Manifests and events were copied for handing over.",
    "journal-damaged": "Lines of the journal could not be read; they were set aside.",
}
"""Kinds of events."""

ORIGIN = "0" * 64
"""The hash before the first event."""
MAX_LINE = 1 << 20
"""Most bytes of a line: details are counts and names, of many thousand facilities if need be."""
_NAME = re.compile(r"[A-Za-z0-9._@:/+=-]{0,128}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


class Head(NamedTuple):
    """Where the log stands: number and hash of the last event."""

    sequence: int
    hash: str


START = Head(0, ORIGIN)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event; `details` is canonical JSON, `time` RFC 3339 in UTC with microseconds."""

    sequence: int
    time: str
    kind: str
    facility: str
    user: str
    subject: str
    details: str
    previous: str

    def __post_init__(self) -> None:
        names = (self.facility, self.user, self.subject, self.kind)
        if not (all(_NAME.fullmatch(text) for text in names) and _TIME.fullmatch(self.time)):
            raise FormatError("this is no event of the audit log")

    def body(self) -> str:
        """What is hashed behind the previous hash."""
        return (
            f'{{"details":{self.details},"facility":"{self.facility}","kind":"{self.kind}",'
            f'"sequence":{self.sequence},"subject":"{self.subject}","time":"{self.time}","user":"{self.user}"}}'
        )

    @property
    def hash(self) -> str:
        """What the next event follows."""
        return hashlib.sha256((self.previous + self.body()).encode()).hexdigest()

    def line(self) -> bytes:
        """As it stands in the journal, line end included."""
        return canonical(json.loads(self.body()) | {"hash": self.hash, "previous": self.previous}) + b"\n"

    def head(self) -> Head:
        """Where the log stands after it."""
        return Head(self.sequence, self.hash)

    def follows(self, last: Head) -> bool:
        """Whether it is the one after `last`."""
        return (self.sequence, self.previous) == (last.sequence + 1, last.hash)


def from_line(line: bytes) -> Event:
    """The event of a journal's line, line end included; raises `FormatError`."""
    try:
        values = json.loads(line)
        del values["hash"]
        event = Event(**values | {"details": canonical(values["details"]).decode()})
        same = event.line() == line
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError("this is no line of the journal") from error
    if not same:
        raise FormatError("a line of the journal was changed")
    return event


def following(data: bytes, after: Head) -> tuple[list[Event], int]:
    """The events of a journal that follow `after`, and up to where it could be read.

    Events that `after` covers are passed over; it ends before half a line, one that is none, or one that does
    not follow.
    """
    found: list[Event] = []
    at, last = 0, after
    while (end := data.find(b"\n", at) + 1) > 0:
        try:
            event = from_line(data[at:end])
        except FormatError:
            break
        if event.sequence > after.sequence:
            if not event.follows(last):
                break
            found.append(event)
            last = event.head()
        at = end
    return found, at
