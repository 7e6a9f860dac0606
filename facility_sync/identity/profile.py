"""What becomes of each attribute: PS3.15 Table E.1-1 with our options, as a pure table.

The Basic Application Level Confidentiality Profile with the options of `OPTIONS` (PS3.15 sections E.2 and
E.3; edition 2026c, `profile.csv` beside this module). Guarantees, in this order:

- private attributes and group lengths go;
- what an option of ours keeps (K) is kept; what it would keep cleaned (C) is not trusted: the basic action;
- a basic action with variants (X/Z, X/D, ...) becomes the one that is valid whatever the attribute's type in
  its IOD: a dummy for D, zero length for Z;
- public attributes that neither the table nor the dictionary knows go;
- `OURS` comes first: texts that people type and the table does not know, and what validity asks for;
- free text outside the table becomes a dummy; a value of an unknown kind, or of another than the dictionary
  says where one of the two is free text, goes;
- the rest stays.

Leaves to others: walking over a data set, items of sequences included; the tokens that stand for patient ID
and name; File Meta (group 0002), pixel data and our own (0400,0500), which is not in the table; whether
pixels and overlays show an identity.
"""

from __future__ import annotations

import csv
from enum import StrEnum
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

from pydicom.datadict import dictionary_VR


class Action(StrEnum):
    """What to do with an element."""

    KEEP = "keep"
    """Leave the value; in a sequence, look at every element of its items."""
    REMOVE = "remove"
    """Leave the element out."""
    EMPTY = "empty"
    """Write it with zero length."""
    DUMMY = "dummy"
    """Write `DUMMIES[vr]`; in a sequence, act on every element of its items and replace text there."""


OPTIONS = {
    "retain_uids": "Retain UIDs",
    "retain_device": "Retain Device Identity",
    "retain_institution": "Retain Institution Identity",
    "retain_full_dates": "Retain Longitudinal Full Dates",
}
"""Our options: column of the table, and name."""

CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    ("113109", "Retain Device Identity Option"),
    ("113110", "Retain UIDs Option"),
    ("113112", "Retain Institution Identity Option"),
)
"""Code value and meaning, scheme DCM, for De-identification Method Code Sequence (PS3.16 CID 7050)."""

DUMMIES: dict[str, bytes] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), b"ANON"),
    "PN": b"ANON^^",  # a name without ^ is the retired form
    "DA": b"19000101",
    "TM": b"000000",
    "DT": b"19000101000000",
    "AS": b"000Y",
    **dict.fromkeys(("DS", "IS"), b"0 "),
    "UI": b"2.25.0",
    "UR": b"urn:uuid:00000000-0000-0000-0000-000000000000 ",
    **dict.fromkeys(("OB", "OW", "SS", "UN", "US"), bytes(2)),
    **dict.fromkeys(("AT", "FL", "OF", "OL", "SL", "UL"), bytes(4)),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), bytes(8)),
}
"""By VR a value that says nothing; even length, either byte order, any character set (PS3.5 section 6.2)."""

OURS: dict[int, Action] = {
    # Short texts outside the table that somebody types, or that say when somebody was born or died.
    0x00100033: Action.REMOVE,  # birth date in an alternative calendar
    0x00100034: Action.REMOVE,  # death date in an alternative calendar
    0x00100035: Action.REMOVE,  # which calendar
    0x00102295: Action.REMOVE,  # Breed Registration Number
    0x00120063: Action.REMOVE,  # De-identification Method of an earlier tool
    0x00189423: Action.REMOVE,  # Acquisition Protocol Name
    0x00400255: Action.REMOVE,  # Performed Procedure Type Description
    0x00401060: Action.REMOVE,  # Requested Procedure Description, retired
    0x30040006: Action.REMOVE,  # Dose Comment
    0x300600C8: Action.REMOVE,  # Frame of Reference Transformation Comment
    # The same, but required where they stand.
    0x00209453: Action.DUMMY,  # Frame Label
    0x00620005: Action.DUMMY,  # Segment Label
    0x00700081: Action.DUMMY,  # Content Description
    0x30020002: Action.DUMMY,  # RT Image Label
    0x300A0183: Action.DUMMY,  # Patient Setup Label
    # X in the table, but of type 2 in an IOD: without them an object that was valid would not be.
    0x00102297: Action.EMPTY,  # Responsible Person
    0x00102299: Action.EMPTY,  # Responsible Organization
    0x00420010: Action.EMPTY,  # Document Title
}
"""Where we are stricter than the table, or valid where it is not."""

_ACTIONS = {
    "X": Action.REMOVE,
    **dict.fromkeys(("Z", "X/Z", "X/Z/U*"), Action.EMPTY),
    **dict.fromkeys(("D", "U", "X/D", "Z/D", "X/Z/D"), Action.DUMMY),
}
_FREE_TEXT = frozenset({"LT", "PN", "ST", "UC", "UT"})


class _Rule(NamedTuple):
    action: Action
    reason: str


class _Table(NamedTuple):
    single: dict[int, _Rule]
    repeating: list[tuple[int, int, _Rule]]  # mask, value, rule: 60xx3000 is FF00FFFF, 60003000


@cache
def _table() -> _Table:
    table = _Table({}, [])
    text = files(__package__).joinpath("profile.csv").read_text("utf-8")
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        tag, kept = row["tag"], [name for column, name in OPTIONS.items() if row[column] == "K"]
        rule = _Rule(_ACTIONS[row["basic"]], f"Basic Profile: {row['basic']}")
        if kept:
            rule = _Rule(Action.KEEP, f"kept: {', '.join(kept)}")
        if "x" in tag:
            mask = "".join("0" if digit == "x" else "F" for digit in tag)
            table.repeating.append((int(mask, 16), int(tag.replace("x", "0"), 16), rule))
        elif tag != "private":  # the rule for odd groups is the first line of `_rule`
            table.single[int(tag, 16)] = rule
    return table


def _rule(tag: int, vr: str) -> _Rule:
    if tag >> 16 & 1:
        return _Rule(Action.REMOVE, "private attribute")
    if not tag & 0xFFFF:
        return _Rule(Action.REMOVE, "group length")
    if tag in OURS:
        return _Rule(OURS[tag], "stricter than Table E.1-1, or for validity")
    table = _table()
    rule = table.single.get(tag) or next(
        (r for mask, value, r in table.repeating if tag & mask == value), None
    )
    return rule or _unlisted(tag, vr)


def _unlisted(tag: int, vr: str) -> _Rule:
    try:
        kinds = {vr, dictionary_VR(tag)}
    except KeyError:
        return _Rule(Action.REMOVE, "unknown attribute")
    if kinds & _FREE_TEXT:
        return _Rule(Action.DUMMY if len(kinds) == 1 else Action.REMOVE, "free text")
    if "UN" in kinds:
        return _Rule(Action.REMOVE, "value of an unknown kind")
    return _Rule(Action.KEEP, "not in Table E.1-1")


def single() -> frozenset[int]:
    """The attributes of the table that are one tag each."""
    return frozenset(_table().single)


@lru_cache(maxsize=1 << 14)  # more than there are attributes; bounded, since a file may name any tag
def action(tag: int, vr: str) -> Action:
    """What to do with an element.

    Args:
        tag: group and element, 32 bits.
        vr: as the file has it; empty where it has none.
    """
    return _rule(tag, vr).action


def reason(tag: int, vr: str) -> str:
    """Why `action` says so, in a few words; arguments as there."""
    return _rule(tag, vr).reason
