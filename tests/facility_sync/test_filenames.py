"""Names of restored files: readable, safe, stable, distinct."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync import filenames

ROW = {
    "study_date": date(2004, 1, 19), "study_uid": "1.2.3", "series_uid": "1.2.3.4", "series_number": 4,
    "modality": "CT", "menu": "CT Thorax", "instance_number": 7, "source_digest": "ab" * 32,
}  # fmt: skip


def test_a_path_can_be_read():
    path = filenames.image_path(ROW, {"patient_name": "DOE^JOHN=", "patient_id": "12345"})
    study, series = filenames.short("1.2.3"), filenames.short("1.2.3.4")
    assert str(path) == f"DOE_JOHN_12345/2004-01-19_CT_Thorax_{study}/004_CT_{series}/00007_abababababab.dcm"


def test_a_row_that_knows_nothing_has_a_path_too():
    path = filenames.image_path({"study_uid": "1", "series_uid": "2", "source_digest": "cd" * 32}, {})
    assert path.parts[0] == "patient"
    assert path.parts[-1] == "cdcdcdcdcdcd.dcm"


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../../etc", "a/b", "a\\b", "con", "NUL.txt", "a\0b", "  ", "-" * 300, "山" * 99]
)
def test_no_name_leaves_its_folder(text):
    name = filenames.safe(text, "x")
    assert name
    assert "/" not in name
    assert name not in {".", ".."}
    assert len(name.encode()) <= 81
    assert name.split(".")[0].lower() not in {"con", "nul"}


@given(st.text())
def test_safe_of_anything(text):
    name = filenames.safe(text, "x")
    assert not set(name) & set('/\\\0:*?"<>|\n')
    assert 0 < len(name.encode()) <= 81


def test_two_images_never_share_a_name():
    one = filenames.image_path(ROW, {})
    other = filenames.image_path({**ROW, "source_digest": "ac" * 32}, {})
    assert one != other
