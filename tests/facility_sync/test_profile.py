"""The profile: the vendored table against an independent one, the rules against the standard's words."""

import csv
import re
from importlib.resources import files
from pathlib import Path

import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as published
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import DicomDictionary, dictionary_description, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.valuerep import STANDARD_VR, validate_value

from facility_sync.identity.profile import CODES, DUMMIES, OPTIONS, Action, action, reason

ROOT = Path(__file__).parents[2]
TEXT = files("facility_sync.identity").joinpath("profile.csv").read_text("utf-8")
ROWS = list(csv.DictReader(line for line in TEXT.splitlines() if not line.startswith("#")))
LISTS = {
    "D": "D_TAGS",
    "Z": "Z_TAGS",
    "X": "X_TAGS",
    "U": "U_TAGS",
    "Z/D": "Z_D_TAGS",
    "X/Z": "X_Z_TAGS",
    "X/D": "X_D_TAGS",
    "X/Z/D": "X_Z_D_TAGS",
    "X/Z/U*": "X_Z_U_STAR_TAGS",
}
COUNTS = {
    "retain_safe_private": {"C": 1},
    "retain_uids": {"K": 60},
    "retain_device": {"K": 48, "C": 11},
    "retain_institution": {"K": 10},
    "retain_patient": {"K": 14, "C": 5},
    "retain_full_dates": {"K": 169},
    "retain_modified_dates": {"C": 169},
    "clean_descriptors": {"C": 140},
    "clean_structured_content": {"C": 4},
    "clean_graphics": {"C": 4},
}


def published_tag(numbers: tuple[int, ...]) -> str:
    group, element, group_mask, element_mask = (*numbers, 0xFFFF, 0xFFFF)[:4]
    mask = f"{group_mask:04X}{element_mask:04X}"
    return "".join("x" if m == "0" else d for d, m in zip(f"{group:04X}{element:04X}", mask, strict=True))


def some_tag(row: dict[str, str]) -> int:
    """An attribute that the row speaks of."""
    return 0x00091001 if row["tag"] == "private" else int(row["tag"].replace("x", "2"), 16)


def test_the_basic_profile_is_that_of_an_independent_table():
    theirs = {published_tag(tag): name for name, tags in LISTS.items() for tag in getattr(published, tags)}
    assert len(theirs) == len(published.ALL_TAGS) == 655
    assert {row["tag"]: row["basic"] for row in ROWS} == {**theirs, "private": "X"}
    assert len(ROWS) == 656


def test_the_options_are_counted():
    found = {
        column: {letter: n for letter in "KC" if (n := [row[column] for row in ROWS].count(letter))}
        for column in COUNTS
    }
    assert found == COUNTS
    assert {row[column] for row in ROWS for column in COUNTS} == {"", "K", "C"}
    assert list(ROWS[0]) == ["tag", "name", "basic", *COUNTS]


def test_the_rows_are_in_order_and_named_as_the_dictionary_does():
    tags = [row["tag"] for row in ROWS]
    assert tags == sorted(set(tags))
    assert all(re.fullmatch(r"[0-9A-Fx]{8}|private", tag) for tag in tags)
    for row in ROWS:
        if keyword_for_tag(some_tag(row)):
            assert row["name"] == dictionary_description(some_tag(row))
        assert row["name"]


def test_our_options_keep_274_attributes_and_protect_the_rest():
    kept = [row for row in ROWS if action(some_tag(row), "") is Action.KEEP]
    assert len(kept) == 274
    assert len(ROWS) - len(kept) == 381 + 1  # and the private attributes
    for row in ROWS:
        assert (row in kept) == any(row[column] == "K" for column in OPTIONS), row


@pytest.mark.parametrize(
    ("tag", "vr", "what", "why"),
    [
        # Kept by an option, from the table
        (0x00080018, "UI", Action.KEEP, "kept: Retain UIDs"),
        (0x00080020, "DA", Action.KEEP, "kept: Retain Longitudinal Full Dates"),
        (0x00080080, "LO", Action.KEEP, "kept: Retain Institution Identity"),
        (0x00181000, "LO", Action.KEEP, "kept: Retain Device Identity"),
        (0x00181002, "UI", Action.KEEP, "kept: Retain UIDs, Retain Device Identity"),
        (0x0040A034, "DT", Action.KEEP, "kept: Retain Longitudinal Full Dates"),  # newer than the dictionary
        (0x00081140, "SQ", Action.KEEP, "kept: Retain UIDs"),  # X/Z/U*
        (0x00082112, "SQ", Action.KEEP, "kept: Retain UIDs"),
        # Kept only if cleaned: the basic action
        (0x00081000, "AE", Action.REMOVE, "Basic Profile: X"),
        (0x21000140, "AE", Action.DUMMY, "Basic Profile: D"),
        (0x00081030, "LO", Action.REMOVE, "Basic Profile: X"),
        # Options that are not ours
        (0x00101010, "AS", Action.REMOVE, "Basic Profile: X"),
        (0x00100040, "CS", Action.EMPTY, "Basic Profile: Z"),
        # Simple and compound actions
        (0x00100010, "PN", Action.EMPTY, "Basic Profile: Z"),
        (0x00100030, "DA", Action.EMPTY, "Basic Profile: Z"),
        (0x00100020, "LO", Action.DUMMY, "Basic Profile: Z/D"),
        (0x00181030, "LO", Action.DUMMY, "Basic Profile: X/D"),
        (0x00081070, "PN", Action.DUMMY, "Basic Profile: X/Z/D"),
        (0x00400555, "SQ", Action.EMPTY, "Basic Profile: X/Z"),
        (0x0040A730, "SQ", Action.DUMMY, "Basic Profile: D"),
        (0x0040A124, "UI", Action.DUMMY, "Basic Profile: U"),  # no option keeps it
        # Signatures
        (0xFFFAFFFA, "SQ", Action.REMOVE, "Basic Profile: X"),
        (0x04000100, "UI", Action.DUMMY, "Basic Profile: U"),
        (0x04000550, "SQ", Action.REMOVE, "Basic Profile: X"),
        (0x04000561, "SQ", Action.REMOVE, "Basic Profile: X"),
        (0x04000500, "SQ", Action.KEEP, "not in Table E.1-1"),
        # Repeating groups
        (0x50003000, "OW", Action.REMOVE, "Basic Profile: X"),
        (0x501E0010, "US", Action.REMOVE, "Basic Profile: X"),
        (0x60003000, "OW", Action.REMOVE, "Basic Profile: X"),
        (0x601E4000, "LT", Action.REMOVE, "Basic Profile: X"),
        (0x60020010, "US", Action.KEEP, "not in Table E.1-1"),
        (0x50013000, "OW", Action.REMOVE, "private attribute"),
        # Private, group length, unknown
        (0x00090010, "LO", Action.REMOVE, "private attribute"),
        (0xFFFF0001, "UN", Action.REMOVE, "private attribute"),
        (0x00080000, "UL", Action.REMOVE, "group length"),
        (0x00109999, "LO", Action.REMOVE, "unknown attribute"),
        # Outside the table: free text by the dictionary, by the file, or by neither
        (0x00080119, "", Action.REMOVE, "free text"),  # UC
        (0x00080119, "LO", Action.REMOVE, "free text"),
        (0x00080060, "UT", Action.REMOVE, "free text"),
        (0x00080060, "PN", Action.REMOVE, "free text"),
        (0x00280010, "UN", Action.REMOVE, "value of an unknown kind"),
        (0x00080060, "CS", Action.KEEP, "not in Table E.1-1"),
        (0x00080060, "", Action.KEEP, "not in Table E.1-1"),
        (0x00081032, "SQ", Action.KEEP, "not in Table E.1-1"),  # coded exam menus stay
        (0x7FE00010, "OW", Action.KEEP, "not in Table E.1-1"),
    ],
)
def test_what_becomes_of_an_attribute_and_why(tag: int, vr: str, what: Action, why: str):
    assert (action(tag, vr), reason(tag, vr)) == (what, why)


def test_a_variant_is_valid_whatever_the_type_in_the_iod():
    """X/Z is never removed, anything with D never empty (PS3.15 section E.1: types 1 and 2)."""
    for row in ROWS:
        found = action(some_tag(row), "")
        if found is not Action.KEEP and "/" in row["basic"]:
            assert found is (Action.DUMMY if "D" in row["basic"] else Action.EMPTY)


@given(st.integers(0, 0xFFFFFFFF), st.sampled_from(["", *DUMMIES, "SQ", "??"]))
def test_nothing_private_or_unknown_ever_stays(tag: int, vr: str):
    if action(tag, vr) is Action.KEEP:
        assert not tag >> 16 & 1
        assert tag & 0xFFFF
        assert keyword_for_tag(tag) or reason(tag, vr).startswith("kept: ")


def test_no_free_text_of_the_dictionary_stays_outside_the_table():
    free = [tag for tag, entry in DicomDictionary.items() if entry[0] in {"PN", "LT", "ST", "UT", "UC", "UN"}]
    assert len(free) > 250
    for tag in free:
        assert action(tag, "") is not Action.KEEP or reason(tag, "").startswith("kept: ")


def test_there_is_a_dummy_of_every_kind():
    assert set(DUMMIES) == {str(vr) for vr in STANDARD_VR} - {"SQ"}
    for row in ROWS:
        if action(some_tag(row), "") is Action.DUMMY and keyword_for_tag(some_tag(row)):
            assert dictionary_VR(some_tag(row)) in {*DUMMIES, "SQ"}


@pytest.mark.parametrize(("vr", "value"), DUMMIES.items())
@pytest.mark.parametrize("little", [True, False])
def test_a_dummy_is_valid_and_comes_back_as_it_was(vr: str, value: bytes, little: bool):
    assert value
    assert len(value) % 2 == 0
    # Selector UN Value: an attribute that the dictionary itself calls UN lets the VR given stand.
    raw = RawDataElement(Tag(0x0072006D), vr, len(value), value, 0, False, little)
    element = convert_raw_data_element(raw)
    assert vr == element.VR
    assert element.VM == 1
    shown = str(element.value) if vr in {"DS", "IS"} else element.value
    validate_value(vr, shown, config.RAISE)
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = little, False
    write_data_element(out, element)
    assert out.getvalue()[-len(value) :] == value


def test_the_codes_are_those_of_the_standard():
    theirs = {
        getattr(codes.cid7050, name).value: getattr(codes.cid7050, name).meaning
        for name in codes.cid7050.dir()
    }
    assert [code for code, _ in CODES] == ["113100", "113106", "113109", "113110", "113112"]
    assert all(theirs[code] == meaning for code, meaning in CODES)
