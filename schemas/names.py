"""Names from the other side, turned into typed ids or refused.

Guarantees: nothing from outside becomes part of a path except through this module. Every function
takes untrusted text and returns it as a type, or raises `FormatError`; none repairs anything, so each
id has exactly one spelling. Which files may lie on a shelf, and under which name, is decided here.

Leaves to others: readable file names for people on the terminal (`facility_sync.restore`), which never
leave it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, NewType, cast, get_args

from schemas.errors import FormatError

ObjectId = NewType("ObjectId", str)
"""SHA-256 of the stored bytes of one object, 64 lower-case hexadecimal digits."""

BatchId = NewType("BatchId", str)
"""SHA-256 of a batch's `manifest.parquet`, 64 lower-case hexadecimal digits."""

RequestId = NewType("RequestId", str)
"""128 random bits of whoever asks, 32 lower-case hexadecimal digits."""

FacilityName = NewType("FacilityName", str)
"""1 to 40 letters, digits, `-` or `_`, beginning with a letter or digit; also the SSH user name."""

UserName = NewType("UserName", str)
"""An account: 1 to 64 letters, digits or `. _ - @`, beginning with a letter or digit."""

Uid = NewType("Uid", str)
"""A DICOM UID (PS3.5 section 9.1): 1 to 64 digits and dots, as found (leading zeros occur)."""

_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX32 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FACILITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


def _match(pattern: re.Pattern[str], text: object, what: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise FormatError(f"this is not {what}")
    return text


def object_id(text: object) -> ObjectId:
    """Check an object's id; raises `FormatError`."""
    return ObjectId(_match(_HEX64, text, "an object id (64 hexadecimal digits)"))


def batch_id(text: object) -> BatchId:
    """Check a batch's id; raises `FormatError`."""
    return BatchId(_match(_HEX64, text, "a batch id (64 hexadecimal digits)"))


def request_id(text: object) -> RequestId:
    """Check a request's id; raises `FormatError`."""
    return RequestId(_match(_HEX32, text, "a request id (32 hexadecimal digits)"))


def facility_name(text: object) -> FacilityName:
    """Check a facility's name; raises `FormatError`."""
    return FacilityName(
        _match(_FACILITY, text, "a facility name (1 to 40 letters, digits, - or _; a letter or digit first)")
    )


def user_name(text: object) -> UserName:
    """Check an account's name; raises `FormatError`."""
    return UserName(
        _match(_USER, text, "a user name (1 to 64 letters, digits or '._-@', a letter or digit first)")
    )


def uid(text: object) -> Uid:
    """Check a DICOM UID (PS3.5 section 9.1); raises `FormatError`."""
    found = _match(_UID, text, "a DICOM UID")
    if len(found) > 64:
        raise FormatError("this is not a DICOM UID: it is longer than 64 characters")
    return Uid(found)


ShelfKind = Literal[
    "batch", "request", "tombstone", "receipt", "replica", "refusal", "notice", "erasure", "answer"
]
"""What may lie on a shelf: `in` takes batch, request and tombstone; `out` the others, and to a peer all."""

INBOUND: frozenset[str] = frozenset({"batch", "request", "tombstone"})
OUTBOUND: frozenset[str] = INBOUND | {"receipt", "replica", "refusal", "notice", "erasure", "answer"}
PART_SUFFIX = ".part"
"""A file being written: `<final name>.part`. Never read, swept by age."""


class ShelfName(NamedTuple):
    """One file's name on a shelf: `<id>.<kind>`."""

    id: str
    kind: ShelfKind

    def __str__(self) -> str:
        return f"{self.id}.{self.kind}"


def shelf_name(text: object) -> ShelfName:
    """Parse a file name found on a shelf; raises `FormatError`.

    A batch, its receipt, a notice or an erasure of it are named by the batch's id, a request and its answer
    by the request's; a tombstone by the SHA-256 of its message; a refusal by the id of what it refuses; a
    replica by the batch and the store that holds it too.
    """
    stem, dot, kind = text.rpartition(".") if isinstance(text, str) else ("", "", "")
    if not dot or kind not in get_args(ShelfKind):
        raise FormatError("this name has no place on a shelf")
    if kind in ("batch", "receipt", "notice", "erasure"):
        batch_id(stem)
    elif kind == "tombstone":
        object_id(stem)
    elif kind == "replica":
        replica_of(stem)
    elif kind in ("request", "answer"):
        request_id(stem)
    elif not (_HEX64.fullmatch(stem) or _HEX32.fullmatch(stem)):
        raise FormatError("this name has no place on a shelf")
    return ShelfName(stem, cast(ShelfKind, kind))


def replica_of(stem: str) -> tuple[BatchId, FacilityName]:
    """The batch and the store that a replica's id, `<batch id>.<store name>`, names; raises `FormatError`."""
    batch, _, store = stem.partition(".")
    return batch_id(batch), facility_name(store)
