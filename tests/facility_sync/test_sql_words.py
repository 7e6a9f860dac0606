"""Patients in SQL become tokens at the terminal; nothing identifying leaves it."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.identity import tokens
from facility_sync.identity.domains import Keyring
from facility_sync.identity.sql_words import translate
from schemas.errors import SettingsError
from tests.kit.domains import domain

TODAY = date(2026, 11, 24)
KEYRING = Keyring((domain(generations=2), domain("ring", 2, kind="consortium")))


def listed(column: str, *found: str) -> str:
    return f"list_has_any({column}, [{', '.join(repr(token) for token in found)}]::VARCHAR[])"


def patient(*given_: str) -> list[str]:
    return [token for by in KEYRING.generations for token in tokens.patient_id(by, *given_)]


def sent(sql: str, **more: bool) -> str:
    return translate(sql, KEYRING, TODAY, **more).sql


def test_each_word_becomes_the_tokens_of_every_generation_of_every_domain() -> None:
    assert len(patient("12345")) == 3
    assert sent("SELECT 1 WHERE patient('12345')") == "SELECT 1 WHERE " + listed(
        "patient_id_tokens", *patient("12345")
    )
    assert sent("patient ( '12345' , 'A' )") == listed("patient_id_tokens", *patient("12345", "A"))
    born = date(1970, 5, 1)
    people = [t for by in KEYRING.generations for t in tokens.person(by, "YAMADA^TAROU=山田^太郎", born)]
    assert sent("PERSON('YAMADA^TAROU=山田^太郎', '1970-05-01')") == listed("person_tokens", *people)
    numbers = [t for by in KEYRING.generations for t in tokens.accession(by, "A-7")]
    assert sent("not s.accession('A-7')") == "not " + listed("s.accession_tokens", *numbers)
    assert sent("\"s\" . patient('O''Neil')") == listed('"s".patient_id_tokens', *patient("O'Neil"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'it''s', \"a\"\"b\", 1.5e3, menu[1:2] FROM studies s WHERE s.menu LIKE '%thorax%'",
        "SELECT patient FROM t", "SELECT person.x FROM person", "SELECT study_uid FROM studies",
        "SELECT count(DISTINCT patient_id_tokens), max(menu) FROM studies WHERE modality = 'CT'",
        "SELECT list_contains(patient_id_tokens, '1ABCDEFGHIJKLMNOPQRSTUVWXY2') FROM studies",
        "SELECT study_uid FROM studies WHERE study_uid = '1.2.840.10008.5' AND len(patient_id_tokens) > 1",
    ],
)  # fmt: skip
def test_other_sql_is_sent_as_it_is(sql: str) -> None:
    assert sent(sql) == sql


def test_comments_are_not_sent() -> None:
    assert sent("SELECT 1 -- YAMADA^TAROU 12345\n/* patient('1') */ , 2") == "SELECT 1  \n  , 2"


@pytest.mark.parametrize(
    "sql",
    [
        "patient(12345)", "patient()", "patient('1', '2', '3')", "patient('1' || '2')", "patient('1'", "patient('')",
        "patient(patient_number)", "patient('1',)", "patient('1' '2')", "person('YAMADA^TAROU')",
        "person('YAMADA^TAROU', '1970')", "person('YAMADA^TAROU', 'x')", "accession('1', '2')",
        "a.b.patient('12345')", "\"patient\"('12345')", "SELECT 'patient(''12345'')'", "SELECT \"patient('12345')\"",
        "WHERE patient_id = '12345'", "WHERE s.PatientID = '12345'", "WHERE \"patient_name\" = 'x'",
        "WHERE birth_date = '1970-05-01'", "WHERE issuer = 'x'", "WHERE accession_number = '1'",
        "WHERE menu = 'YAMADA^TAROU'", "SELECT 1 AS \"YAMADA^TAROU\"", "WHERE menu = '山田^太郎'",
        "WHERE list_contains(patient_id_tokens, '12345')", "WHERE 'yamada' = ANY(person_tokens)",
        "WHERE accession_tokens[1] = 'A7'", "WHERE '12345' IN (SELECT unnest(patient_id_tokens) FROM studies)",
        "WHERE list_has_any(s.patient_id_tokens, ['1ABCDEFGHIJKLMNOPQRSTUVWXY2', '12345'])",
        "SELECT 'open", "SELECT \"open", "SELECT E'a\\'b'", "SELECT $$patient$$", "SELECT $1",
        "/* a /* b */ c */ SELECT 1", "SELECT 1 /* open", "patient(E'1')",
    ],
)  # fmt: skip
def test_what_may_be_an_identity_stays_here(sql: str) -> None:
    with pytest.raises(SettingsError) as caught:
        sent(sql)
    for word in ("12345", "YAMADA", "山田"):
        assert word not in str(caught.value)


def test_a_menu_that_looks_like_a_name_is_sent_when_a_person_says_so() -> None:
    assert sent("WHERE menu = 'Head^Routine'", allow_text=True) == "WHERE menu = 'Head^Routine'"


_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.text(max_size=40))
def test_any_text_is_sent_or_an_error(text: str) -> None:
    try:
        sent(text)
    except SettingsError:
        pass


@given(_TEXTS.filter(lambda text: text.strip() and tokens.normal_id(text) != ""), _TEXTS, _TEXTS)
def test_no_argument_is_in_what_is_sent(identifier: str, before: str, after: str) -> None:
    marked = f"ÄÖ{identifier}ÜÄ"
    quoted, left, right = (text.replace("'", "''") for text in (marked, before, after))
    try:
        found = sent(f"SELECT '{left}' WHERE patient('{quoted}') AND menu = '{right}'")
    except SettingsError:
        return
    assert "ÄÖ" not in found
    assert patient(marked)[0] in found


def test_places_lead_back() -> None:
    sql = "SELECT x FROM studies WHERE patient('12345') AND nix = 1"
    made = translate(sql, KEYRING, TODAY)
    assert made.written_at(made.sql.index("nix")) == sql.index("nix")
    assert made.written_at(7) == 7
