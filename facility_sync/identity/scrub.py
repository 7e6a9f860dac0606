"""What a protected object shows of a data set, and what of it goes under seal (PS3.15 annex E).

Guarantees: the rules of `profile` hold at every depth, in sequences the table lists and in those it does
not; private elements are gone; the kept elements are the original's bytes; of everything at the root that
was removed or changed the original stands in `sealed`, whole.

Leaves to others: the rules (`profile`), the sealing (`capsule`), the file around it (`protect`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from facility_sync.identity import encode
from facility_sync.identity.profile import DUMMIES, Action, action
from facility_sync.identity.tree import Element, Encoding, Parser

ALWAYS_SEALED = frozenset({0x00080005, 0x00080018})
"""Character set and SOP Instance UID: without them `gdcmanon -d` opens nothing (the text's meaning, too)."""
_TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_CODES = frozenset({0x00080100, 0x00080102, 0x00080103})  # the meaning, a text, goes all the same
_DESIGNATOR = 0x00080102
_SHORTEST_ID, _SHORTEST_NAME = 4, 3
_SAYS_NOTHING = frozenset(value.lower().strip(b"^ \0") for value in DUMMIES.values())
"""What stands there because of us, or of a tool before us that thought of the same words."""


class Scrubbed(NamedTuple):
    """The outcome.

    Attributes:
        shown: the elements of the protected object in their order, encoded as the original is; None
            stands where an insertion without bytes goes.
        sealed: originals, in order, as Explicit VR Little Endian.
    """

    shown: list[bytes | None]
    sealed: list[bytes]


def scrub(
    data: Any,
    elements: Iterable[Element],
    encoding: Encoding,
    *,
    replaced: Mapping[int, bytes],
    inserted: Sequence[tuple[int, bytes | None]],
) -> Scrubbed:
    """Apply the profile to the root of a data set.

    Args:
        data: the bytes the elements stand in.
        elements: of the root, in order, sequences with their items.
        encoding: of the data set.
        replaced: values for elements of the root that the profile would empty or replace.
        inserted: elements that are put in at their place, by rising tag; one that was there is sealed.
    """
    work = _Work(data, encoding)
    shown: list[bytes | None] = []
    sealed: list[bytes] = []
    waiting = list(inserted)
    taken = {tag for tag, _ in inserted}
    run = -1  # where the stretch of kept elements begins that was not taken over yet
    at = 0
    for found in elements:
        while waiting and waiting[0][0] <= found.tag:
            if run >= 0:
                shown.append(bytes(data[run:at]))
                run = -1
            shown.append(waiting.pop(0)[1])
        new = b"" if found.tag in taken else work.changed(found, replaced.get(found.tag))
        if new is None:
            run = found.at if run < 0 else run
            if found.tag in ALWAYS_SEALED:
                sealed.append(encode.explicit(data, found, encoding))
        else:
            if run >= 0:
                shown.append(bytes(data[run:at]))
                run = -1
            if new:
                shown.append(new)
            sealed.append(encode.explicit(data, found, encoding))
        at = found.next
    if run >= 0:
        shown.append(bytes(data[run:at]))
    shown.extend(piece for _, piece in waiting)
    return Scrubbed(shown, sealed)


class _Work:
    """What each element becomes: None if it stays as it is, else its new bytes (none if it goes)."""

    def __init__(self, data: Any, encoding: Encoding) -> None:
        self._data = data
        self._encoding = encoding

    def changed(self, found: Element, value: bytes | None = None, *, texts: bool = False) -> bytes | None:
        what = action(found.tag, found.vr)
        if what is Action.REMOVE:
            return b""
        if found.start == found.end or found.items == ():
            return None
        if found.items is not None and what is not Action.EMPTY:
            return self._sequence(found, texts=texts or what is Action.DUMMY)
        if what is Action.KEEP and not (texts and found.vr in _TEXT):
            return None
        if value is None:
            value = b"" if what is Action.EMPTY else DUMMIES[found.vr]
        return encode.element(found.tag, found.vr, value, self._encoding)

    def _sequence(self, found: Element, *, texts: bool) -> bytes | None:
        items = found.items or ()
        new = [self._item(item, texts=texts) for item in items]
        if all(item is None for item in new):
            return None
        whole = (
            b"".join(bytes(self._data[e.at : e.next]) for e in old) if item is None else item
            for old, item in zip(items, new, strict=True)
        )
        return encode.sequence(found.tag, whole, self._encoding)

    def _item(self, elements: Sequence[Element], *, texts: bool) -> bytes | None:
        coded = texts and self._is_standard_code(elements)
        new = [self.changed(found, texts=texts and not (coded and found.tag in _CODES)) for found in elements]
        if all(piece is None for piece in new):
            return None
        return b"".join(
            bytes(self._data[found.at : found.next]) if piece is None else piece
            for found, piece in zip(elements, new, strict=True)
        )

    def _is_standard_code(self, elements: Sequence[Element]) -> bool:
        """Whether an item is a code of a public scheme (PS3.16 section 8): it names no patient."""
        for found in elements:
            if found.tag == _DESIGNATOR:
                return bytes(self._data[found.start : found.end]).strip() in _SCHEMES
        return False


_SCHEMES = frozenset({b"DCM", b"SRT", b"SCT", b"SNM3", b"LN", b"UCUM", b"RADLEX", b"FMA", b"ACR", b"NCIt"})


def needles(names: Iterable[bytes], identifiers: Iterable[bytes]) -> list[bytes]:
    """What may not be seen of an identity: raw values as they stand in the file, lower case.

    Args:
        names: values of PN elements; each part of three bytes or more counts.
        identifiers: values that count whole, from four bytes on.
    """
    found = {part for name in names for part in re.split(rb"[\^=\s,;.\\]+", name.strip(b" \0").lower())}
    parts = {part for part in found if len(part) >= _SHORTEST_NAME}
    whole = {part.strip(b" \0").lower() for value in identifiers for part in value.split(b"\\")}
    return sorted((parts | {value for value in whole if len(value) >= _SHORTEST_ID}) - _SAYS_NOTHING)


def shows(head: bytes, encoding: Encoding, wanted: Sequence[bytes]) -> bool:
    """Whether a shown data set has any of these in a value that is no UID (those are kept, by decision).

    A short one counts as a word of its own: an ID of four digits stands by chance in many a time or number.
    """
    folded = head.lower()
    present = [needle for needle in wanted if needle in folded]
    if not present:
        return False
    short = {needle for needle in present if len(needle) < (8 if needle.isdigit() else 6)}
    long = [needle for needle in present if needle not in short]
    elements, _ = Parser(head, encoding).root(0)
    return any(
        any(needle in value for needle in long) or not short.isdisjoint(_WORDS.split(value))
        for value in _values(folded, elements)
    )


_WORDS = re.compile(rb"[^0-9a-z\x80-\xff]+")


def _values(data: bytes, elements: Iterable[Element]) -> Iterable[bytes]:
    for found in elements:
        if found.items is not None:
            for item in found.items:
                yield from _values(data, item)
        elif found.vr != "UI":
            yield data[found.start : found.end]
