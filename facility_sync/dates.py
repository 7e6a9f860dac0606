"""Dates as people write them, to the first and last day they mean: pure.

    2024-03-05  20240305  2024/03/05   a day
    2024-03  202403  2024-03-*         a month
    2024  2024*                        a year
    today  yesterday  30d              relative; 30d means thirty days, today the last of them
    D1..D2  D1..  ..D2                 from the first day of D1 to the last day of D2

Leaves to others: the clock (`today` is an argument).
"""

from __future__ import annotations

import calendar
import re
from datetime import date, timedelta

from schemas.errors import FormatError

_HINT = "Write 2024-03-05, 2024-03, 2024, 202403*, 2024-01-01..2024-03-31, 2024-06.., today or 30d."
_DATE = re.compile(r"(?P<year>\d{4})(?:[-/]?(?P<month>\d{2})(?:[-/]?(?P<day>\d{2}))?)?", re.ASCII)
_DAYS = re.compile(r"(\d{1,5})d", re.ASCII)


def parse(text: str, *, today: date) -> tuple[date | None, date | None]:
    """First and last day; None for an open end.

    Raises:
        FormatError: nobody can tell which day is meant.
    """
    first: date | None
    last: date | None
    first_text, dots, last_text = text.strip().partition("..")
    if not dots:
        first, last = _span(first_text, today)
    else:
        first = _span(first_text, today)[0] if first_text.strip() else None
        last = _span(last_text, today)[1] if last_text.strip() else None
        if first is None and last is None:
            raise _wrong("a range needs at least one end")
    if first is not None and last is not None and first > last:
        raise _wrong("the range ends before it begins")
    return first, last


def one_day(text: str, *, today: date) -> date:
    """A single day, such as a birth date; raises `FormatError`."""
    first, last = parse(text, today=today)
    if first is None or first != last:
        raise _wrong("this must be one day")
    return first


def _span(text: str, today: date) -> tuple[date, date]:
    word = text.strip().lower()
    if word == "today":
        return today, today
    if word == "yesterday":
        return today - timedelta(1), today - timedelta(1)
    if days := _DAYS.fullmatch(word):
        return _days_before(today, int(days[1]) - 1), today
    match = _DATE.fullmatch(word.rstrip("*").rstrip("-/"))
    if not match or (word.endswith("*") and match["day"]):
        raise _wrong("this is not a date")
    year, month, day = (int(match[part] or 0) for part in ("year", "month", "day"))
    try:
        first = date(year, month or 1, day or 1)
        last_month = month or 12
        last = date(year, last_month, day or calendar.monthrange(year, last_month)[1])
    except ValueError as error:
        raise _wrong("there is no such day") from error
    return first, last


def since(text: str, *, today: date) -> date:
    """The first day of what a date begins: of `30d`, thirty days with today; raises `FormatError`."""
    first, _ = parse(text, today=today)
    if first is None or ".." in text:
        raise _wrong("this must name a first day")
    return first


def _days_before(today: date, count: int) -> date:
    if count < 0:
        raise _wrong("a number of days is at least 1")
    try:
        return today - timedelta(count)
    except OverflowError as error:
        raise _wrong("there is no such day") from error


def _wrong(message: str) -> FormatError:
    return FormatError(message, hint=_HINT)
