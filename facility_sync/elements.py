"""The elements of a DICOM data set (PS3.5 section 7), found by walking over it: pure.

Guarantees: whatever the bytes, a `Walk` comes out; no value is read but the wanted ones, none longer than
`MAX_VALUE`; sequences are stepped over without recursion, however deep; the time is bounded by
`_MAX_STEPS`. What was found before a data set breaks off is kept; a wanted value that is cut is not.

Leaves to others: what a value means (`facility_sync.dicom_file`).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from struct import Struct
from typing import BinaryIO, NamedTuple

MAX_VALUE = 256 * 1024
"""Longest value in bytes that is read, sequences included."""
_MAX_STEPS = 2_000_000
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
"""VRs whose length takes four bytes (PS3.5 table 7.1-1)."""


class Raw(NamedTuple):
    """One element as it stands in the file; no VR where the encoding has none."""

    tag: int
    vr: str | None
    value: bytes


class Walk(NamedTuple):
    """What was found.

    Attributes:
        found: the wanted elements by tag.
        too_long: wanted elements whose value is longer than `MAX_VALUE`.
        broken: the elements could not be followed to the pixel data or the end.
        cut: the bytes ended before the structure did; in the pixel data if not `broken` as well.
    """

    found: dict[int, Raw]
    too_long: frozenset[int]
    broken: bool
    cut: bool


def is_vr(text: bytes) -> bool:
    """Whether two bytes can be a VR: two capital letters."""
    return len(text) == 2 and text.isalpha() and text.isupper() and text.isascii()


class _End(Exception):
    """The walk is over."""

    def __init__(self, *, broken: bool = False, cut: bool = False) -> None:
        self.broken = broken
        self.cut = cut


def walk(
    source: BinaryIO, at: int, size: int, *, implicit: bool, little: bool, wanted: AbstractSet[int]
) -> Walk:
    """Walk over a data set up to the end of its pixel data.

    Args:
        source: seekable; read only where elements begin and where a wanted value stands.
        at: where the data set begins.
        size: where the bytes end.
        implicit: whether elements have no VR; in an explicit data set one without is understood too.
        little: the byte order.
        wanted: tags of the elements to read; of a tag that stands twice the last one counts.
    """
    walker = _Walker(source, size, implicit=implicit, little=little, wanted=wanted)
    end = _End(broken=True)
    try:
        for _ in range(_MAX_STEPS):
            at = walker.step(at)
    except _End as found:
        end = found
    return Walk(walker.found, frozenset(walker.too_long), end.broken, end.cut)


class _Walker:
    """Where the walk stands: `level` is even among elements and odd among the items of a sequence."""

    def __init__(
        self, source: BinaryIO, size: int, *, implicit: bool, little: bool, wanted: AbstractSet[int]
    ) -> None:
        self.found: dict[int, Raw] = {}
        self.too_long: set[int] = set()
        self._source, self._size, self._wanted, self._implicit = source, size, wanted, implicit
        order = "<" if little else ">"
        self._head = Struct(order + "HHL").unpack_from
        self._short = Struct(order + "H").unpack_from
        self._long = Struct(order + "L").unpack_from
        self._level = 0
        self._open = (0, 0)  # tag and value's place of the element at level 0 whose items we are among

    def step(self, at: int) -> int:
        """Look at what begins here; returns where the next begins, or raises `_End`."""
        if at > self._size:
            raise self._cut()
        self._source.seek(at)
        head = self._source.read(12)
        if len(head) < 8:
            raise self._cut() if self._level or head.strip(b"\0") else _End()
        group, element, length = self._head(head)
        tag = group << 16 | element
        if self._level and tag in (_ITEM_END, _SEQUENCE_END):
            self._close(tag, at)
            return at + 8
        if self._level % 2:
            if tag != _ITEM:
                raise _End(broken=self._open[0] not in _PIXELS)
            if length == _UNDEFINED:
                self._level += 1
                return at + 8
            return at + 8 + int(length)
        return self._element(tag, head, int(length), at)

    def _cut(self) -> _End:
        return _End(cut=True, broken=not (self._level and self._open[0] in _PIXELS))

    def _close(self, tag: int, at: int) -> None:
        # Some writers forget the end of an item before the end of its sequence.
        self._level -= 2 if tag == _SEQUENCE_END and not self._level % 2 else 1
        if not self._level:
            open_tag, start = self._open
            if open_tag in _PIXELS:
                raise _End
            self._keep(open_tag, "SQ", start, at - start)

    def _element(self, tag: int, head: bytes, length: int, at: int) -> int:
        vr, start = None, at + 8
        if not self._implicit and is_vr(head[4:6]):
            vr = head[4:6].decode("ascii")
            if head[4:6] in LONG_VRS:
                if len(head) < 12:
                    raise self._cut()
                start, length = at + 12, self._long(head, 8)[0]
            else:
                length = self._short(head, 6)[0]
        if length == _UNDEFINED:
            if not self._level:
                self._open = (tag, start)
            self._level += 1
            return start
        if not self._level:
            if tag in _PIXELS:
                raise _End(cut=start + length > self._size)
            self._keep(tag, vr, start, length)
        return start + length

    def _keep(self, tag: int, vr: str | None, start: int, length: int) -> None:
        if tag not in self._wanted or start + length > self._size:
            return
        if length > MAX_VALUE:
            self.too_long.add(tag)
            return
        self._source.seek(start)
        self.found[tag] = Raw(tag, vr, self._source.read(length))
