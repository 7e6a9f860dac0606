"""A DICOM data set as a tree of places (PS3.5 section 7), strictly: what cannot be followed is not a tree.

Guarantees: every byte of what was parsed belongs to exactly one element; tags rise; nesting and the
number of elements are bounded; no value is copied; whatever the bytes, a tree or `FormatError` comes out.
Pixel data at the root end the parse: their value is never looked into beyond the lengths of its fragments.

Being strict costs nothing: a file that is no tree is sealed whole instead of being protected. Leaves to
others: what happens to an element (`scrub`), reading damaged headers (`facility_sync.elements`).
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, error
from typing import NamedTuple

from pydicom import datadict

from facility_sync import elements
from schemas.errors import FormatError

UNDEFINED = 0xFFFFFFFF
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset(vr.decode("ascii") for vr in elements.LONG_VRS)
_SHORT = frozenset({
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST",
    "TM", "UI", "UL", "US",
})  # fmt: skip
_VRS = {vr.encode(): vr for vr in LONG_VRS | _SHORT}
_DEPTH = 16
_MOST = 1_000_000


class Element(NamedTuple):
    """Where one element stands.

    Attributes:
        tag: group and element, 32 bits.
        vr: as written, or from the dictionary where the encoding has none (`UN` if unknown).
        at: where it begins.
        start: where its value begins.
        end: where its value ends; delimiters are not part of it.
        next: where the next element begins.
        items: of a sequence, the elements of each item; None for every other element.
    """

    tag: int
    vr: str
    at: int
    start: int
    end: int
    next: int
    items: tuple[tuple[Element, ...], ...] | None


class Encoding(NamedTuple):
    """How a data set is written: with or without VRs, and its byte order."""

    implicit: bool
    little: bool


EXPLICIT = Encoding(implicit=False, little=True)


class CutError(FormatError):
    """The bytes end inside the data set."""


@lru_cache(maxsize=8192)
def dictionary_vr(tag: int) -> str:
    """The VR of a tag by PS3.6; of several the first, `UN` for an unknown or private one."""
    try:
        vr = datadict.dictionary_VR(tag)
    except KeyError:
        return "UN"
    return vr.split(" or ")[0] if len(vr) > 2 else vr


class Parser:
    """Parses one data set held in memory, up to the pixel data.

    Args:
        data: the bytes; places in elements count from their beginning.
        encoding: how they are written.
    """

    def __init__(self, data: bytes | memoryview, encoding: Encoding) -> None:
        order = "<" if encoding.little else ">"
        self._data, self._size = data, len(data)
        self._explicit = Struct(order + "HH2sH").unpack_from
        self._implicit = Struct(order + "HHL").unpack_from
        self._long = Struct(order + "L").unpack_from
        self._encoding = encoding
        self._count = 0

    def root(self, at: int) -> tuple[list[Element], int]:
        """The elements from `at` to the pixel data or the end, and where they end.

        Raises:
            CutError: the bytes end inside an element.
            FormatError: this cannot be followed.
        """
        return self._level(at, self._size, self._encoding.implicit, 0)

    def file_meta(self, at: int) -> tuple[list[Element], int]:
        """The elements of group 2 from `at` (PS3.10 section 7.1), and where they end; errors as `root`."""
        found: list[Element] = []
        while bytes(self._data[at : at + 2]) == b"\x02\0":
            try:
                tag, vr, start, length = self._head(at, implicit=False)
            except error as broken:
                raise CutError("the file ends inside its File Meta") from broken
            element = self._element(tag, vr, at, start, length, False, 0)
            if element.next > self._size:
                raise CutError("the file ends inside its File Meta")
            found.append(element)
            at = element.next
        return found, at

    def _level(self, at: int, end: int, implicit: bool, depth: int) -> tuple[list[Element], int]:
        """Elements up to `end`, to the delimiter of an item, or to the pixel data of the root."""
        found: list[Element] = []
        last = -1
        while at < end:
            try:
                tag, vr, start, length = self._head(at, implicit)
            except error as broken:
                raise CutError("the data set ends inside an element") from broken
            if tag == ITEM_END and depth:
                return found, at
            if tag in PIXELS and not depth:
                return found, at
            if tag <= last or tag >> 16 == 0xFFFE:
                raise FormatError("the elements do not stand in order")
            last = tag
            self._count += 1
            if self._count > _MOST:
                raise FormatError("there are too many elements")
            element = self._element(tag, vr, at, start, length, implicit, depth)
            if element.next > end:
                raise CutError("an element is longer than what it stands in")
            found.append(element)
            at = element.next
        return found, at

    def _head(self, at: int, implicit: bool) -> tuple[int, str, int, int]:
        """Tag, VR, where the value begins and its length."""
        if implicit:
            group, number, length = self._implicit(self._data, at)
            tag = group << 16 | number
            return tag, dictionary_vr(tag) if group != 0xFFFE else "", at + 8, length
        group, number, code, short = self._explicit(self._data, at)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, "", at + 8, 0
        vr = _VRS.get(code)
        if vr is None:
            raise FormatError("an element has no VR of the standard")
        if vr in LONG_VRS:
            return tag, vr, at + 12, self._long(self._data, at + 8)[0]
        return tag, vr, at + 8, short

    def _element(
        self, tag: int, vr: str, at: int, start: int, length: int, implicit: bool, depth: int
    ) -> Element:
        if length == UNDEFINED:
            # PS3.5 section 6.2.2: UN of undefined length is a sequence in implicit VR.
            if vr not in ("SQ", "UN"):
                raise FormatError("an element that is no sequence has no length")
            items, end = self._items(start, None, implicit or vr == "UN", depth)
            return Element(tag, vr, at, start, end, end + 8, items)
        end = start + length
        if length % 2 and vr != "SQ":
            raise FormatError("a value has an odd length")
        if vr != "SQ":
            return Element(tag, vr, at, start, end, end, None)
        if end > self._size:
            raise CutError("the data set ends inside a sequence")
        items, _ = self._items(start, end, implicit, depth)
        return Element(tag, vr, at, start, end, end, items)

    def _items(
        self, at: int, end: int | None, implicit: bool, depth: int
    ) -> tuple[tuple[tuple[Element, ...], ...], int]:
        """The items from `at` to `end`, or to the delimiter where `end` is None; and where they end."""
        if depth >= _DEPTH:
            raise FormatError("sequences are nested too deep")
        items: list[tuple[Element, ...]] = []
        while end is None or at < end:
            try:
                group, number, length = self._implicit(self._data, at)
            except error as broken:
                raise CutError("the data set ends inside a sequence") from broken
            tag = group << 16 | number
            if tag == SEQUENCE_END and end is None:
                return tuple(items), at
            if tag != ITEM:
                raise FormatError("a sequence holds something else than items")
            self._count += 1
            if length == UNDEFINED:
                elements, at = self._level(at + 8, self._size if end is None else end, implicit, depth + 1)
                if at + 8 > self._size or self._implicit(self._data, at)[:2] != (0xFFFE, 0xE00D):
                    raise CutError("an item does not end")
                at += 8
            else:
                stop = at + 8 + length
                if stop > (self._size if end is None else end):
                    raise CutError("an item is longer than its sequence")
                elements, at = self._level(at + 8, stop, implicit, depth + 1)
                if at != stop:
                    raise FormatError("an item does not end where it says")
            items.append(tuple(elements))
        if at != end:
            raise FormatError("a sequence does not end where it says")
        return tuple(items), at
