"""A DICOM file as head, pixel value and tail: what can be protected, and what a protected object is.

Guarantees: the pixel value is never read, only the lengths of its fragments; the rest is held in memory
and limited (`MAX_HEAD`, `MAX_TAIL`); whatever the bytes, a layout or `FormatError` comes out.

Leaves to others: what is done with it (`protect`, `restoring`).
"""

from __future__ import annotations

from struct import Struct, error
from typing import BinaryIO, NamedTuple

from pydicom import uid

from facility_sync.identity.tree import EXPLICIT, UNDEFINED, CutError, Element, Encoding, Parser
from schemas.errors import FormatError

MAX_HEAD = 32 * 1024 * 1024
MAX_TAIL = 4 * 1024 * 1024
_FIRST = 64 * 1024
_LONGEST_HEAD = 12  # bytes of an element before its value
_END = b"\xfe\xff\xdd\xe0\0\0\0\0"


class Front(NamedTuple):
    """A file up to its pixel value.

    Attributes:
        syntax: transfer syntax UID; where the file names none, the one its bytes are in.
        encoding: of the data set.
        head: the file up to its pixel value, or all of it.
        body: where the data set begins in `head`.
        elements: of the root before the pixel data.
        pixels_tag: tag of the pixel element, 0 if there is none; its own header ends `head`.
        pixels_from: where in `head` the pixel element begins.
        pixels_length: as the element says; `UNDEFINED` if it consists of fragments.
        ahead: what was read behind `head` already.
    """

    syntax: str
    encoding: Encoding
    head: bytes
    body: int
    elements: list[Element]
    pixels_tag: int
    pixels_from: int
    pixels_length: int
    ahead: bytes

    def value(self, tag: int) -> bytes:
        """The raw value of an element of the root before the pixels; empty if there is none."""
        for found in self.elements:
            if found.tag == tag:
                return self.head[found.start : found.end]
        return b""

    def uid(self, tag: int) -> str:
        """The UID in an element; empty if there is none, or under another VR."""
        vrs = [found.vr for found in self.elements if found.tag == tag]
        return self.value(tag).rstrip(b"\0 ").decode("latin-1") if vrs == ["UI"] else ""


class Layout(NamedTuple):
    """Where everything in a file stands.

    Attributes:
        front: the file up to its pixel value.
        pixels_bytes: length of the pixel value; of encapsulated ones with all fragments, no delimiter.
        tail: the file behind the pixel value, a delimiter included.
        behind: elements in `tail`, behind the delimiter.
    """

    front: Front
    pixels_bytes: int
    tail: bytes
    behind: list[Element]


def read_front(source: BinaryIO) -> Front:
    """Read a file up to its pixel value; needs no seeking.

    Raises:
        FormatError: this is not a data set that can be followed, or of an unknown syntax.
    """
    wanted = _FIRST
    start = source.read(wanted)
    while True:
        ended = len(start) < wanted
        try:
            return _front(start, ended=ended)
        except CutError:
            if ended:
                raise
        if wanted > MAX_HEAD:
            raise FormatError("a header is too large")
        start += source.read(7 * wanted)
        wanted *= 8


def read_layout(source: BinaryIO, size: int) -> Layout:
    """Read the layout of a file.

    Args:
        source: seekable, at its beginning; left anywhere.
        size: in bytes.

    Raises:
        FormatError: this is not a data set that can be followed to its end, or of an unknown syntax.
        OSError: the file cannot be read.
    """
    front = read_front(source)
    if not front.pixels_tag:
        return Layout(front, 0, b"", [])
    at = len(front.head)
    fragments = front.pixels_length == UNDEFINED
    end = _fragments_end(source, at, size) if fragments else at + front.pixels_length
    if end > size:
        raise FormatError("the file ends inside its pixel data")
    if size - end > MAX_TAIL:
        raise FormatError("there is too much behind the pixel data")
    source.seek(end)
    tail = source.read(size - end)
    behind, tail_end = Parser(tail, front.encoding).root(len(_END) if fragments else 0)
    if tail_end != len(tail) or (behind and behind[0].tag <= front.pixels_tag):
        raise FormatError("what stands behind the pixel data cannot be followed")
    return Layout(front, end - at, tail, behind)


def _front(start: bytes, *, ended: bool) -> Front:
    syntax, body = _syntax(start)
    known = uid.UID(syntax)
    if not known.is_transfer_syntax or known.is_deflated or known.is_private:
        raise FormatError("a transfer syntax this program does not know")
    encoding = Encoding(known.is_implicit_VR, known.is_little_endian)
    elements, at = Parser(start, encoding).root(body)
    if at == len(start) and ended:
        return Front(syntax, encoding, start, body, elements, 0, at, 0, b"")
    if at + _LONGEST_HEAD > len(start):
        raise CutError("the header goes on")
    tag, value_at, length = _pixel_head(start, at, encoding)
    if (length == UNDEFINED) != known.is_encapsulated:
        raise FormatError("the pixel data are not what the transfer syntax says")
    return Front(syntax, encoding, start[:value_at], body, elements, tag, at, length, start[value_at:])


def _syntax(start: bytes) -> tuple[str, int]:
    """Transfer syntax, and where the data set begins."""
    if start[128:132] != b"DICM":
        return _guessed(start), 0
    parser = Parser(start, EXPLICIT)
    meta, body = parser.file_meta(132)
    for found in meta:
        if found.tag == 0x00020010:
            return start[found.start : found.end].rstrip(b"\0 ").decode("ascii", "replace"), body
    raise FormatError("a file names no transfer syntax")


def _guessed(start: bytes) -> str:
    """The syntax of a data set without File Meta, from its first element, which is of group 8."""
    if start[:2] == b"\x08\0":
        return uid.ExplicitVRLittleEndian if start[4:6].isalpha() else uid.ImplicitVRLittleEndian
    if start[:2] == b"\0\x08" and start[4:6].isalpha():
        return uid.ExplicitVRBigEndian
    raise FormatError("a file does not begin with a data set")


def _pixel_head(start: bytes, at: int, encoding: Encoding) -> tuple[int, int, int]:
    """Tag, where the value begins, and its length."""
    order = "<" if encoding.little else ">"
    group, number = Struct(order + "HH").unpack_from(start, at)
    tag = group << 16 | number
    if encoding.implicit:
        return tag, at + 8, Struct(order + "L").unpack_from(start, at + 4)[0]
    if start[at + 4 : at + 6] not in (b"OB", b"OW", b"OF", b"OD", b"OV", b"UN"):
        raise FormatError("pixel data have no VR of pixel data")
    return tag, at + 12, Struct(order + "L").unpack_from(start, at + 8)[0]


def _fragments_end(source: BinaryIO, at: int, size: int) -> int:
    """Where the fragments of encapsulated pixel data end (PS3.5 annex A.4); `at` is their first."""
    unpack = Struct("<HHL").unpack
    while at + 8 <= size:
        source.seek(at)
        try:
            group, number, length = unpack(source.read(8))
        except error as broken:
            raise FormatError("the file ends inside its pixel data") from broken
        if (group, number, length) == (0xFFFE, 0xE0DD, 0):
            return at
        if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED:
            break
        at += 8 + length
    raise FormatError("pixel data do not consist of fragments")
