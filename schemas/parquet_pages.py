"""What a Parquet file will become when it is decoded, read from its footer and its page headers: pure.

A footer may say that a table is small while its pages are not: a page of a few kilobytes can hold gigabytes.
And a decoder written in C++ may abort the whole process over a footer with a hole in it. So `check` looks
first. Guarantees: it returns only if footer and page headers can be read, nothing is encrypted, lies in
another file or is an index, every column chunk is tiled by its pages without gap or overlap, every page is in
a plain or dictionary encoding, and what all values take together stays within the limit even if each is as
long as the longest in its dictionary. The decoder believes page headers, and so these are what is believed
here. What the Thrift protocol lets two readers understand differently is refused: a field that stands twice,
a number of a field beyond 16 bits, a value in another type than the field's. What was understood of the
footer is returned, for whoever can ask the decoder what it understands.

Source: parquet.thrift (FileMetaData to DictionaryPageHeader), Thrift compact protocol.

Leaves to others: names and types of columns, and what the values say (`schemas.manifest`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import zstandard

from schemas.errors import FormatError

_MAGIC = b"PAR1"
_ENCODINGS = frozenset({0, 2, 8})  # plain, plain dictionary, dictionary indices
_CODECS = frozenset({0, 6})  # none, zstd
_TYPES = frozenset({1, 2, 6})  # integers of 32 and 64 bits, byte arrays
_BYTE_ARRAY = 6
_WIDTHS = {1: 4, 2: 8}
_KNOWN = frozenset({*range(1, 14), 16})  # of ColumnMetaData, without Bloom filters
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_MAX_FOOTER = 2 * 1024 * 1024
_MAX_HEADER = 64 * 1024
_MAX_PAGE = 16 * 1024 * 1024
_PAGE_COST = 4096
"""What a page counts beside its values, so that nobody sends millions of empty ones."""
_VALUE_COST = 8
_MAX_GROUPS = 64
_MAX_LIST = 10_000


class Limits(NamedTuple):
    """Most rows, and most decoded bytes of all values."""

    rows: int
    decoded: int


class Levels(NamedTuple):
    """Largest definition and repetition level of a leaf column."""

    definition: int
    repetition: int


class Chunk(NamedTuple):
    """Where the pages of a column in a row group lie, the number of their codec, whether they hold texts."""

    start: int
    end: int
    codec: int
    texts: bool


def check(data: bytes, limits: Limits, columns: Sequence[Levels]) -> list[Chunk]:
    """Refuse a Parquet file that cannot be decoded within limits; returns its column chunks, in order.

    Args:
        data: the file.
        limits: what is allowed.
        columns: the levels of each leaf column.

    Raises:
        FormatError: footer or a page is not as it should be, or too large.
    """
    decoded, chunks = 0, list(_chunks(data, limits.rows, columns))
    for chunk in chunks:
        at, values, longest = chunk.start, 0, 0
        while at < chunk.end:
            page = _page(data, at)
            at, values, decoded = page.end, values + page.values, decoded + page.decoded + _PAGE_COST
            if page.dictionary and chunk.texts:
                longest = max(longest, _longest(data[page.start : page.end], page.decoded, chunk.codec))
            if at > chunk.end or decoded + values * max(longest, _VALUE_COST) > limits.decoded:
                raise FormatError("a manifest is too large once decoded")
        decoded += values * max(longest, _VALUE_COST)
    return chunks


def _chunks(data: bytes, most_rows: int, columns: Sequence[Levels]) -> Iterator[Chunk]:
    size = int.from_bytes(data[-8:-4], "little")
    if data[:4] != _MAGIC or data[-4:] != _MAGIC or not 0 < size <= min(len(data) - 12, _MAX_FOOTER):
        raise FormatError("this is not a readable Parquet file")
    footer = _Compact(data[len(data) - 8 - size : -8]).struct()
    groups, rows = footer.get(4), footer.get(3)
    if (
        not isinstance(groups, list)
        or len(groups) > _MAX_GROUPS
        or not isinstance(rows, _Long)
        or 8 in footer
    ):
        raise FormatError("a manifest's footer is not as it should be")
    if not 0 <= rows <= most_rows or rows != sum(_long(group, 3) for group in groups):
        raise FormatError(f"a manifest has more than {most_rows} rows")
    for group in groups:
        listed = group.get(1)
        if not isinstance(listed, list) or len(listed) != len(columns):
            raise FormatError("a manifest's columns are not those of its version")
        for chunk, levels in zip(listed, columns, strict=True):
            yield _chunk(chunk, levels, len(data) - 8 - size)


def _chunk(chunk: Any, levels: Levels, most: int) -> Chunk:
    meta = chunk.get(3) if isinstance(chunk, dict) else None
    # In another file, encrypted, or with a page index or a Bloom filter, by which a query passes over rows.
    if not isinstance(meta, dict) or {1, 4, 5, 6, 7, 8, 9} & set(chunk) or set(meta) - _KNOWN:
        raise FormatError("a manifest's footer is not as it should be")
    kind, codec = _int(meta, 1), _int(meta, 4)
    if codec not in _CODECS or kind not in _TYPES:
        raise FormatError("a column of a manifest is stored in a way it should not be")
    _check_statistics(meta, _WIDTHS.get(kind), levels)
    at = _long(meta, 9)
    if 11 in meta:  # the decoder begins where the first of data and dictionary is
        at = min(at, _long(meta, 11) or at)
    end = at + _long(meta, 7)
    if not 4 <= at <= end <= most:
        raise FormatError("a column of a manifest lies outside of it")
    return Chunk(at, end, codec, kind == _BYTE_ARRAY)


def _check_statistics(meta: Any, width: int | None, levels: Levels) -> None:
    """Sizes in statistics must be those of the column: the decoder ends the process over others."""
    bounds, sizes = meta.get(12, {}), meta.get(16, {})
    if not isinstance(bounds, dict) or not isinstance(sizes, dict):
        raise FormatError("a manifest's statistics are not readable")
    for number in {1, 2, 5, 6} & set(bounds) if width else ():
        if type(bounds[number]) is not _Text or bounds[number] != width:
            raise FormatError("a manifest's statistics are not those of its columns")
    for number, level in ((2, levels.repetition), (3, levels.definition)):
        if number in sizes and (
            not isinstance(sizes[number], list) or len(sizes[number]) not in (0, level + 1)
        ):
            raise FormatError("a manifest's statistics are not those of its columns")


class _Text(int):
    """The length of a binary value."""


class _Long(int):
    """A value of type i64; a plain `int` is of type i32."""


def _int(fields: Any, number: int, kind: type[int] = int) -> int:
    value = fields.get(number) if isinstance(fields, dict) else None
    if type(value) is not kind or value < 0:  # the decoder passes over a value of another type
        raise FormatError("a manifest's footer is not as it should be")
    return value


def _long(fields: Any, number: int) -> int:
    return int(_int(fields, number, _Long))


class _Page(NamedTuple):
    start: int
    end: int
    decoded: int
    values: int
    dictionary: bool


def _page(data: bytes, at: int) -> _Page:
    reader = _Compact(data[at : at + _MAX_HEADER])
    header = reader.struct()
    kind, decoded, stored = _int(header, 1), _int(header, 2), _int(header, 3)
    inner: Any = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0))
    values, encoding = _int(inner, 1), _int(inner, 4 if kind == _DATA_V2 else 2)
    if encoding not in _ENCODINGS:
        raise FormatError("a page of a manifest is in an encoding it should not be")
    if decoded > _MAX_PAGE:
        raise FormatError("a page of a manifest is too large once decoded")
    start, dictionary = at + reader.at, kind == _DICTIONARY
    return _Page(start, start + stored, decoded, 0 if dictionary else values, dictionary)


def _longest(stored: bytes, decoded: int, codec: int) -> int:
    """Length of the longest text of a dictionary page: each stands behind its length in four bytes."""
    page = stored
    if codec:
        decompressor = zstandard.ZstdDecompressor(max_window_size=2 * _MAX_PAGE)
        try:
            page = decompressor.stream_reader(stored).read(decoded)
        except zstandard.ZstdError as error:
            raise FormatError("a page of a manifest is damaged") from error
    at = longest = 0
    while at + 4 <= len(page):
        length = int.from_bytes(page[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return longest


class _Compact:
    """Reads a struct of the Thrift compact protocol; i32, i64, lengths, lists and structs are kept."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Fields by their number."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            if number in fields or not 0 < number < 2**15:
                raise FormatError("a manifest's footer or a page of it is not readable")
            # true and false stand in the field's head
            fields[number] = None if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 8:
            raise FormatError("a manifest's footer is nested too deeply")
        match kind:
            case 1 | 2 | 3:
                self._skip(1)
            case 4:
                self._number()
            case 5:
                return self._number()
            case 6:
                return _Long(self._number())
            case 7:
                self._skip(8)
            case 8:
                length = self._varint()
                self._skip(length)
                return _Text(length)
            case 9:
                head = self._byte()
                length = head >> 4 if head >> 4 < 15 else self._varint()
                if length > _MAX_LIST:
                    raise FormatError("a manifest's footer is too long")
                return [self._value(head & 15, depth + 1) for _ in range(length)]
            case 12:
                return self.struct(depth + 1)
            case _:  # sets and maps stand in no footer
                raise FormatError("a manifest's footer is not readable")
        return None

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise FormatError("a manifest's footer or a page of it is cut")

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FormatError("a manifest's footer is not readable")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
