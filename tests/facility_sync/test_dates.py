"""Dates as people write them."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.dates import one_day, parse
from schemas.errors import FormatError

TODAY = date(2026, 11, 24)


def d(text):
    return date.fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2024-03-05", "2024-03-05", "2024-03-05"),
        ("20240305", "2024-03-05", "2024-03-05"),
        ("2024/03/05", "2024-03-05", "2024-03-05"),
        ("2024-02", "2024-02-01", "2024-02-29"),
        ("202402*", "2024-02-01", "2024-02-29"),
        ("2024-02-*", "2024-02-01", "2024-02-29"),
        ("2024", "2024-01-01", "2024-12-31"),
        ("2024*", "2024-01-01", "2024-12-31"),
        ("2024-01-15..2024-02", "2024-01-15", "2024-02-29"),
        ("2024..2025-03", "2024-01-01", "2025-03-31"),
        (" today ", "2026-11-24", "2026-11-24"),
        ("yesterday", "2026-11-23", "2026-11-23"),
        ("30d", "2026-10-26", "2026-11-24"),
        ("1d", "2026-11-24", "2026-11-24"),
        ("30d..", "2026-10-26", None),
        ("2024-06..", "2024-06-01", None),
        ("..2024-06", None, "2024-06-30"),
    ],
)
def test_what_people_write(text, first, last):
    assert parse(text, today=TODAY) == (first and d(first), last and d(last))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        "2024-13",
        "2024-02-30",
        "24-01-01",
        "5.3.2024",
        "2024-01-01*",
        "*",
        "2025..2024",
        "x",
        "٢٠٢٤",
        "99999d9",
    ],
)
def test_what_nobody_can_read_is_refused_with_examples(text):
    with pytest.raises(FormatError) as caught:
        parse(text, today=TODAY)
    assert "2024" in caught.value.hint


def test_a_birth_date_is_one_day():
    assert one_day("1970-05-01", today=TODAY) == d("1970-05-01")
    for text in ("1970", "1970-05", "..1970-05-01"):
        with pytest.raises(FormatError):
            one_day(text, today=TODAY)


@given(st.text(max_size=30))
def test_only_our_error_comes_out(text):
    try:
        first, last = parse(text, today=TODAY)
    except FormatError:
        return
    assert first or last
