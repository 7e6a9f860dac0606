"""From a header to a row: meaning, bad values, and no free text."""

from datetime import date, datetime, time

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from schemas import columns, extract
from tests.kit.corpus import bundled
from tests.kit.images import code, header


def clear(dataset: Dataset, site_map: extract.SiteMap | None = None) -> extract.Clear:
    return extract.clear_columns(
        dataset, transfer_syntax="1.2.840.10008.1.2.1", facility="clinic-a", site_map=site_map or {}
    )


def test_every_clear_column_is_one_of_the_table():
    filled = set(clear(header()).row)
    others = {column.name for column in columns.COLUMNS} - filled
    assert filled <= set(columns.by_name)
    assert others == {
        "object_sha256", "object_bytes", "encoding", "dicom_bytes", "source_digest", "captured_at",
        "patient_id_tokens", "person_tokens", "accession_tokens", "domains", "sealed_identity", "flags",
    }  # fmt: skip


def test_a_plain_header():
    row, identity, flags = clear(header(2, 3, 4, 5))
    assert row["study_date"] == date(2024, 4, 15)
    assert row["study_time"] == time(10, 15, 30, 250_000)
    assert row["acquisition_datetime"] == datetime.fromisoformat("2024-04-15T10:16:01")
    assert (row["modality"], row["body_part"], row["series_number"], row["instance_number"]) == (
        "CT",
        "CHEST",
        4,
        5,
    )
    assert (row["menu_code"], row["menu_scheme"], row["menu"]) == ("CTTHX", "99LOCAL", "CT Thorax native")
    assert (row["institution"], row["station"], row["manufacturer"]) == ("General Hospital", "CT01", "Maker")
    assert identity.values["patient_name"] == "FAMILY2^GIVEN2"
    assert identity.born == date(1942, 3, 15)
    assert flags == []


def test_an_empty_header_is_a_row_of_nulls():
    row, identity, flags = clear(Dataset())
    assert {key for key, value in row.items() if value is not None} == {"transfer_syntax_uid", "facility"}
    assert not any(identity.values.values())
    assert flags == []


FREE = "Mr Smith phoned twice"


def test_free_text_never_becomes_part_of_a_row():
    dataset = header(
        StudyDescription=FREE, SeriesDescription=FREE, ProtocolName=FREE, BodyPartExamined=FREE.upper()[:16],
        PatientComments=FREE, ViewPosition="SMITH", Modality="SMITH", ImageLaterality="S",
        RequestedProcedureDescription=FREE, ProcedureCodeSequence=None,
    )  # fmt: skip
    row, identity, flags = clear(dataset)
    assert "smith" not in str(row).lower()
    assert identity.values["study_description"] == FREE
    assert "unknown-term" in flags


def test_the_site_map_gives_the_menu_whatever_the_case():
    site_map = {"ct thorax NATIV": {"code": "T1", "meaning": "CT chest"}, "other": {"meaning": "Other"}}
    row = clear(header(ProtocolName="CT Thorax nativ "), site_map).row
    assert (row["menu_code"], row["menu_scheme"], row["menu"]) == ("T1", "SITE", "CT chest")
    assert clear(header(StudyDescription="OTHER"), site_map).row["menu_code"] is None
    assert clear(header(), site_map).row["menu"] == "CT Thorax native"


def test_a_menu_of_the_site_map_is_cut_to_what_a_row_takes():
    row = clear(header(ProtocolName="P"), {"p": {"code": "c" * 900, "meaning": "é" * 900}}).row
    assert (row["menu_code"], row["menu"]) == ("c" * 64, "é" * 64)


def test_a_code_without_a_meaning_is_its_own_menu_and_undefined_is_none():
    assert clear(header(ProcedureCodeSequence=Sequence([code("X1", "L", "")]))).row["menu"] == "X1"
    dataset = header(ProcedureCodeSequence=Sequence([code("UNDEFINED", "UNDEFINED", "UNDEFINED")]))
    assert clear(dataset).row["menu"] is None


@pytest.mark.parametrize(
    ("text", "part"), [("L_SPINE", "LSPINE"), ("whole body", "WHOLEBODY"), ("ANNOON", None)]
)
def test_body_parts_are_terms_of_the_standard(text, part):
    assert clear(header(BodyPartExamined=text)).row["body_part"] == part


def test_a_body_part_may_come_as_a_code():
    dataset = header(
        BodyPartExamined=None, AnatomicRegionSequence=Sequence([code("T-A0100", "SRT", "Brain")])
    )
    assert clear(dataset).row["body_part"] == "BRAIN"


@pytest.mark.parametrize(
    ("keyword", "column"),
    [("InstitutionName", "institution"), ("StationName", "station"), ("ManufacturerModelName", "model")],
)
@pytest.mark.parametrize("secret", ["PID-00001", "family1", "ACC000101", "19410315"])
def test_a_clear_value_with_something_of_the_identity_is_withheld(keyword, column, secret):
    row, _, flags = clear(header(**{keyword: f"ward {secret}x"[:16]}))
    assert row[column] is None
    assert flags == ["identity-in-value"]


@pytest.mark.parametrize(
    ("name", "institution"),
    [
        ("Yamada^Tarou=山田^太郎", "山田クリニック"),
        ("Smith, John", "Praxis SMITH"),
        ("Müller^Jörg", "Klinik müller"),
    ],
)
def test_a_name_is_found_however_its_parts_are_set_apart(name, institution):
    row, identity, flags = clear(header(PatientName=name, InstitutionName=institution))
    assert row["institution"] is None
    assert identity.values["patient_name"] == name
    assert flags == ["identity-in-value"]


def test_a_birth_date_in_another_spelling_is_found():
    assert clear(header(StationName="b. 1941-03-15")).row["station"] is None


def test_an_initial_is_not_enough_to_withhold_a_value():
    assert clear(header(PatientName="G^H", InstitutionName="General Hospital")).row["institution"]


def test_a_patient_id_as_series_number_is_withheld():
    row, _, flags = clear(header(PatientID="123456", SeriesNumber="123456"))
    assert row["series_number"] is None
    assert flags == ["identity-in-value"]
    assert clear(header(PatientID="7", SeriesNumber="7")).row["series_number"] == 7


def test_a_uid_with_the_patient_id_is_kept_and_flagged():
    row, _, flags = clear(header(PatientID="20001", StudyInstanceUID="1.2.20001.3"))
    assert row["study_uid"] == "1.2.20001.3"
    assert flags == ["identity-in-uid"]


@pytest.mark.parametrize(("name", "text"), [("ﾔﾏﾀﾞ^ﾀﾛｳ", "ヤマダ病院"), ("SMITH^A", "ＳＭＩＴＨ clinic")])
def test_the_width_of_characters_hides_nothing(name, text):
    row, _, flags = clear(header(PatientName=name, InstitutionName=text))
    assert row["institution"] is None
    assert flags == ["identity-in-value"]


BAD = {
    "StudyDate": ["2024.13.01", "yesterday", "20240230", "2024", "99999999"],
    "StudyTime": ["25", "1260", "noon", "1"],
    "AcquisitionTime": ["9"],
    "SeriesNumber": ["1e400", "99999999999"],
}


@pytest.mark.parametrize(("keyword", "text"), [(key, text) for key, texts in BAD.items() for text in texts])
def test_a_badly_written_value_is_null_and_a_flag(keyword, text):
    dataset = header()
    dataset.add(pydicom.DataElement(keyword, "LO", text))
    row, _, flags = clear(dataset)
    assert "bad-value" in flags
    assert row["sop_instance_uid"]


@pytest.mark.parametrize("text", ["20240305", "2024.03.05", "2024-03-05"])
def test_dates_of_old_devices_are_read(text):
    assert extract.parse_day(text) == date(2024, 3, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", time(10)),
        ("1015", time(10, 15)),
        ("101530.5", time(10, 15, 30, 500_000)),
        ("10:15:60", time(10, 15, 59)),
    ],
)
def test_times_are_read(text, expected):
    assert extract.parse_time(text) == expected


def test_many_values_where_one_is_meant_give_the_first():
    dataset = header()
    dataset.add(pydicom.DataElement("StationName", "SH", ["CT01", "CT02"]))
    dataset.add(pydicom.DataElement("SeriesNumber", "IS", ["7", "8"]))
    row = clear(dataset).row
    assert (row["station"], row["series_number"]) == ("CT01", 7)


@given(
    st.sampled_from(extract.KEYWORDS),
    st.sampled_from(["LO", "UN", "SQ", "IS", "DS", "UI", "OB", "PN", "US", "FD", "AT"]),
    st.one_of(
        st.binary(max_size=80),
        st.text(max_size=40),
        st.integers(),
        st.lists(st.text(max_size=5), max_size=4),
        st.none(),
    ),
)
def test_whatever_stands_in_a_header_a_row_comes_out(keyword, vr, value):
    dataset = header()
    try:
        dataset.add(pydicom.DataElement(keyword, vr, value, already_converted=True))
    except Exception:  # pydicom would not build such an element
        return
    row = clear(dataset).row
    assert set(row) <= set(columns.by_name)
    assert str(row).encode("utf-8")


CHARSETS = [
    path for path in bundled()
    if path.parent.name == "charset_files" and path.suffix == ".dcm" and "SQEncoding" not in path.name
]  # fmt: skip


@pytest.mark.parametrize("path", CHARSETS, ids=lambda path: path.name)
def test_names_of_every_character_set_are_read_whole(path):
    dataset = pydicom.dcmread(path)
    assert clear(dataset).identity.values["patient_name"] == str(dataset.PatientName)


def test_there_are_samples_of_character_sets():
    assert len(CHARSETS) > 10
