"""Tokens: findable however it is written, by nobody without the domain."""

from dataclasses import replace
from datetime import date

import pydicom
import pytest

from facility_sync.identity import domains, tokens
from tests.kit.corpus import bundled
from tests.kit.domains import CREATED

BORN = date(1970, 5, 1)


def generation(seed: int = 1, version: str = "1") -> domains.Generation:
    return domains.Generation(version, bytes([seed]) * 32, "unused", b"unused", b"unused", CREATED)


A, B = generation(1), generation(2)
DOMAIN = domains.Domain("0" * 16, "test", "facility", (A,))


def test_golden_vectors():
    """The bytes are the format: a change here needs another version character."""
    assert tokens.patient_id(A, "12345") == ["14JFCPLOJGPUBL2JSCUNLRASRCY"]
    assert tokens.patient_id(A, "12345", "Hospital B") == ["1KEGENKN7KK3NVPVUI22W35LXAA"]
    assert tokens.person(A, "DOE^JOHN", BORN) == ["1STBAYEYDTR4LC5X64MMKKJ47V4"]
    assert tokens.accession(A, "A1") == ["1HLTE4SCSUNI7MWAFFPCZWYDEYE"]
    assert tokens.keyed_digest(DOMAIN, bytes(32)).startswith("41f81922741c06ba")


def test_a_token_fits_a_dicom_lo():
    (token,) = tokens.patient_id(A, "x" * 64)
    assert len(token) == 27
    assert token.isascii()
    assert token.upper() == token
    assert token[0] == A.version


@pytest.mark.parametrize("other", ["12345", " 12345 ", "１２３４５", "12345\0"])
def test_an_id_is_found_however_it_is_written(other):
    assert tokens.patient_id(A, other) == tokens.patient_id(A, "12345")


@pytest.mark.parametrize("other", ["012345", "1234", "12345-6", ""])
def test_another_id_is_another_patient(other):
    assert tokens.patient_id(A, other) != tokens.patient_id(A, "12345")


def test_a_row_is_found_with_and_without_the_issuer():
    row = set(tokens.patient_id_row(A, "12345", "Hospital B"))
    assert row == {*tokens.patient_id(A, "12345"), *tokens.patient_id(A, "12345", " hospital b")}
    assert not row & set(tokens.patient_id(A, "12345", "elsewhere"))


def test_domain_field_and_version_make_another_token():
    made = [
        tokens.patient_id(generation(1, "2"), "12345"),
        tokens.patient_id(A, "12345"), tokens.patient_id(B, "12345"), tokens.accession(A, "12345"),
        tokens.person(A, "12345", BORN),
    ]  # fmt: skip
    assert len({token for group in made for token in group}) == 5


SAME = [
    ("DOE^JOHN", "doe^john"), ("DOE^JOHN", "DOE ^JOHN^"), ("DOE^JOHN", "DOE^JOHN^^DR^JR"),
    ("O'Neil^Ann", "ONEIL^ANN"), ("Smith-Jones^A", "smith jones^a"), ("Müller^Jörg", "MULLER^JORG"),
    ("ﾔﾏﾀﾞ^ﾀﾛｳ", "やまだ^たろう"),
    ("ヤマダ^タロウ", "やまだ^たろう"), ("髙橋^渡邊", "高橋^渡辺"),
    ("葛\U000e0100城^A", "葛城^A"), ("홍^길동", "홍^길동"),
]  # fmt: skip
OTHER = [
    ("DOE^JOHN", "JOHN^DOE"), ("DOE^JOHN", "DOE^JOHN^PAUL"), ("が^一", "か^一"), ("DOE^JOHN", "DOE^JON"),
    ("ก่อ^ก", "กี^ก"), ("कि^क", "कु^क"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_name_is_found_however_it_is_written(one, other):
    assert tokens.person(A, one, BORN) == tokens.person(A, other, BORN)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_name_is_another_person(one, other):
    assert not set(tokens.person(A, one, BORN)) & set(tokens.person(A, other, BORN))


def test_there_is_never_a_token_of_a_name_or_a_birth_date_alone():
    assert tokens.person(A, "DOE^JOHN", None) == []
    assert tokens.person(A, "", BORN) == []
    assert tokens.person(A, "^^", BORN) == []
    assert tokens.person(A, "DOE^JOHN", BORN) != tokens.person(A, "DOE^JOHN", date(1970, 5, 2))


def test_the_japanese_samples_of_the_standard_find_each_other():
    """PS3.5 annex H: one writes romaji, the other half-width katakana; kanji and kana agree."""
    samples = {path.name: path for path in bundled() if path.name in ("chrH31.dcm", "chrH32.dcm")}
    names = [str(pydicom.dcmread(samples[name]).PatientName) for name in sorted(samples)]
    one, other = (tokens.person(A, name, BORN) for name in names)
    assert len(one) == 3
    assert len(other) == 2  # its first writing is the kana of its third
    assert set(other) == set(one[1:])


def test_a_source_digest_says_nothing_without_the_domain():
    digest = tokens.keyed_digest(DOMAIN, bytes(32))
    assert len(digest) == 64
    assert digest != tokens.keyed_digest(replace(DOMAIN, generations=(B,)), bytes(32))
    assert digest != bytes(32).hex()


def test_after_a_rotation_a_source_has_its_old_digest():
    """Otherwise every image would be sent again."""
    rotated = replace(DOMAIN, generations=(A, generation(3, "2")))
    assert tokens.keyed_digest(rotated, bytes(32)) == tokens.keyed_digest(DOMAIN, bytes(32))
