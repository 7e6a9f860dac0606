"""The accompanying information of an object: every column, once.

Guarantees: the manifest's Arrow schema, the catalog's tables, the query options, the answer's columns and
the docs are derived from this table; a test compares keywords and VRs with the DICOM dictionary.

Rows hold only what may be read centrally. Whatever identifies a patient is a token (findable, not
readable) or lies in the small sealed identity.

Leaves to others: what fills a column (`schemas.extract`), the Parquet bytes (`schemas.manifest`), the SQL
(`schemas.query`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pyarrow as pa

Level = Literal["study", "series", "instance"]
LEVELS: tuple[Level, ...] = ("study", "series", "instance")
Search = Literal["", "token", "text", "date", "uid", "exact"]
Rollup = Literal["", "key", "first", "min", "max", "list", "sum"]

_TEXT, _INT, _LONG = pa.string(), pa.int32(), pa.int64()
_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: in the manifest, the catalog and every answer.
        arrow: its type.
        meaning: one sentence for the docs and `--help`.
        keyword: DICOM keyword it is read from (PS3.6), or empty.
        vr: value representation of that keyword.
        level: the entity it describes; an answer at that level or below shows it.
        search: how it is searched: `token` (any of the tokens), `text` (case does not matter, `*` and `?`
            are wildcards), `date` (a range), `uid` and `exact` (equality); empty: not at all.
        option: the option of `fsync query` that searches it, or empty.
        required: never null.
        identifying: derived from an identity (a token or a seal), never the identity itself.
        rollup: how one value comes of many at a level above its own: `list` is the sorted distinct
            values; empty: not shown there.
        distinct: nearly every object has a value of its own, and is found by it.
    """

    name: str
    arrow: pa.DataType
    meaning: str
    keyword: str = ""
    vr: str = ""
    level: Level = "instance"
    search: Search = ""
    option: str = ""
    required: bool = False
    identifying: bool = False
    rollup: Rollup = ""
    distinct: bool = False


COLUMNS: tuple[Column, ...] = (
    Column(name="object_sha256", arrow=_TEXT, required=True, search="exact", distinct=True,
           meaning="SHA-256 of the stored bytes, in hexadecimal: the object's name."),
    Column(name="object_bytes", arrow=_LONG, required=True, rollup="sum",
           meaning="Size of the stored bytes."),
    Column(name="encoding", arrow=_TEXT, required=True,
           meaning="The stored bytes: dicom (protected) or age (sealed whole); +zstd if compressed."),
    Column(name="dicom_bytes", arrow=_LONG, required=True, rollup="sum",
           meaning="Size of the file the facility read."),
    Column(name="source_digest", arrow=_TEXT, required=True, identifying=True, distinct=True,
           meaning="Digest of the file the facility read, keyed by its domain: tells what is held already."),
    Column(name="captured_at", arrow=pa.timestamp("us", tz="UTC"), required=True, rollup="max",
           meaning="When the terminal read the file."),
    Column(name="study_uid", arrow=_TEXT, keyword="StudyInstanceUID", vr="UI", level="study", search="uid",
           option="--study", rollup="key", meaning="Study Instance UID."),
    Column(name="series_uid", arrow=_TEXT, keyword="SeriesInstanceUID", vr="UI", level="series", search="uid",
           option="--series", meaning="Series Instance UID."),
    Column(name="sop_instance_uid", arrow=_TEXT, keyword="SOPInstanceUID", vr="UI", search="uid",
           option="--instance", required=True, distinct=True, meaning="SOP Instance UID."),
    Column(name="sop_class_uid", arrow=_TEXT, keyword="SOPClassUID", vr="UI", search="uid", rollup="list",
           meaning="SOP Class UID."),
    Column(name="transfer_syntax_uid", arrow=_TEXT, keyword="TransferSyntaxUID", vr="UI", search="uid",
           meaning="Transfer Syntax UID of the file."),
    Column(name="study_date", arrow=pa.date32(), keyword="StudyDate", vr="DA", level="study", search="date",
           option="--date", rollup="min", meaning="Date of photographing."),
    Column(name="study_time", arrow=pa.time64("us"), keyword="StudyTime", vr="TM", level="study",
           rollup="min", meaning="Time the study began."),
    Column(name="acquisition_datetime", arrow=pa.timestamp("us"), keyword="AcquisitionDateTime", vr="DT",
           meaning="Date and time of the acquisition, local to the device."),
    Column(name="modality", arrow=_TEXT, keyword="Modality", vr="CS", level="series", search="text",
           option="--modality", rollup="list", meaning="Input modality."),
    Column(name="menu_code", arrow=_TEXT, level="series", search="text", rollup="list",
           meaning="Photographing menu: code value."),
    Column(name="menu_scheme", arrow=_TEXT, level="series", rollup="list",
           meaning="Photographing menu: coding scheme."),
    Column(name="menu", arrow=_TEXT, level="series", search="text", option="--menu", rollup="list",
           meaning="Photographing menu: its meaning."),
    Column(name="body_part", arrow=_TEXT, keyword="BodyPartExamined", vr="CS", level="series", search="text",
           option="--body-part", rollup="list", meaning="Body part."),
    Column(name="view", arrow=_TEXT, keyword="ViewPosition", vr="CS", meaning="View position."),
    Column(name="laterality", arrow=_TEXT, keyword="Laterality", vr="CS", level="series", rollup="list",
           meaning="Side of the body."),
    Column(name="series_number", arrow=_INT, keyword="SeriesNumber", vr="IS", level="series",
           meaning="Series number."),
    Column(name="instance_number", arrow=_INT, keyword="InstanceNumber", vr="IS", meaning="Instance number."),
    Column(name="rows", arrow=_INT, keyword="Rows", vr="US", meaning="Rows of pixels."),
    Column(name="columns", arrow=_INT, keyword="Columns", vr="US", meaning="Columns of pixels."),
    Column(name="frames", arrow=_INT, keyword="NumberOfFrames", vr="IS", meaning="Number of frames."),
    Column(name="bits", arrow=_INT, keyword="BitsStored", vr="US", meaning="Bits stored for each sample."),
    Column(name="facility", arrow=_TEXT, level="study", search="exact", option="--facility", required=True,
           rollup="key", meaning="The facility that sent it."),
    Column(name="institution", arrow=_TEXT, keyword="InstitutionName", vr="LO", level="study", search="text",
           rollup="list", meaning="Institution as the device wrote it."),
    Column(name="station", arrow=_TEXT, keyword="StationName", vr="SH", level="series", search="text",
           rollup="list", meaning="Station name."),
    Column(name="manufacturer", arrow=_TEXT, keyword="Manufacturer", vr="LO", level="series", search="text",
           rollup="list", meaning="Manufacturer of the device."),
    Column(name="model", arrow=_TEXT, keyword="ManufacturerModelName", vr="LO", level="series", search="text",
           rollup="list", meaning="Model of the device."),
    Column(name="patient_id_tokens", arrow=_TEXTS, level="study", search="token", required=True,
           identifying=True, meaning="Tokens of the patient ID, with and without its issuer."),
    Column(name="person_tokens", arrow=_TEXTS, level="study", search="token", required=True,
           identifying=True, meaning="Tokens of each writing of the name together with the birth date."),
    Column(name="accession_tokens", arrow=_TEXTS, level="study", search="token", required=True,
           identifying=True, meaning="Tokens of the accession number."),
    Column(name="domains", arrow=_TEXTS, level="study", required=True, rollup="list",
           meaning="Ids of the domains that can open it."),
    Column(name="sealed_identity", arrow=pa.binary(), level="study", required=True, identifying=True,
           rollup="first", meaning="The identity as a small age file, for terminals of the domain."),
    Column(name="flags", arrow=_TEXTS, required=True,
           meaning="Reason codes about the header: what could not be read or was withheld."),
)  # fmt: skip
"""The table."""

by_name: dict[str, Column] = {column.name: column for column in COLUMNS}

COUNTS: dict[str, str] = {
    "n_series": "Number of series, in rows of studies.",
    "n_instances": "Number of instances, in rows of studies and series.",
}
"""Columns an answer has beside those of the table."""

_DUCKDB: dict[pa.DataType, str] = {
    _TEXT: "VARCHAR",
    _INT: "INTEGER",
    _LONG: "BIGINT",
    _TEXTS: "VARCHAR[]",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.binary(): "BLOB",
}


def arrow_schema() -> pa.Schema:
    """Schema of a manifest, without its metadata."""
    return pa.schema([pa.field(c.name, c.arrow, nullable=not c.required) for c in COLUMNS])


def duckdb_type(column: Column) -> str:
    """A column's type in SQL."""
    return _DUCKDB[column.arrow]


@cache
def shared() -> tuple[Column, ...]:
    """The columns by which the catalog puts objects together.

    Everything about study and series, and all that is searched, but not what each object has of its own.
    """
    return tuple(c for c in COLUMNS if c.level != "instance" or (c.search and not c.distinct))


@cache
def own() -> tuple[Column, ...]:
    """The other columns: about one object."""
    return tuple(c for c in COLUMNS if c not in shared())


@cache
def totals() -> tuple[Column, ...]:
    """Own columns that are summed up, or of which the last counts, for many objects."""
    return tuple(c for c in own() if c.rollup)


def duckdb_ddl(table: str, *more: str, chosen: Sequence[Column] = COLUMNS) -> str:
    """`CREATE TABLE` with these columns; `more` are further column definitions."""
    lines = [f'"{c.name}" {duckdb_type(c)}' + (" NOT NULL" if c.required else "") for c in chosen]
    return f"CREATE TABLE {table} (\n    " + ",\n    ".join([*lines, *more]) + "\n)"


@cache
def at_level(level: Level) -> tuple[tuple[Column, Rollup], ...]:
    """The columns an answer at this level shows, each with how many values become one.

    Tokens are for finding and are never answered. A column of an entity at or above the level has one
    value there (`first`, if its table entry names no other way); one below is shown only if it rolls up.
    """
    shown: list[tuple[Column, Rollup]] = []
    for column in COLUMNS:
        if column.search == "token":
            continue
        if LEVELS.index(column.level) <= LEVELS.index(level):
            shown.append((column, column.rollup if column.rollup in ("key", "min", "max") else "first"))
        elif column.rollup:
            shown.append((column, "list" if column.rollup == "key" else column.rollup))
    return tuple(shown)


@cache
def tokens() -> tuple[Column, ...]:
    """The columns of tokens."""
    return tuple(c for c in COLUMNS if c.search == "token")


@cache
def searchable() -> tuple[Column, ...]:
    """The columns a request may name."""
    return tuple(c for c in COLUMNS if c.search)
