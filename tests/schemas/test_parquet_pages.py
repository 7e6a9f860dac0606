"""Manifests that are small and decode to much, or that a decoder in C++ must never see."""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import columns, manifest, parquet_pages
from schemas.errors import FormatError
from tests.kit.batches import row

SCHEMA = columns.arrow_schema().with_metadata({manifest.KEY: manifest.VERSION.encode()})
LEVELS = [
    parquet_pages.Levels(1, 1) if pa.types.is_list(c.arrow) else parquet_pages.Levels(int(not c.required), 0)
    for c in columns.COLUMNS
]
LIMITS = parquet_pages.Limits(manifest.MAX_ROWS, manifest.MAX_DECODED)


def rows(count: int) -> pa.Table:
    made = [
        row(n, facility="clinic-a", object_bytes=5, object_sha256=hashlib.sha256(b"%d" % n).hexdigest())
        for n in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(made, schema=SCHEMA)


def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), values)


def written(table: pa.Table, **how: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **({"compression": "zstd"} | how))
    return sink.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        manifest.from_parquet(data, facility="clinic-a")
    return str(caught.value)


def test_a_plain_one_passes_whoever_cut_its_pages():
    table = rows(50)
    for how in (
        {}, {"compression": "none"}, {"row_group_size": 10}, {"data_page_size": 100},
        {"use_dictionary": False}, {"dictionary_pagesize_limit": 100}, {"data_page_version": "2.0"},
        {"write_page_checksum": True}, {"write_statistics": False},
    ):  # fmt: skip
        assert manifest.from_parquet(written(table, **how), facility="clinic-a").equals(table), how


def folded(name: str, count: int, text: str) -> bytes:
    """A file with one text many times, in one dictionary: in `count` rows, or as items of one row."""
    many = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))
    lists = pa.types.is_list(SCHEMA.field(name).type)
    table = rows(1 if lists else count)
    if lists:
        item = pa.field("item", many.type, nullable=False)
        many = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), many, type=pa.list_(item))
    field = pa.field(name, many.type, nullable=SCHEMA.field(name).nullable)
    table = table.set_column(table.schema.get_field_index(name), field, many)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({manifest.KEY.decode(): manifest.VERSION})
    return sink.getvalue()


def test_folding_itself_is_no_reason():
    table = manifest.from_parquet(folded("menu", 40, "CT"), facility="clinic-a")
    assert table["menu"].to_pylist() == ["CT"] * 40
    assert "too many items" in refused(folded("flags", 40, "flag"))


@pytest.mark.parametrize(("name", "count"), [("menu", 4096), ("flags", 100_000)])
def test_one_long_text_many_times_is_refused_before_memory_grows(tmp_path, name, count):
    """The dictionary holds it once; unfolded it would take gigabytes."""
    path = tmp_path / "bomb.parquet"
    path.write_bytes(folded(name, count, "a" * 1_000_000))
    assert path.stat().st_size < 500_000
    code = (
        "import resource, sys; from schemas import manifest, errors\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: manifest.from_parquet(open(sys.argv[1], 'rb').read(), facility='clinic-a')\n"
        "except errors.FormatError as error: print(error, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "too large once decoded" in done.stderr
    assert int(done.stdout) < 100 * 1024, "kilobytes"


def test_a_page_that_inflates_is_refused_by_its_header():
    table = replaced(rows(3), "menu", pa.array(["a" * 9_000_000] * 3))
    data = written(table, use_dictionary=False, write_statistics=False, data_page_size=1 << 30)
    assert len(data) < 100_000
    assert "page" in refused(data)


@pytest.mark.parametrize("how", [
    {"compression": "gzip"}, {"compression": "snappy"},
    {"use_dictionary": False, "column_encoding": {"menu": "DELTA_BYTE_ARRAY"}},
    {"use_dictionary": False, "column_encoding": {"menu": "DELTA_LENGTH_BYTE_ARRAY"}},
    {"use_dictionary": False, "column_encoding": {"rows": "DELTA_BINARY_PACKED"}}, {"write_page_index": True},
])  # fmt: skip
def test_what_a_manifest_is_never_written_in_is_refused(how):
    assert refused(written(rows(3), **how))


def test_more_row_groups_than_anybody_needs_are_refused():
    assert refused(written(rows(70), row_group_size=1))


def test_an_encrypted_footer_is_refused():
    data = written(rows(1))
    assert refused(data[:-4] + b"PARE")


GOOD = written(rows(2), write_statistics=False)
FOOTER = int.from_bytes(GOOD[-8:-4], "little")


def test_every_cut_of_the_footer_is_refused():
    footer = GOOD[-8 - FOOTER : -8]
    for length in range(0, FOOTER, 61):
        cut = GOOD[: -8 - FOOTER] + footer[:length]
        with pytest.raises(FormatError):
            parquet_pages.check(cut + length.to_bytes(4, "little") + b"PAR1", LIMITS, LEVELS)


@pytest.mark.parametrize("footer", [
    b"", b"\x00", b"\x19\xfc\xff\xff\xff\x7f", b"\x1c" * 50, b"\x19\x19" * 50, b"\x15" + b"\xff" * 20,
    b"\x18\xff\xff\xff\xff\x0f", b"\x1b\x01", b"\x49\x0c\x36\x00\x00",
])  # fmt: skip
def test_a_footer_of_anything_is_refused(footer):
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(FormatError):
        parquet_pages.check(data, LIMITS, LEVELS)


@pytest.mark.parametrize(
    "rows_said", [b"\x80\xa8\xd6\xb9\x07", b"\x05", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]
)
def test_a_billion_rows_or_fewer_than_none_are_refused_by_the_footer(rows_said):
    footer = GOOD[-8 - FOOTER : -8]
    assert footer.count(b"\x16\x04\x19") == 1  # field 3, number of rows: 2; then the list of row groups
    changed = footer.replace(b"\x16\x04\x19", b"\x16" + rows_said + b"\x19")
    data = GOOD[: -8 - FOOTER] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(FormatError, match="rows"):
        parquet_pages.check(data, LIMITS, LEVELS)
    assert refused(data)


# -- what two readers of the Thrift protocol would understand differently --------------------------


def with_footer(change: Callable[[bytes], bytes]) -> bytes:
    footer = change(GOOD[-8 - FOOTER : -8])
    return GOOD[: -8 - FOOTER] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


ROWS = b"\x16\x04\x19"  # field 3 of the footer, i64: 2 rows; then field 4


@pytest.mark.parametrize(
    ("what", "put"),
    [
        ("a field that stands twice", b"\x16\x04\x06\x06\x04\x19"),
        ("a number that is 3 in 16 bits", b"\x16\x04\x06\x86\x80\x08\x04\x19"),
        ("rows as i32", b"\x15\x04\x19"),
        ("rows as true", b"\x11\x19"),
        ("a negative number", b"\x16\x04\x06\x01\x04\x19"),
    ],
)  # fmt: skip
def test_a_footer_with_two_meanings_is_refused(what, put):
    data = with_footer(lambda footer: footer.replace(ROWS, put))
    with pytest.raises(FormatError):
        parquet_pages.check(data, LIMITS, LEVELS)
    assert refused(data), what


def test_the_decoder_is_asked_where_it_will_read(monkeypatch):
    real = parquet_pages.check
    monkeypatch.setattr(parquet_pages, "check", lambda *given: real(*given)[:-1])
    with pytest.raises(FormatError, match="two ways"):
        manifest.from_parquet(GOOD, facility="clinic-a")
