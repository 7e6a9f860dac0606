"""The manifest: the same bytes for the same rows, and nothing but its own error for any others."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import columns, manifest
from schemas.errors import FormatError, VersionError


def row(number: int = 0, **overrides: Any) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(columns.by_name)
    values |= {
        "object_sha256": f"{number:064x}", "object_bytes": 5, "encoding": "age", "dicom_bytes": 9,
        "source_digest": f"{number + 7:064x}", "captured_at": datetime(2026, 11, 24, 8, 30, tzinfo=UTC),
        "sop_instance_uid": f"1.2.{number}", "study_uid": "1.2", "study_date": date(2024, 1, 2),
        "study_time": time(1, 2, 3), "facility": "clinic-a", "patient_id_tokens": ["1" + "A" * 26],
        "person_tokens": [], "accession_tokens": [], "domains": ["0a" * 8], "sealed_identity": b"seal",
        "flags": [],
    }  # fmt: skip
    return values | overrides


ROWS = [row(number) for number in range(3)]
GOOD = manifest.to_parquet(ROWS, facility="clinic-a")


def read(data: bytes) -> pa.Table:
    return manifest.from_parquet(data, facility="clinic-a")


def test_round_trip():
    table = read(GOOD)
    assert table.to_pylist() == ROWS
    assert list(manifest.objects(table)) == [(item["object_sha256"], 5, "age") for item in ROWS]


def test_the_same_rows_give_the_same_bytes():
    assert manifest.to_parquet([dict(item) for item in ROWS], facility="clinic-a") == GOOD


def test_plain_duckdb_reads_it(tmp_path):
    import duckdb

    (tmp_path / "manifest.parquet").write_bytes(GOOD)
    found = duckdb.sql(f"SELECT count(*), min(study_date) FROM '{tmp_path}/manifest.parquet'").fetchall()
    assert found == [(3, date(2024, 1, 2))]


WRONG = {
    "no rows": [],
    "an object twice": [row(1), row(1)],
    "another facility": [row(facility="hospital-b")],
    "two facilities": [row(1), row(2, facility="hospital-b")],
    "no object": [row(object_sha256=None)],
    "an object that is no digest": [row(object_sha256="../../etc/passwd")],
    "upper case digest": [row(object_sha256="AB" * 32)],
    "a UID that is none": [row(sop_instance_uid="1.2;DROP TABLE")],
    "a UID that is too long": [row(series_uid="1." * 40 + "1")],
    "a patient ID in place of a token": [row(patient_id_tokens=["PID-00001"])],
    "a name in place of a token": [row(person_tokens=["1" + "A" * 26, "FAMILY^GIVEN"])],
    "a domain that is none": [row(domains=["clinic"])],
    "free text as a flag": [row(flags=["Mr Smith phoned"])],
    "a line end behind a digest": [row(object_sha256="ab" * 32 + "\n")],
    "a line end behind a UID": [row(study_uid="1.2\n")],
    "no instance": [row(sop_instance_uid=None)],
    "an unknown encoding": [row(encoding="rot13")],
    "a negative size": [row(object_bytes=-1)],
    "a size beyond the format": [row(object_bytes=1 << 40)],
    "a size to unfold to beyond the format": [row(dicom_bytes=1 << 40)],
    "a long text": [row(menu="x" * 2000)],
    "a large seal": [row(sealed_identity=b"x" * 9000)],
    "too many tokens": [row(patient_id_tokens=["1" + "A" * 26] * 100)],
    "an empty token": [row(patient_id_tokens=[None])],
    "a wrong type": [row(rows="many")],
    "a number too large": [row(rows=1 << 40)],
}


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_row_is_refused_by_writer_and_reader(rows):
    with pytest.raises(FormatError):
        manifest.to_parquet(rows, facility="clinic-a")
    schema = columns.arrow_schema().with_metadata({manifest.KEY: b"1"})
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    except (pa.ArrowException, ValueError, OverflowError):
        return  # no Parquet writer makes such a file
    with pytest.raises(FormatError):
        read(sink.getvalue())


BEYOND = [
    ("study_date", pa.int32(), 2**31 - 1), ("study_date", pa.int32(), -(2**31)),
    ("study_date", pa.int32(), (date.max - date(1970, 1, 1)).days + 1),
    ("study_time", pa.int64(), 86_400_000_000), ("study_time", pa.int64(), -1),
    ("acquisition_datetime", pa.int64(), 2**63 - 1), ("acquisition_datetime", pa.int64(), -(2**63)),
    ("captured_at", pa.int64(), 2**63 - 1), ("captured_at", pa.int64(), -(2**63)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "integer", "value"), BEYOND)
def test_a_day_no_calendar_has_is_refused(name, integer, value):
    """Arrow can write it; DuckDB and Python fail over it long after it was taken."""
    table = pa.Table.from_pylist(ROWS, schema=columns.arrow_schema().with_metadata({manifest.KEY: b"1"}))
    at = table.schema.get_field_index(name)
    raw = table[name].cast(integer).to_pylist()
    for there in (0, 2):
        changed = [value if number == there else old for number, old in enumerate(raw)]
        odd = pa.array(changed, integer).view(table.schema.field(at).type)
        sink = io.BytesIO()
        pq.write_table(table.set_column(at, table.schema.field(at), odd), sink, compression="zstd")
        with pytest.raises(FormatError):
            read(sink.getvalue())


def test_the_first_and_the_last_day_of_the_calendar_pass():
    rows = [
        row(1, study_date=date.min, acquisition_datetime=datetime.combine(date.min, time.min)),
        row(
            2,
            study_date=date.max,
            acquisition_datetime=datetime.combine(date.max, time.max),
            study_time=time.max,
        ),
        row(3, study_date=None, acquisition_datetime=None, study_time=None),
    ]
    assert read(manifest.to_parquet(rows, facility="clinic-a")).to_pylist() == rows


def rewritten(schema: pa.Schema | None = None, metadata: dict[bytes, bytes] | None = None) -> bytes:
    table = read(GOOD)
    if schema is not None:
        table = pa.Table.from_pylist(table.to_pylist(), schema=schema)
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({manifest.KEY: b"1"} if metadata is None else metadata),
        sink,
        compression="zstd",
    )
    return sink.getvalue()


def test_another_version_or_none_is_refused():
    with pytest.raises(VersionError):
        read(rewritten(metadata={manifest.KEY: b"2"}))
    with pytest.raises(FormatError):
        read(rewritten(metadata={}))


def test_other_columns_are_refused():
    schema = columns.arrow_schema()
    for other in (
        schema.append(pa.field("extra", pa.string())), schema.remove(0),
        schema.set(1, pa.field("object_bytes", pa.int32(), nullable=False)),
    ):  # fmt: skip
        with pytest.raises(FormatError):
            read(rewritten(schema=other))


def test_every_truncation_is_refused():
    for length in range(0, len(GOOD), 97):
        with pytest.raises(FormatError):
            read(GOOD[:length])


def test_only_our_error_comes_out_of_altered_bytes():
    rng = random.Random(1)
    refused = 0
    for _ in range(600):
        data = bytearray(GOOD)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            read(bytes(data))
        except FormatError:
            refused += 1
    assert refused > 200
    for size in (0, 4, 12, 1000):
        with pytest.raises(FormatError):
            read(rng.randbytes(size))


def test_a_bomb_is_refused_before_memory_grows(tmp_path):
    """A hundred million equal rows are a small file; the reader must not unfold them."""
    schema = columns.arrow_schema().with_metadata({manifest.KEY: b"1"})
    small = pa.Table.from_pylist([row(0)], schema=schema)
    path = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(21):
            writer.write_table(pa.concat_tables([small] * 10_000).combine_chunks())
    assert path.stat().st_size < manifest.MAX_TABLE
    code = (
        "import resource, sys; from schemas import manifest, errors\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: manifest.from_parquet(open(sys.argv[1], 'rb').read(), facility='clinic-a')\n"
        "except errors.FormatError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024, "kilobytes"
