"""`patient('ID')`, `person('NAME', 'BIRTHDATE')` and `accession('NUMBER')` in SQL, turned into tokens. Pure.

    patient('12345', 'HOSPITAL A')    list_has_any(patient_id_tokens, ['…', …])
    s.person('YAMADA^TAROU', '1970-05-01')    list_has_any(s.person_tokens, ['…', …])

with the tokens of every generation of every domain. Guarantees: what comes out holds no argument of these
words and no comment; words inside texts, quoted names and comments are not taken for them. A statement that
looks as if an identity was written elsewhere in it is not let out: `SettingsError` says where. Whatever
cannot be told apart for certain (an open text, `E'…'`, `$$…$$`, a comment in a comment) is an error too: this
program and the store must not read a statement differently.

Leaves to others: whether the statement is right (the store says), sending it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import NamedTuple

from facility_sync import dates
from facility_sync.identity import tokens
from facility_sync.identity.domains import Generation, Keyring
from schemas import views
from schemas.errors import FormatError, SettingsError

WORDS = {"patient": "patient_id_tokens", "person": "person_tokens", "accession": "accession_tokens"}
"""The words, each with the column of tokens it is about."""
_TOKEN_COLUMNS = frozenset(column.name for column in views.token_columns())
_ABSENT = re.compile(
    r"(patient|pat)_?(id|ids|name|names|birth_?date|number|no)|birth_?date|date_of_birth|dob|born|"
    r"issuer(_of_patient_?id)?|accession(_?(no|number))|other_patient_?ids?|(family|given|first|last)_?name",
    re.ASCII,
)
"""Columns people expect, and the store does not have: what is compared with them would be an identity."""
_TOKEN = re.compile(r"[0-9A-Z][A-Z2-7]{26}", re.ASCII)
_PERSON = re.compile(r"[^\W\d_][^\d%^*?]*\^[^\W\d_]")
"""A text like FAMILY^GIVEN."""
_NUMBER = re.compile(r"(?=(?:.*\d){4})[\w\-/ ]+")
"""A text with at least four digits and no dot: a UID has dots."""
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ENDS = frozenset("and or not select from where group order having limit union on qualify join".split())

_LEXER = re.compile(
    r"""(?P<space>\s+)
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<word>[^\W\d]\w*)
    | (?P<number>\d[\w.]*|\.\d[\w.]*)
    | (?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)


class Piece(NamedTuple):
    """A lexical part of a statement and where it begins."""

    kind: str
    text: str
    at: int

    @property
    def value(self) -> str:
        """Of a text or a quoted name: what it says."""
        mark = self.text[0]
        return self.text[1:-1].replace(mark * 2, mark)


class Sent(NamedTuple):
    """A statement as it is sent, and how its places lead back to what was written."""

    sql: str
    places: tuple[tuple[int, int], ...]
    """Offsets where a piece begins, in what is sent and in what was written; in order."""

    def written_at(self, offset: int) -> int:
        """The offset in what was written for one in what is sent."""
        before = [place for place in self.places if place[0] <= offset]
        return before[-1][1] if before else 0


def _wrong(message: str, piece: Piece, hint: str = "") -> SettingsError:
    return SettingsError(f"{message}, at character {piece.at + 1} of the statement", hint=hint)


def pieces(sql: str) -> list[Piece]:
    """A statement as its parts; raises `SettingsError` for what could be read in two ways."""
    found: list[Piece] = []
    for match in _LEXER.finditer(sql):
        piece = Piece(str(match.lastgroup), match[0], match.start())
        before = found[-1] if found else None
        if piece.kind == "sign" and piece.text in "'\"":
            raise _wrong("a text or a name in quotes does not end", piece)
        if piece.kind == "sign" and piece.text == "$":
            raise _wrong("`$` has no place here", piece, "Write a text in single quotes.")
        if piece.kind == "comment" and piece.text[:2] == "/*" and "/*" in piece.text[2:]:
            raise _wrong("a comment lies in a comment", piece)
        if (
            piece.kind == "text"
            and before
            and before.at + len(before.text) == piece.at
            and before.kind == "word"
        ):
            raise _wrong("a letter stands before a text", piece, "Write plain texts in single quotes.")
        if piece.kind == "sign" and sql.startswith("/*", piece.at):
            raise _wrong("a comment does not end", piece)
        found.append(piece)
    return found


def translate(sql: str, keyring: Keyring, today: date, *, allow_text: bool = False) -> Sent:
    """A statement with tokens in the place of patients, as it may be sent.

    Args:
        sql: as a person wrote it.
        keyring: whose tokens.
        today: for dates like 1970-05.
        allow_text: let out texts that look like a person's name.

    Raises:
        SettingsError: one of the words is not used as it must be, or an identity seems to stand elsewhere.
        FormatError: a birth date nobody can read.
    """
    # A comment may name anybody: of it only a blank is sent.
    parts = [p._replace(kind="space", text=" ") if p.kind == "comment" else p for p in pieces(sql)]
    made: list[str] = []
    places: list[tuple[int, int]] = []
    kept: list[Piece] = []
    length = 0
    for piece, text in _replaced(parts, keyring, today, kept):
        places.append((length, piece.at))
        made.append(text)
        length += len(text)
    _look_for_identities(kept, allow_text=allow_text)
    return Sent("".join(made), tuple(places))


def _replaced(
    parts: Sequence[Piece], keyring: Keyring, today: date, kept: list[Piece]
) -> Iterator[tuple[Piece, str]]:
    """Each part with what is sent for it; what stays as it was is noted in `kept`."""
    solid = [number for number, piece in enumerate(parts) if piece.kind != "space"]
    where = {number: place for place, number in enumerate(solid)}
    number = 0
    while number < len(parts):
        piece = parts[number]
        end = _call(parts, solid, where[number]) if number in where else None
        if end is None:
            kept.append(piece)
            yield piece, piece.text
            number += 1
            continue
        words, last = end
        qualified = [p for p in words if p.kind in ("word", "quoted") and p is not words[-1]]
        prefix = "".join(f"{p.text}." for p in qualified)
        inside = [parts[i] for i in solid[where[number] + len(words) + 1 : where[last]]]
        found = _tokens(words[-1], _arguments(words[-1], inside), keyring, today)
        listed = ", ".join(f"'{token}'" for token in found)
        yield piece, f"list_has_any({prefix}{WORDS[words[-1].text.lower()]}, [{listed}]::VARCHAR[])"
        number = last + 1


def _call(parts: Sequence[Piece], solid: Sequence[int], place: int) -> tuple[list[Piece], int] | None:
    """The words before the bracket and the number of the closing bracket, if a call of ours begins here."""
    here = [parts[number] for number in solid[place : place + 4]]
    if place and parts[solid[place - 1]].text == ".":
        return None  # the table before it was looked at, and was not followed by one of our calls
    words = here[:1]
    if len(here) == 4 and here[1].text == "." and here[0].kind in ("word", "quoted"):
        words = here[:3]
    named = words[-1]
    opens = place + len(words)
    if named.kind != "word" or named.text.lower() not in WORDS:
        return None
    if opens >= len(solid) or parts[solid[opens]].text != "(":
        return None
    for at in range(opens + 1, len(solid)):
        if parts[solid[at]].text == ")":
            return words, solid[at]
    raise _wrong(f"{named.text}( is not closed", named)


def _arguments(named: Piece, inside: Sequence[Piece]) -> list[str]:
    plain = all(p.kind == "text" if number % 2 == 0 else p.text == "," for number, p in enumerate(inside))
    if not plain or not inside or len(inside) % 2 == 0:
        raise _wrong(
            f"{named.text}() takes texts in single quotes", named,
            "patient('ID'), patient('ID', 'ISSUER'), person('NAME', 'BIRTHDATE'), accession('NUMBER').",
        )  # fmt: skip
    return [piece.value for piece in inside[::2]]


def _tokens(named: Piece, given: list[str], keyring: Keyring, today: date) -> list[str]:
    word = named.text.lower()
    if len(given) not in {"patient": (1, 2), "person": (2,), "accession": (1,)}[word] or not given[0].strip():
        raise _wrong(f"{word}() has not the arguments it needs", named, "person() takes name and birth date.")
    make: Callable[[Generation], list[str]]
    if word == "patient":
        make = lambda by: tokens.patient_id(by, *given)  # noqa: E731
    elif word == "person":
        try:
            born = dates.one_day(given[1], today=today)
        except FormatError as error:
            raise _wrong("the birth date of person() is not one day", named, error.hint) from error
        make = lambda by: tokens.person(by, given[0], born)  # noqa: E731
    else:
        make = lambda by: tokens.accession(by, given[0])  # noqa: E731
    return list(dict.fromkeys(token for by in keyring.generations for token in make(by)))


def _look_for_identities(kept: Sequence[Piece], *, allow_text: bool) -> None:
    solid = [piece for piece in kept if piece.kind != "space"]
    about_tokens = any(piece.text.strip('"').lower() in _TOKEN_COLUMNS for piece in solid)
    for number, piece in enumerate(solid):
        value = piece.value if piece.kind in ("text", "quoted") else piece.text
        name = value.lower()
        after = solid[number + 1].text if number + 1 < len(solid) else ""
        if piece.kind in ("word", "quoted") and name in WORDS and after == "(":
            raise _wrong(
                f"{name}() stands where it cannot be replaced", piece, f"Write {name}(…) or TABLE.{name}(…)."
            )
        if about_tokens and piece.kind == "text" and _is_number(value) and not allow_text:
            raise _wrong(
                "a text that may be a patient's number stands in a statement about tokens", piece,
                "Use patient('ID') or accession('NUMBER'); if it is no such number, add --allow-text.",
            )  # fmt: skip
        if piece.kind in ("text", "quoted") and re.search(r"\b(patient|person|accession)\s*\(", name):
            raise _wrong("one of the words for patients stands inside quotes", piece, "Write it outside.")
        if piece.kind in ("word", "quoted") and _ABSENT.fullmatch(name):
            raise _wrong(
                "the store has no such column, and what is compared with it may be an identity", piece,
                "Use patient('ID'), person('NAME', 'BIRTHDATE') or accession('NUMBER').",
            )  # fmt: skip
        if piece.kind in ("text", "quoted") and _PERSON.search(value) and not allow_text:
            raise _wrong(
                "a text looks like the name of a person", piece,
                "Use person('NAME', 'BIRTHDATE'); if it is no name, add --allow-text.",
            )  # fmt: skip
        if piece.kind in ("word", "quoted") and name in _TOKEN_COLUMNS:
            for text in (*_beside(solid, number, 1), *_beside(solid, number, -1)):
                if not _TOKEN.fullmatch(text.value):
                    raise _wrong(
                        "a text beside a column of tokens is no token", text,
                        "Use patient('ID'), person('NAME', 'BIRTHDATE') or accession('NUMBER').",
                    )  # fmt: skip


def _is_number(value: str) -> bool:
    return bool(_NUMBER.fullmatch(value)) and not _TOKEN.fullmatch(value) and not _DAY.fullmatch(value)


def _beside(solid: Sequence[Piece], number: int, step: int) -> Iterator[Piece]:
    """The texts on one side that belong to the same expression."""
    depth = 0
    opening, closing = ("([", ")]") if step > 0 else (")]", "([")
    at = number + step
    while 0 <= at < len(solid):
        piece = solid[at]
        if piece.text in opening:
            depth += 1
        elif piece.text in closing:
            depth -= 1
        if depth < 0 and piece.text == ",":
            return
        if depth < -1 or (depth <= 0 and piece.kind == "word" and piece.text.lower() in _ENDS - {"not"}):
            return
        if piece.kind == "text":
            yield piece
        at += step
