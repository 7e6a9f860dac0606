"""Names from outside: one spelling each, everything else refused."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import names
from schemas.errors import FormatError

HEX64, HEX32 = "0a" * 32, "0a" * 16

GOOD = [
    (names.object_id, HEX64),
    (names.batch_id, HEX64),
    (names.request_id, HEX32),
    (names.facility_name, "clinic-a"),
    (names.facility_name, "Klinik_2"),
    (names.user_name, "m.kimura@radiology"),
    (names.uid, "1.2.840.10008.1.2"),
    (names.uid, "1.02.3"),
]
EVIL = [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "-x", "_x", "a b", "a\0b", "a\n", "\n", "ä",
    "a" * 300, HEX64.upper(), HEX64 + "\n", HEX64[:-1], "0" * 63 + "٣", "CON:", "1..2", ".1", "1.",
    "1.2\x00", None, 7, b"a", [HEX64],
]  # fmt: skip
ALSO_USERS = [HEX64.upper(), HEX64[:-1], "1..2", "1."]
PARSERS = [
    names.object_id, names.batch_id, names.request_id, names.facility_name, names.user_name, names.uid,
    names.shelf_name,
]  # fmt: skip


@pytest.mark.parametrize(("parse", "text"), GOOD)
def test_what_is_right_comes_back_unchanged(parse, text):
    assert parse(text) == text


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", EVIL)
def test_what_is_wrong_is_refused(parse, text):
    if parse is names.user_name and text in ALSO_USERS:
        pytest.skip("an account may be called that")
    with pytest.raises(FormatError):
        parse(text)


@pytest.mark.parametrize("kind", ["batch", "receipt", "tombstone", "erasure"])
def test_batches_and_receipts_are_named_by_the_batch(kind):
    assert str(names.shelf_name(f"{HEX64}.{kind}")) == f"{HEX64}.{kind}"
    with pytest.raises(FormatError):
        names.shelf_name(f"{HEX32}.{kind}")


@pytest.mark.parametrize("kind", ["request", "answer"])
def test_requests_and_answers_are_named_by_the_request(kind):
    assert names.shelf_name(f"{HEX32}.{kind}") == (HEX32, kind)
    with pytest.raises(FormatError):
        names.shelf_name(f"{HEX64}.{kind}")


def test_a_file_being_written_has_no_shelf_name():
    with pytest.raises(FormatError):
        names.shelf_name(f"{HEX64}.batch{names.PART_SUFFIX}")


def test_every_kind_has_a_direction():
    assert set(get_args(names.ShelfKind)) == names.OUTBOUND
    assert names.INBOUND < names.OUTBOUND, "to a peer, everything goes out"


def test_a_replica_names_its_batch_and_its_store():
    assert names.shelf_name(f"{HEX64}.north.replica") == (f"{HEX64}.north", "replica")
    assert names.replica_of(f"{HEX64}.north") == (HEX64, "north")
    for wrong in (f"{HEX64}.replica", f"{HEX64}..replica", f"{HEX64}.a.b.replica", f"{HEX32}.north.replica"):
        with pytest.raises(FormatError):
            names.shelf_name(wrong)


@given(st.text())
def test_no_text_gets_through_with_a_separator(text):
    for parse in PARSERS:
        try:
            accepted = str(parse(text))
        except FormatError:
            continue
        assert not set(accepted) & set("/\\\0\n ")
        assert accepted not in {".", ".."}
