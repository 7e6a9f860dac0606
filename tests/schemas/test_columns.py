"""The table of columns: true to the DICOM dictionary, and everything derived from it agrees."""

import duckdb
import pyarrow as pa
import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from schemas import columns, extract

READ = [column for column in columns.COLUMNS if column.keyword]
IDENTITIES = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "OtherPatientIDs",
    "IssuerOfPatientID", "AccessionNumber", "StudyDescription", "SeriesDescription", "ProtocolName",
    "PatientComments", "ReferringPhysicianName",
}  # fmt: skip


@pytest.mark.parametrize("column", READ, ids=lambda column: column.name)
def test_keyword_and_vr_are_those_of_the_dictionary(column):
    tag = tag_for_keyword(column.keyword)
    assert tag is not None
    assert keyword_for_tag(tag) == column.keyword
    assert column.vr == dictionary_VR(tag)


@pytest.mark.parametrize("column", READ, ids=lambda column: column.name)
def test_the_type_can_hold_what_the_vr_says(column):
    fits = {"DA": "date32", "TM": "time64", "DT": "timestamp", "IS": "int32", "US": "int32"}
    assert str(column.arrow).startswith(fits.get(column.vr, "string"))


@pytest.mark.parametrize("keyword", extract.KEYWORDS)
def test_every_keyword_that_is_read_exists(keyword):
    assert tag_for_keyword(keyword) is not None


def test_every_keyword_of_the_table_is_read_of_a_header():
    from_the_file_meta = {"TransferSyntaxUID"}
    assert {column.keyword for column in READ} - set(extract.KEYWORDS) == from_the_file_meta


def test_no_column_is_an_identity():
    assert not IDENTITIES & {column.keyword for column in columns.COLUMNS}
    for column in columns.COLUMNS:
        assert not (column.identifying and column.keyword), column.name  # a token or a seal, never a value


def test_names_keywords_and_options_are_unique():
    assert len(columns.by_name) == len(columns.COLUMNS)
    for part in ("keyword", "option"):
        found = [getattr(column, part) for column in columns.COLUMNS if getattr(column, part)]
        assert len(found) == len(set(found))
    assert not set(columns.COUNTS) & set(columns.by_name)


def test_whatever_has_an_option_can_be_searched():
    for column in columns.COLUMNS:
        if column.option:
            assert column.search, column.name
            assert column.option == column.option.lower()
            assert column.option.startswith("--")
    assert set(columns.searchable()) == {column for column in columns.COLUMNS if column.search}


def test_the_way_of_searching_fits_the_type():
    fits = {"token": "list<item: string not null>", "date": "date32[day]"}
    for column in columns.searchable():
        assert str(column.arrow) == fits.get(column.search, "string"), column.name


def test_what_the_claims_ask_for_can_be_searched():
    found = {column.name for column in columns.searchable()}
    assert found >= {"patient_id_tokens", "person_tokens", "study_date", "menu", "modality", "facility"}


def test_arrow_schema_has_every_column_in_order():
    schema = columns.arrow_schema()
    assert schema.names == [column.name for column in columns.COLUMNS]
    for column in columns.COLUMNS:
        field = schema.field(column.name)
        assert field.type == column.arrow
        assert field.nullable is not column.required


def test_the_tables_sql_makes_are_those_of_the_schema():
    with duckdb.connect() as connection:
        connection.execute(columns.duckdb_ddl("instances", '"batch" VARCHAR NOT NULL'))
        described = connection.execute("DESCRIBE instances").fetchall()
        expected = [(c.name, columns.duckdb_type(c), "NO" if c.required else "YES") for c in columns.COLUMNS]
        assert [row[:3] for row in described] == [*expected, ("batch", "VARCHAR", "NO")]
        # What DuckDB would make of the Arrow schema itself is the same: no type changes on the way in.
        empty = columns.arrow_schema().empty_table()
        connection.register("empty", empty)
        of_arrow = connection.execute("DESCRIBE SELECT * FROM empty").fetchall()
        assert [row[:2] for row in of_arrow] == [row[:2] for row in described[:-1]]


def test_columns_of_an_answer():
    shown = {level: dict(columns.at_level(level)) for level in columns.LEVELS}
    for level, found in shown.items():
        for column, rollup in found.items():
            assert rollup, column.name
            assert column.search != "token"  # tokens are for finding
            if rollup in ("sum", "list") and column.level != level:
                assert columns.LEVELS.index(column.level) > columns.LEVELS.index(level)
    assert {c.name for c in shown["instance"]} == {c.name for c in columns.COLUMNS if c.search != "token"}
    by_name = {level: {c.name: r for c, r in found.items()} for level, found in shown.items()}
    assert by_name["study"]["study_uid"] == by_name["study"]["facility"] == "key"
    assert by_name["study"]["modality"] == "list"
    assert by_name["series"]["modality"] == "first"
    assert by_name["study"]["object_bytes"] == "sum"
    assert "sop_instance_uid" not in by_name["study"]
    assert "series_uid" not in by_name["study"]


def test_a_sum_is_of_numbers_and_a_list_of_what_sorts():
    for column in columns.COLUMNS:
        if column.rollup == "sum":
            assert pa.types.is_integer(column.arrow)
        if column.rollup == "list":
            assert pa.types.is_string(column.arrow) or pa.types.is_list(column.arrow)


def test_every_column_is_explained():
    for column in columns.COLUMNS:
        assert column.meaning.endswith("."), column.name
