"""The header of one DICOM file, or the reason why there is none.

Guarantees: whatever the bytes, a header or `Refused` comes out, in memory that does not follow a declared
length; pixel data are never read; a deflated data set is inflated up to a limit; of a header that breaks
off, what was found before is kept. A file whose SOP Instance UID can be found is never refused for the
state of its header.

Leaves to others: finding the elements (`facility_sync.elements`), what the attributes mean
(`schemas.extract`), opening the file (`facility_sync.capture`).
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from pydicom import config, uid
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from facility_sync.elements import LONG_VRS, MAX_VALUE, Raw, Walk, is_vr, walk
from facility_sync.identity import risk
from facility_sync.identity.layout import Front, Layout
from schemas import names
from schemas.errors import FormatError
from schemas.extract import KEYWORDS

config.settings.reading_validation_mode = config.IGNORE  # a value is judged where it is used
config.logger.disabled = True  # its messages quote values
warnings.filterwarnings("ignore", module=r"pydicom\.")

_MAX_INFLATED = 64 * 1024 * 1024
_SCANNED = 1024 * 1024
_BLOCK = 64 * 1024
_REPEATED = 256  # bytes of a value that may be kept for the next file
_WANTED = frozenset(int(tag) for tag in map(tag_for_keyword, (*KEYWORDS, *risk.KEYWORDS)) if tag is not None)
_DIRECTORY_CLASS, _DIRECTORY = "1.2.840.10008.1.3.10", 0x00041220
_INSTANCE, _CHARSET = BaseTag(0x00080018), BaseTag(0x00080005)
_INSTANCE_BYTES = re.compile(
    rb"(?:\x08\0\x18\0(?:UI.\0|.\0\0\0)|\0\x08\0\x18UI\0.)(?P<uid>[0-9][0-9.]{3,63}[\0 ]?)", re.DOTALL
)
# A data set that does not begin where it should: SOP Class and SOP Instance UID, one after the other.
_SHIFTED = re.compile(
    rb"\x08\0\x16\0UI.\0[0-9.]{5,64}\0?\x08\0\x18\0UI.\0(?P<uid>[0-9][0-9.]{3,63}[\0 ]?)", re.DOTALL
)


class Refused(NamedTuple):
    """A file that was not taken, with a code of `facility_sync.reasons`."""

    reason: str


class Header(NamedTuple):
    """What could be read of a header.

    Attributes:
        dataset: the wanted elements that could be decoded.
        transfer_syntax: UID as the file names it, or empty.
        flags: codes of `schemas.extract.FLAGS`.
        unreadable: tags of wanted elements that are there and could not be decoded: not the same as absent.
    """

    dataset: Dataset
    transfer_syntax: str
    flags: tuple[str, ...]
    unreadable: frozenset[int] = frozenset()


def read_header(source: BinaryIO, size: int, layout: Layout | None = None) -> Header | Refused:
    """Read the header of a file.

    Args:
        source: the file, seekable, at its beginning; left anywhere.
        size: its size in bytes.
        layout: its elements, if they could be followed strictly: then they are not walked over again.

    Raises:
        OSError: the file cannot be read.
    """
    if not size:
        return Refused("empty")
    start = source.read(_SCANNED)
    meta_at = 132 if start[128:132] == b"DICM" else 4 if start.startswith(b"DICM") else 0
    if not meta_at and not _begins_with_elements(start):
        return _shifted(start)
    flags = {} if meta_at == 132 else {"no-part10-header": None}
    body_at, meta = _file_meta(start, meta_at)
    syntax = meta.get(0x00020010, "")
    if layout is None:
        found, cut = _elements(source, size, body_at, syntax, flags)
    else:
        found, cut = _known(layout.front, flags), False
    if meta.get(0x00020002) == _DIRECTORY_CLASS or _DIRECTORY in found.found or _DIRECTORY in found.too_long:
        return Refused("dicomdir")
    dataset = _decoded(found, little=_is_little(start[body_at : body_at + 2], syntax), flags=flags)
    if cut:
        flags["truncated"] = None
    instance = _first_uid(dataset)
    if not instance:
        instance, flag = _find_uid(meta, start)
        if not instance:
            return Refused("no-sop-instance-uid" if meta_at or len(dataset) else "not-dicom")
        flags[flag] = None
    dataset.add_new(_INSTANCE, "UI", instance)
    unreadable = (found.found.keys() | found.too_long) - {_DIRECTORY} - set(dataset.keys())
    return Header(dataset, syntax, tuple(flags), frozenset(unreadable))


def _begins_with_elements(start: bytes) -> bool:
    """Whether a file without Part 10 header begins with an element of group 2 or 8, in either byte order."""
    if len(start) < 8:
        return False
    little, big = (int.from_bytes(start[:2], order) for order in ("little", "big"))
    return little in (2, 8) or big in (2, 8)


def _shifted(start: bytes) -> Header | Refused:
    """A file with something before its first element, or no DICOM file (nor one that contains others)."""
    match = _SHIFTED.search(start[:1024])
    text = match["uid"].decode("ascii").rstrip("\0 ") if match else ""
    if not match or not _is_uid(text) or b"DICM" in start[: match.start()]:
        return Refused("not-dicom")
    dataset = Dataset()
    dataset.add_new(_INSTANCE, "UI", text)
    return Header(dataset, "", ("no-part10-header", "header-unreadable"))


def _file_meta(start: bytes, at: int) -> tuple[int, dict[int, str]]:
    """Where the data set begins, and the short values of group 2 as text (PS3.10 section 7.1)."""
    values = {}
    while start[at : at + 2] == b"\x02\0" and at + 12 <= len(start):
        element = int.from_bytes(start[at + 2 : at + 4], "little")
        vr = start[at + 4 : at + 6]
        if not is_vr(vr):  # some write group 2 like an implicit data set
            width, value_at = 4, at + 8
        else:
            width, value_at = (4, at + 12) if vr in LONG_VRS else (2, at + 8)
        length = int.from_bytes(start[value_at - width : value_at], "little")
        if length <= 66:
            values[0x00020000 + element] = start[value_at : value_at + length].decode("latin-1").strip("\0 ")
        at = value_at + length
    return at, values


def _is_little(first: bytes, syntax: str) -> bool:
    """The byte order of a data set: group numbers are small, so one of the first two bytes is zero."""
    if len(first) == 2 and (not first[0]) != (not first[1]):
        return first[1] == 0
    return syntax != uid.ExplicitVRBigEndian


def _elements(source: BinaryIO, size: int, at: int, syntax: str, flags: dict[str, None]) -> tuple[Walk, bool]:
    """The wanted elements, and whether the file is shorter than it says."""
    body, cut = source, False
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        source.seek(at)
        data, cut, damaged = _inflated(source)
        if damaged:
            flags["header-unreadable"] = None
        body, at, size = io.BytesIO(data), 0, len(data)
    body.seek(at)
    first = body.read(6)
    found = walk(
        body, at, size, implicit=not is_vr(first[4:6]), little=_is_little(first[:2], syntax), wanted=_WANTED
    )
    if found.broken:
        flags["header-unreadable"] = None
    if found.too_long - {_DIRECTORY}:
        flags["bad-value"] = None
    return found, cut or (found.cut and size < _MAX_INFLATED if body is not source else found.cut)


def _known(front: Front, flags: dict[str, None]) -> Walk:
    """The wanted elements of a data set whose places are known."""
    found: dict[int, Raw] = {}
    too_long = set()
    for element in front.elements:
        if element.tag in _WANTED:
            if element.end - element.start > MAX_VALUE:
                too_long.add(element.tag)
                continue
            vr = None if front.encoding.implicit else element.vr
            found[element.tag] = Raw(element.tag, vr, front.head[element.start : element.end])
    if too_long - {_DIRECTORY}:
        flags["bad-value"] = None
    return Walk(found, frozenset(too_long), broken=False, cut=False)


def _inflated(source: BinaryIO) -> tuple[bytes, bool, bool]:
    """What a deflated data set holds, up to a limit; whether it was cut off, and whether it is damaged."""
    inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), _MAX_INFLATED
    parts: list[bytes] = []
    try:
        while left and not inflater.eof:
            block = inflater.unconsumed_tail or source.read(_BLOCK)
            if not block:
                return b"".join(parts), True, False
            parts.append(inflater.decompress(block, left))
            left -= len(parts[-1])
    except zlib.error:
        return b"".join(parts), False, True
    return b"".join(parts), False, False


def _decoded(found: Walk, *, little: bool, flags: dict[str, None]) -> Dataset:
    """A data set of these elements, decoded now, since later nobody expects an error.

    What cannot be decoded is left out, with a flag.
    """
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    charset = found.found.get(_CHARSET)
    written = b"" if charset is None else charset.value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _encodings(written)
        except Exception:  # an unknown character set leaves the default one
            flags["bad-value"] = None
            written = b""
        for raw in found.found.values():
            if raw.tag == _DIRECTORY or (raw.tag == _CHARSET and not written):
                continue
            decode = _decode if len(raw.value) <= _REPEATED else _decode.__wrapped__
            try:
                elements[BaseTag(raw.tag)] = decode(
                    raw, little, written
                )  # now: later nobody expects an error
            except MemoryError:
                raise
            except Exception:  # pydicom raises anything from RecursionError to struct.error
                flags["bad-value"] = None
    return Dataset(elements)


@lru_cache(maxsize=64)
def _encodings(charset: bytes) -> Any:
    if not charset:
        return default_encoding
    raw = RawDataElement(_CHARSET, "CS", len(charset), charset, 0, False, True)
    return convert_encodings(Dataset({_CHARSET: raw})[_CHARSET].value)


@lru_cache(maxsize=4096)
def _decode(raw: Raw, little: bool, charset: bytes) -> DataElement:
    """One element; what is the same in every slice of a series is decoded once."""
    tag = BaseTag(raw.tag)
    value = RawDataElement(tag, raw.vr, len(raw.value), raw.value or None, 0, raw.vr is None, little)
    alone = Dataset({tag: value})
    alone.set_original_encoding(False, little, _encodings(charset))
    element = alone[tag]
    _ = element.value
    return element


def _first_uid(dataset: Dataset) -> str:
    value = dataset[_INSTANCE].value if _INSTANCE in dataset else ""
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else ""
    text = str(value).strip("\0 ")
    return text if _is_uid(text) else ""


def _is_uid(text: str) -> bool:
    try:
        return bool(names.uid(text))
    except FormatError:
        return False


def _find_uid(meta: dict[int, str], start: bytes) -> tuple[str, str]:
    """The SOP Instance UID from the File Meta, or from the bytes of a header that cannot be parsed."""
    if _is_uid(meta.get(0x00020003, "")):
        return meta[0x00020003], "uid-from-meta"
    for match in _INSTANCE_BYTES.finditer(start):
        text = match["uid"].decode("latin-1").rstrip("\0 ")
        if _is_uid(text) and "." in text:
            return text, "header-unreadable"
    return "", ""
