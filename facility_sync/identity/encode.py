"""Elements to bytes (PS3.5 section 7): new ones in any encoding, old ones as Explicit VR Little Endian.

Guarantees: what is written has even lengths and is what a strict reader accepts; values of an explicit
little-endian data set are taken over byte for byte.

Leaves to others: which elements (`scrub`).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any

from facility_sync.identity.tree import EXPLICIT, LONG_VRS, Element, Encoding

_WIDTHS = {
    "US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4,
    "FD": 8, "OD": 8, "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip
"""Bytes in one value whose order is the data set's."""
_TEXT_PAD = {"UI": b"\0", "OB": b"\0", "UN": b"\0"}
_ITEM = Struct("<HHL"), Struct(">HHL")


def element(tag: int, vr: str, value: bytes, encoding: Encoding = EXPLICIT) -> bytes:
    """One element.

    Args:
        tag: 32 bits.
        vr: two letters; a value too long for it becomes `UN` (PS3.5 section 6.2.2).
        value: in the byte order of `encoding`; padded to an even length.
        encoding: of the data set it goes into.
    """
    if len(value) % 2:
        value += _TEXT_PAD.get(vr, b" ")
    order = "<" if encoding.little else ">"
    if encoding.implicit:
        return Struct(order + "HHL").pack(tag >> 16, tag & 0xFFFF, len(value)) + value
    if vr not in LONG_VRS and len(value) > 0xFFFE:
        vr = "UN"
    if vr in LONG_VRS:
        head = Struct(order + "HH2sHL").pack(tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(value))
    else:
        head = Struct(order + "HH2sH").pack(tag >> 16, tag & 0xFFFF, vr.encode(), len(value))
    return head + value


def sequence(tag: int, items: Iterable[bytes], encoding: Encoding = EXPLICIT) -> bytes:
    """A sequence of items whose elements are encoded already; all lengths are given."""
    pack = _ITEM[not encoding.little].pack
    return element(tag, "SQ", b"".join(pack(0xFFFE, 0xE000, len(item)) + item for item in items), encoding)


def swapped(value: bytes, vr: str) -> bytes:
    """A value in the other byte order."""
    width = _WIDTHS.get(vr, 1)
    if width == 1 or len(value) % width:
        return value
    turned = bytearray(len(value))
    for i in range(width):
        turned[i::width] = value[width - 1 - i :: width]
    return bytes(turned)


def explicit(data: Any, found: Element, encoding: Encoding) -> bytes:
    """An element of `data` as Explicit VR Little Endian."""
    if encoding == EXPLICIT:
        return bytes(data[found.at : found.next])
    if found.items is not None:
        parts = (b"".join(explicit(data, inner, encoding) for inner in item) for item in found.items)
        return sequence(found.tag, parts)
    value = bytes(data[found.start : found.end])
    return element(found.tag, found.vr, value if encoding.little else swapped(value, found.vr))
