"""What protection would do to each attribute of a file, and why: for people.

Guarantees: values that would not be shown centrally are masked unless asked for; whatever the bytes, lines or
`FormatError` come out. The actions are those of `profile`, not a second opinion.

Leaves to others: whether the file would be protected at all (`decide`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom.dataset import Dataset

from facility_sync.identity.profile import Action, action, reason
from facility_sync.identity.protect import TOKENS
from schemas.errors import FormatError

MASK = "(hidden)"
_LONGEST = 64
_DEEPEST = 16


class Line(NamedTuple):
    """One attribute: where it stands, what it is, what becomes of it and why, its value."""

    tag: str
    name: str
    vr: str
    action: str
    reason: str
    value: str


def lines(source: BinaryIO, *, show: bool) -> list[Line]:
    """Every attribute of a file up to its pixel data, items of sequences included.

    Args:
        source: the file.
        show: show the values that would be hidden, too.

    Raises:
        FormatError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's may quote values
        try:
            return list(_lines(pydicom.dcmread(source, stop_before_pixels=True, force=True), "", show))
        except Exception as error:  # pydicom raises anything
            raise FormatError("this is no readable DICOM file") from error


def _lines(dataset: Dataset, before: str, show: bool) -> Iterator[Line]:
    for element in dataset:
        tag = int(element.tag)
        place = f"{before}({tag >> 16:04X},{tag & 0xFFFF:04X})"
        done, why = action(tag, element.VR), reason(tag, element.VR)
        becomes = "token" if not before and tag in TOKENS and not element.is_empty else done.value
        hidden = done is not Action.KEEP and not show
        if element.VR == "SQ":
            yield Line(place, element.name, "SQ", becomes, why, f"{len(element.value or ())} items")
            if not hidden and before.count(">") < _DEEPEST:
                for number, item in enumerate(element.value or ()):
                    yield from _lines(item, f"{place}[{number}]>", show)
            continue
        value = MASK if hidden and not element.is_empty else _text(element.value)
        yield Line(place, element.name, element.VR, becomes, why, value)


def _text(value: object) -> str:
    if value is None:
        return ""
    text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
