"""What the two sides say to each other: small signed statements as canonical JSON (RFC 8259).

Guarantees: `to_bytes` has one spelling (sorted keys, no blanks, UTF-8); `from_bytes` accepts that
spelling of a known type and version with exactly its fields, each checked, and raises `FormatError` (or
`VersionError`) for everything else, so that decode then encode gives the same bytes.

Leaves to others: signing and sealing (`schemas.container`), what a request may ask (`schemas.columns`,
`central_store.access`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from schemas import keys, names
from schemas.errors import FormatError, VersionError

MAX_BYTES = 16 * 1024 * 1024
"""Largest message in bytes; checked before it is parsed."""
MAX_ITEMS = 100_000
"""Most items in a list or mapping."""
MAX_SQL = 20_000
"""Most characters of one statement of SQL."""
_MAX_PARTS = 1_000_000
_MAX_NESTED = 100_000
"""Most commas and most brackets in one message: sixteen megabytes of `[],` would be half a gigabyte."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def rfc3339(moment: datetime) -> str:
    """`2026-11-24T08:30:00Z`: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def canonical(value: object) -> bytes:
    """The one JSON spelling of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


# Checks: each takes what JSON gave and returns it as the field's type, or raises FormatError.


def _moment(value: object) -> str:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise FormatError("this is not a UTC time")
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise FormatError("this is not a UTC time") from error
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise FormatError("this is not a count")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise FormatError("this is neither true nor false")
    return value


def _text(limit: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise FormatError(f"this is not a text of at most {limit} characters")
        return value

    return check


def _one_of(*allowed: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise FormatError(f"this is none of {', '.join(allowed)}")
        return value

    return check


def _optional(inner: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: value if value == "" else inner(value)


def _list(inner: Callable[[object], Any], limit: int = MAX_ITEMS) -> Callable[[object], Any]:
    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > limit:
            raise FormatError(f"this is not a list of at most {limit} items")
        return tuple(inner(item) for item in value)

    return check


def _map(key: Callable[[object], Any], inner: Callable[[object], Any], limit: int) -> Callable[[object], Any]:
    def check(value: object) -> dict[Any, Any]:
        if not isinstance(value, Mapping) or len(value) > limit:
            raise FormatError(f"this is not a mapping of at most {limit} items")
        return {key(name): inner(item) for name, item in value.items()}

    return check


def _is(check: Callable[[object], Any], **more: Any) -> Any:
    return field(metadata={"check": check}, **more)


_KINDS: dict[str, type[Message]] = {}


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of every message; a subclass is its fields, each with its check."""

    TYPE: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.TYPE] = cls

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            try:
                checked = item.metadata["check"](getattr(self, item.name))
            except FormatError as error:
                raise FormatError(f"{self.TYPE}.{item.name}: {error}") from None
            object.__setattr__(self, item.name, checked)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return canonical(values | {"type": self.TYPE, "version": self.VERSION})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a message that must be of this type; raises `FormatError`, `VersionError`."""
        message = parse(data)
        if not isinstance(message, cls):
            raise FormatError(f"this is a {message.TYPE}, not a {cls.TYPE}")
        return message


def parse(data: bytes) -> Message:
    """Parse a message of any known type; raises `FormatError`, `VersionError`."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"a message is larger than {MAX_BYTES} bytes")
    if data.count(b",") > _MAX_PARTS or data.count(b"[") + data.count(b"{") > _MAX_NESTED:
        raise FormatError("a message has more parts than any of its kind")
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError("this is not JSON") from error
    kind = values.pop("type", None) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FormatError("this is not a message of a known type")
    cls = _KINDS[kind]
    if values.pop("version", None) != cls.VERSION:
        raise VersionError(f"this {kind} is of a version this program does not know")
    if set(values) != {item.name for item in dataclasses.fields(cls)}:
        raise FormatError(f"this {kind} has not exactly the fields of its version")
    message = cls(**values)
    try:
        same = message.to_bytes() == data
    except UnicodeEncodeError:  # a lone surrogate from a \u escape has no UTF-8 spelling
        same = False
    if not same:
        raise FormatError(f"this {kind} is not in its one spelling")
    return message


@dataclass(frozen=True, kw_only=True)
class FacilityCard(Message):
    """What a store must know of a facility's terminal; public."""

    TYPE: ClassVar[str] = "facility-card"
    facility: names.FacilityName = _is(names.facility_name)
    ssh_key: str = _is(keys.ssh_key)
    age_recipient: str = _is(keys.age_recipient)


@dataclass(frozen=True, kw_only=True)
class StoreCard(Message):
    """What a terminal must know of a store; public."""

    TYPE: ClassVar[str] = "store-card"
    store: names.FacilityName = _is(names.facility_name)
    host: str = _is(_text(255))
    port: int = _is(_count)
    host_key: str = _is(keys.ssh_key)
    signing_key: str = _is(keys.ssh_key)
    age_recipient: str = _is(keys.age_recipient)


@dataclass(frozen=True, kw_only=True)
class Capsule(Message):
    """A facility says: this is what a protected object restores.

    `original` is the SHA-256 of the file, `item` that of the element (0400,0550) beside the capsule,
    `pixels_at` where the pixel value stood in the file. As short as it can be: it is in every object.
    """

    TYPE: ClassVar[str] = "capsule"
    facility: names.FacilityName = _is(names.facility_name)
    original: str = _is(names.object_id)
    original_bytes: int = _is(_count)
    item: str = _is(names.object_id)
    pixels_at: int = _is(_count)
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Statement(Message):
    """A facility says: these objects, in this order, are mine. It survives sealing and replication."""

    TYPE: ClassVar[str] = "statement"
    facility: names.FacilityName = _is(names.facility_name)
    sequence: int = _is(_count)
    previous: str = _is(_optional(names.batch_id))
    batch: names.BatchId = _is(names.batch_id)
    objects: int = _is(_count)
    bytes: int = _is(_count)
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Receipt(Message):
    """The store says: this batch is durable here."""

    TYPE: ClassVar[str] = "receipt"
    store: names.FacilityName = _is(names.facility_name)
    facility: names.FacilityName = _is(names.facility_name)
    batch: names.BatchId = _is(names.batch_id)
    sequence: int = _is(_count)
    objects: int = _is(_count)
    bytes: int = _is(_count)
    stored: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Notice(Message):
    """The store says: this batch was durable here and is damaged now. Send again what you still have."""

    TYPE: ClassVar[str] = "notice"
    store: names.FacilityName = _is(names.facility_name)
    facility: names.FacilityName = _is(names.facility_name)
    batch: names.BatchId = _is(names.batch_id)
    reason: str = _is(_text(40))
    found: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class Refusal(Message):
    """The store says: this was not taken, and why. `subject` is the shelf name's id."""

    TYPE: ClassVar[str] = "refusal"
    store: names.FacilityName = _is(names.facility_name)
    facility: names.FacilityName = _is(names.facility_name)
    subject: str = _is(_text(64))
    kind: str = _is(_one_of("batch", "request", "tombstone"))
    reason: str = _is(_text(40))
    explanation: str = _is(_text(500))
    refused: str = _is(_moment)


_digest = names.object_id


@dataclass(frozen=True, kw_only=True)
class HeldRequest(Message):
    """A terminal asks: which of these source files do you hold? They are named by keyed digest."""

    TYPE: ClassVar[str] = "held-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    digests: tuple[str, ...] = _is(_list(_digest))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class HeldAnswer(Message):
    """The store says: these are durable here, in these batches; and where your sequence stands."""

    TYPE: ClassVar[str] = "held-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    held: dict[str, names.BatchId] = _is(_map(_digest, names.batch_id, MAX_ITEMS))
    sequence: int = _is(_count)
    head: str = _is(_optional(names.batch_id))
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class SearchRequest(Message):
    """A person asks for rows.

    Conditions: column to accepted values; any value of each column fits. Order: columns of the answer, each
    perhaps with `:desc`; the newest study first where it leaves anything open.
    """

    TYPE: ClassVar[str] = "search-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    user: names.UserName = _is(names.user_name)
    password: str = _is(_text(1024), repr=False)
    level: str = _is(_one_of("study", "series", "instance"))
    conditions: dict[str, tuple[str, ...]] = _is(_map(_text(64), _list(_text(300), 10_000), 64))
    count_only: bool = _is(_flag)
    limit: int = _is(_count)
    offset: int = _is(_count, default=0)
    order: tuple[str, ...] = _is(_list(_text(80), 8), default=())
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class SearchAnswer(Message):
    """The store answers a search: how much matches, and the digest of the table of rows beside it."""

    TYPE: ClassVar[str] = "search-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    matches: int = _is(_count)
    instances: int = _is(_count)
    bytes: int = _is(_count)
    returned: int = _is(_count)
    table: str = _is(_optional(_digest))
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class SqlRequest(Message):
    """A person asks for rows with one SELECT over the views of `schemas.views`.

    Patients are tokens in it: the terminal put them there.
    """

    TYPE: ClassVar[str] = "sql-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    user: names.UserName = _is(names.user_name)
    password: str = _is(_text(1024), repr=False)
    sql: str = _is(_text(MAX_SQL))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class SqlAnswer(Message):
    """The store answers SQL: how many rows, and the digest of the table beside it, whose types are SQL's."""

    TYPE: ClassVar[str] = "sql-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    returned: int = _is(_count)
    table: str = _is(_digest)
    answered: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class FetchRequest(Message):
    """A person asks for objects by id."""

    TYPE: ClassVar[str] = "fetch-request"
    id: names.RequestId = _is(names.request_id)
    facility: names.FacilityName = _is(names.facility_name)
    user: names.UserName = _is(names.user_name)
    password: str = _is(_text(1024), repr=False)
    objects: tuple[names.ObjectId, ...] = _is(_list(names.object_id))
    created: str = _is(_moment)


@dataclass(frozen=True, kw_only=True)
class FetchAnswer(Message):
    """The store answers a fetch: the objects that follow in the same container, in this order."""

    TYPE: ClassVar[str] = "fetch-answer"
    store: names.FacilityName = _is(names.facility_name)
    request: names.RequestId = _is(names.request_id)
    objects: tuple[names.ObjectId, ...] = _is(_list(names.object_id))
    bytes: int = _is(_count)
    missing: tuple[names.ObjectId, ...] = _is(_list(names.object_id))
    answered: str = _is(_moment)
