"""The manifest: rows to Parquet bytes and back, strict against `schemas.columns`.

Guarantees: the same rows give the same bytes (for one version of the Parquet library), so a batch can be
named by them; what was written was read back and compared before it is handed out. The reader checks
sizes and counts before it decodes, the version, the exact schema, one facility, every id, and that no
object stands twice; whatever the bytes, only `FormatError` or `VersionError` come out. A flipped bit that
still decodes is caught by the batch's name, which is the SHA-256 of these bytes.

Leaves to others: what the columns mean (`schemas.extract`), whose manifest it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas import columns, names, parquet_pages
from schemas.container import ENDINGS, MAX_TABLE
from schemas.errors import FormatError, SyncError, VersionError
from schemas.ustar import MAX_SIZE

VERSION = "1"
KEY = b"facility-sync.manifest"
"""Key in the Parquet file's metadata whose value is the version."""
MAX_ROWS = 200_000
MAX_DECODED = 256 * 1024 * 1024
"""Most bytes the table may take once decoded, as its pages say and as it turns out."""
MAX_TEXT = 1024
MAX_SEAL = 8192
MAX_ITEMS = 32
"""Most items in a list column of one row."""

_OPENING: dict[str, Any] = {
    "thrift_string_size_limit": MAX_TABLE,
    "thrift_container_size_limit": 10_000,
    "page_checksum_verification": True,
    "arrow_extensions_enabled": False,
}
_REPEATING = [
    column.name
    for column in columns.COLUMNS
    if column.level != "instance" and not pa.types.is_list(column.arrow)
]
"""Columns with a dictionary: those of studies and series. One of values that never repeat would only add
counting indices, whose bytes read like the ID 12345678 to whoever searches a manifest for it.
"""
_HEX64 = "^[0-9a-f]{64}$"
_UID = r"^[0-9]+(\.[0-9]+)*$"
_UID_BYTES = 64
_KEYED = "^[0-9A-Z][A-Z2-7]{26}$"  # version character and base32: an ID in clear does not look like this
_CALENDAR: dict[pa.DataType, tuple[Any, Any]] = {
    pa.date32(): (date.min, date.max),
    pa.timestamp("us"): (datetime.combine(date.min, time.min), datetime.combine(date.max, time.max)),
    # A day less at both ends: in any time zone it is still a date.
    pa.timestamp("us", tz="UTC"): (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)),
}
"""First and last value that SQL and Python can still show; Arrow itself goes five million years further."""
_SHAPES: dict[str, str] = {
    "object_sha256": _HEX64,
    "source_digest": _HEX64,
    **{c.name: _UID for c in columns.COLUMNS if c.vr == "UI"},
    **{c.name: _KEYED for c in columns.COLUMNS if c.search == "token"},
    "domains": "^[0-9a-f]{16}$",
    "flags": "^[a-z0-9-]+$",
}
"""What the values of a column look like: a terminal that would send an identity by mistake is stopped
here, on its own side."""


def to_parquet(rows: Sequence[Mapping[str, Any]], *, facility: str) -> bytes:
    """The manifest of these rows.

    Args:
        rows: a value (or None) for every column of `schemas.columns`; `facility` in each.
        facility: whose rows they are.

    Raises:
        FormatError: a row is not one the reader would accept.
    """
    schema = columns.arrow_schema().with_metadata({KEY: VERSION.encode()})
    sink = pa.BufferOutputStream()
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        pq.write_table(table, sink, compression="zstd", use_dictionary=_REPEATING, write_page_checksum=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise FormatError("a row does not fit the columns of a manifest") from error
    data: bytes = sink.getvalue().to_pybytes()
    if not from_parquet(data, facility=facility).equals(table):
        raise FormatError("a manifest did not come back as it was written")
    return data


def from_parquet(data: bytes, *, facility: str) -> pa.Table:
    """Read a manifest that must be of this facility; raises `FormatError`, `VersionError`."""
    if len(data) > MAX_TABLE:
        raise FormatError(f"a manifest is larger than {MAX_TABLE} bytes")
    try:
        table = _decode(data)
        _check(table, names.facility_name(facility))
    except SyncError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise FormatError("this is not a readable manifest") from error
    return table


def _decode(data: bytes) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data), **_OPENING)
    _check_footer(file)
    limits = parquet_pages.Limits(MAX_ROWS, MAX_DECODED)
    leaves = map(file.schema.column, range(len(file.schema)))
    levels = [parquet_pages.Levels(leaf.max_definition_level, leaf.max_repetition_level) for leaf in leaves]
    if parquet_pages.check(data, limits, levels) != list(_understood(file.metadata)):
        raise FormatError("a manifest's footer can be read in two ways")
    parts, size = [], 0
    for batch in file.iter_batches(batch_size=4096, use_threads=False):
        size += batch.nbytes
        if size > MAX_DECODED:
            raise FormatError("a manifest is too large once decoded")
        parts.append(batch)
    schema = columns.arrow_schema().with_metadata({KEY: VERSION.encode()})
    return pa.Table.from_batches(parts, schema=file.schema_arrow).cast(schema)  # other metadata goes


def _check_footer(file: pq.ParquetFile) -> None:
    """Version and schema must be those of a manifest this program knows."""
    version = (file.metadata.metadata or {}).get(KEY)
    if version is None:
        raise FormatError("this Parquet file is not a manifest")
    if version != VERSION.encode():
        raise VersionError("this manifest is of a version this program does not know")
    if not file.schema_arrow.remove_metadata().equals(columns.arrow_schema()):
        raise FormatError("a manifest's columns are not those of its version")


_CODECS = {"UNCOMPRESSED": 0, "ZSTD": 6}


def _understood(metadata: pq.FileMetaData) -> Iterator[parquet_pages.Chunk]:
    """The column chunks as the decoder understands the footer: where it will read."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            at = column.data_page_offset
            if column.has_dictionary_page:
                at = min(at, column.dictionary_page_offset or at)
            texts = column.physical_type == "BYTE_ARRAY"
            end = at + column.total_compressed_size
            yield parquet_pages.Chunk(at, end, _CODECS.get(column.compression, -1), texts)


def _check(table: pa.Table, facility: str) -> None:
    if not table.num_rows:
        raise FormatError("a manifest has no rows")
    table.validate(full=True)
    for column in columns.COLUMNS:
        _check_column(column, table[column.name])
    for name, shape in _SHAPES.items():
        _all_match(table[name], name, shape)
    if pc.unique(table["facility"]).to_pylist() != [facility]:
        raise FormatError("a manifest names another facility than its sender")
    if pc.count_distinct(table["object_sha256"]).as_py() != table.num_rows:
        raise FormatError("an object stands twice in a manifest")
    if not set(pc.unique(table["encoding"]).to_pylist()) <= set(ENDINGS):
        raise FormatError("an object has an encoding this program does not know")
    # Both: whoever fetches a sealed object unfolds it up to the size its row says.
    if any(pc.max(table[name]).as_py() > MAX_SIZE for name in ("object_bytes", "dicom_bytes")):
        raise FormatError("an object is larger than this format allows")


def _check_column(column: columns.Column, values: pa.ChunkedArray) -> None:
    if column.required and values.null_count:
        raise FormatError(f"{column.name} is missing in a row")
    if pa.types.is_list(column.arrow):
        if (pc.max(pc.list_value_length(values)).as_py() or 0) > MAX_ITEMS:
            raise FormatError(f"{column.name} has too many items in a row")
        values = pc.list_flatten(values)
        if values.null_count:
            raise FormatError(f"{column.name} has an empty item")
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        limit = MAX_SEAL if pa.types.is_binary(values.type) else MAX_TEXT
        if (pc.max(pc.binary_length(values)).as_py() or 0) > limit:
            raise FormatError(f"{column.name} is longer than {limit} bytes")
    elif column.name.endswith("_bytes") and (pc.min(values).as_py() or 0) < 0:
        raise FormatError(f"{column.name} is negative")
    elif bounds := _CALENDAR.get(column.arrow):
        first, last = (pa.scalar(day, column.arrow) for day in bounds)
        if not pc.all(
            pc.and_(pc.less_equal(first, values), pc.less_equal(values, last)), min_count=0
        ).as_py():
            raise FormatError(f"{column.name} is in no year from 1 to 9999")


def _all_match(values: pa.ChunkedArray, name: str, shape: str) -> None:
    found = pc.list_flatten(values) if pa.types.is_list(values.type) else values
    if not pc.all(pc.match_substring_regex(found.drop_null(), shape), min_count=0).as_py():
        raise FormatError(f"{name} is not well formed in a row")
    if shape is _UID and (pc.max(pc.binary_length(found)).as_py() or 0) > _UID_BYTES:
        raise FormatError(f"{name} is longer than a UID can be")


def objects(table: pa.Table) -> Iterator[tuple[str, int, str]]:
    """Id, stored size and encoding of each object, in order: what `container.read_objects` expects."""
    for batch in table.select(["object_sha256", "object_bytes", "encoding"]).to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
