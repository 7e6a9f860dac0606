"""The header of one DICOM file, or the reason why there is none.

Guarantees: whatever the bytes, a header or `Refused` comes out, in memory that does not follow a declared
length; pixel data are never read; a deflated data set is inflated up to a limit; of a header that breaks
off, what was found before is kept. A file whose SOP Instance UID can be found is never refused for the
state of its header.

Leaves to others: what the attributes mean (`schemas.extract`), opening the file
(`facility_sync.capture`).
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import Any, BinaryIO, NamedTuple

from pydicom import config, uid
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag

from schemas import names
from schemas.errors import FormatError
from schemas.extract import KEYWORDS

config.settings.reading_validation_mode = config.IGNORE  # a value is judged where it is used
config.logger.disabled = True  # its messages quote values

_MAX_INFLATED = 64 * 1024 * 1024
_SCANNED = 1024 * 1024
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in KEYWORDS]
_DIRECTORY = "1.2.840.10008.1.3.10"
_INSTANCE, _CHARSET = BaseTag(0x00080018), BaseTag(0x00080005)
_INSTANCE_BYTES = re.compile(
    rb"(?:\x08\0\x18\0(?:UI.\0|.\0\0\0)|\0\x08\0\x18UI\0.)(?P<uid>[0-9][0-9.]{3,63}[\0 ]?)", re.DOTALL
)
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)


class Refused(NamedTuple):
    """A file that was not taken, with a code of `facility_sync.reasons`."""

    reason: str


class Header(NamedTuple):
    """What could be read of a header."""

    dataset: Dataset
    transfer_syntax: str
    flags: tuple[str, ...]


def read_header(source: BinaryIO, size: int) -> Header | Refused:
    """Read the header of a file.

    Args:
        source: the file, seekable, at its beginning; left anywhere.
        size: its size in bytes.
    """
    if not size:
        return Refused("empty")
    start = source.read(_SCANNED)
    part10 = start[128:132] == b"DICM"
    if not part10 and not _begins_with_elements(start):
        return Refused("not-dicom")
    flags = [] if part10 else ["no-part10-header"]
    body_at, meta = _file_meta(start) if part10 else (0, {})
    syntax, directory = meta.get(0x00020010, ""), meta.get(0x00020002) == _DIRECTORY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset, broken = _read(source, size, body_at, syntax)
    if directory or 0x00041220 in dataset:
        return Refused("dicomdir")
    if broken:
        flags.append(broken)
    if not _uid_of(dataset):
        found, flag = _find_uid(meta, start)
        if not found:
            return Refused("no-sop-instance-uid" if part10 or len(dataset) else "not-dicom")
        dataset.add_new(_INSTANCE, "UI", found)
        flags.append(flag)
    return Header(dataset, syntax, tuple(flags))


def _begins_with_elements(start: bytes) -> bool:
    """Whether a file without Part 10 header begins with an element of group 2 or 8, in either byte order."""
    if len(start) < 8:
        return False
    little, big = (int.from_bytes(start[:2], order) for order in ("little", "big"))
    return little in (2, 8) or big in (2, 8)


def _file_meta(start: bytes) -> tuple[int, dict[int, str]]:
    """Where the data set begins, and the short values of group 2 as text (PS3.10 section 7.1)."""
    at, values = 132, {}
    while start[at : at + 2] == b"\x02\0" and at + 12 <= len(start):
        element = int.from_bytes(start[at + 2 : at + 4], "little")
        width, value_at = (4, at + 12) if start[at + 4 : at + 6] in _LONG_VRS else (2, at + 8)
        length = int.from_bytes(start[value_at - width : value_at], "little")
        if length <= 64:
            values[0x00020000 + element] = start[value_at : value_at + length].decode("latin-1").strip("\0 ")
        at = value_at + length
    return at, values


def _read(source: BinaryIO, size: int, body_at: int, syntax: str) -> tuple[Dataset, str]:
    """The wanted attributes up to the pixels, and a flag when something is wrong on the way."""
    source.seek(body_at)
    body: BinaryIO = source
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        try:
            body = io.BytesIO(
                zlib.decompressobj(-zlib.MAX_WBITS).decompress(source.read(_MAX_INFLATED), _MAX_INFLATED)
            )
        except zlib.error:
            return Dataset(), "header-unreadable"
        size = _MAX_INFLATED
    little = syntax != uid.ExplicitVRBigEndian
    begin, first = body.tell(), body.read(6)
    body.seek(begin)
    if not syntax:
        little = first[:1] != b"\0"
    implicit = not (first[4:6].isalpha() and first[4:6].isupper())
    pixels: list[int] = []

    def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag not in _PIXELS:
            return False
        pixels.append(0 if length == 0xFFFFFFFF else body.tell() + length)
        return True

    elements: dict[BaseTag, Any] = {}
    flag = ""
    try:
        for element in data_element_generator(body, implicit, little, at_pixels, specific_tags=_TAGS):
            elements[element.tag] = element
            if len(elements) > len(_TAGS):
                break
    except MemoryError:
        raise
    except Exception:  # pydicom raises anything from RecursionError to struct.error on hostile headers
        flag = "header-unreadable"
    dataset = _decoded(elements, implicit=implicit, little=little)
    end = pixels[0] if pixels else body.tell()
    return dataset, flag or ("truncated" if end > size else "")


def _decoded(elements: dict[BaseTag, Any], *, implicit: bool, little: bool) -> Dataset:
    """A data set of these elements; what cannot be decoded is left out."""
    dataset = Dataset(elements)
    encoding: Any = default_encoding
    try:
        encoding = convert_encodings(dataset[_CHARSET].value) if _CHARSET in dataset else default_encoding
    except Exception:  # an unknown character set leaves the default one
        dataset.pop(_CHARSET, None)
    dataset.set_original_encoding(implicit, little, encoding)
    for tag in list(elements):
        try:
            _ = dataset[tag].value  # decode now: later nobody expects an error
        except MemoryError:
            raise
        except Exception:  # as above
            dataset.pop(tag, None)
    return dataset


def _uid_of(dataset: Dataset) -> str:
    value = str(dataset[_INSTANCE].value) if _INSTANCE in dataset else ""
    return value if _is_uid(value) else ""


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
