"""A person's question to the store, and the answer as rows a person can read.

Guarantees: what identifies a patient becomes tokens here, before anything is sent; an answer's table is
the one its signature names; names are shown where a domain of this terminal opens them, and marked
where none does.

Leaves to others: the connection (`facility_sync.exchange`), printing, fetching.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from facility_sync import dates, exchange
from facility_sync.identity import sealed, sql_words, tokens, wild_names
from facility_sync.identity.domains import Generation, Keyring
from schemas import messages, names
from schemas.errors import AccessDenied, FormatError, SettingsError

PAGE = 20_000
"""Most rows asked for at once."""
PATIENCE = 120.0
"""Seconds to wait for an answer."""
SQL_PATIENCE = 600.0
"""The same for SQL: a facility's first statement waits until the store has made its rows."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Conditions as a person gives them; all given ones must hold."""

    patient_id: str = ""
    issuer: str = ""
    patient_name: str = ""
    birth_date: str = ""
    accession: str = ""
    date: str = ""
    since: str = ""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def conditions(question: Question, keyring: Keyring, today: date) -> dict[str, tuple[str, ...]]:
    """The conditions of a request: column to accepted values.

    Raises:
        SettingsError: a name without a birth date or the reverse, an issuer without an ID, two dates.
        FormatError: a date nobody can read.
    """
    if question.date and question.since:
        raise SettingsError("--since is a date too", hint="Give one of --date and --since.")
    found: dict[str, tuple[str, ...]] = {
        column: tuple(values) for column, values in question.columns.items() if values
    }
    wild = wild_names.is_wild(question.patient_name)
    if not wild and bool(question.patient_name) != bool(question.birth_date):
        raise SettingsError(
            "a name is searched together with the birth date, and never alone",
            hint="Give both --patient-name and --birth-date: a token of a name alone could be guessed.",
        )
    if question.issuer and not question.patient_id:
        raise SettingsError(
            "--issuer narrows --patient-id and says nothing alone", hint="Give --patient-id too."
        )
    if question.patient_id:
        found["patient_id_tokens"] = _tokens(
            keyring, lambda by: tokens.patient_id(by, question.patient_id, question.issuer)
        )
    if question.patient_name and not wild:  # a pattern is resolved with the store's rows: `resolved`
        born = dates.one_day(question.birth_date, today=today)
        found["person_tokens"] = _tokens(keyring, lambda by: tokens.person(by, question.patient_name, born))
    if question.accession:
        found["accession_tokens"] = _tokens(keyring, lambda by: tokens.accession(by, question.accession))
    if question.since:
        found["study_date"] = (f"{dates.since(question.since, today=today)}..",)
    if question.date:
        first, last = dates.parse(question.date, today=today)
        found["study_date"] = (f"{first or ''}..{last or ''}",)
    return found


def _tokens(keyring: Keyring, make: Callable[[Generation], list[str]]) -> tuple[str, ...]:
    """Of every generation of every domain: old rows have the tokens of their time."""
    made = [token for generation in keyring.generations for token in make(generation)]
    return tuple(dict.fromkeys(made))


_M = TypeVar("_M", bound=messages.Message)


class Asked(Protocol):
    """Whoever answers requests: a store (`exchange.Desk`), or the rows kept here (`offline.OfflineDesk`)."""

    def converse(
        self, request: messages.Message, identifier: names.RequestId, kind: type[_M], *, seconds: float
    ) -> tuple[_M, bytes | None]:
        """Send a request and return its verified answer and the table beside it."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who asks."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """How much matches, and the rows returned."""

    matches: int
    instances: int
    bytes: int
    rows: list[dict[str, Any]]
    table: pa.Table | None


def search(
    desk: Asked,
    facility: str,
    account: Account,
    *,
    level: str,
    wanted: Mapping[str, Sequence[str]],
    limit: int,
    offset: int = 0,
    order: Sequence[str] = (),
    count_only: bool = False,
) -> Answer:
    """Ask and wait; raises `AccessDenied` when the store refuses."""
    identifier, created = exchange.new_request()
    request = messages.SearchRequest(
        id=identifier,
        facility=names.facility_name(facility),
        user=_user(account),
        password=account.password,
        level=level,
        conditions={column: tuple(values) for column, values in wanted.items()},
        count_only=count_only,
        limit=limit,
        offset=offset,
        order=tuple(order),
        created=created,
    )
    answer, data = desk.converse(request, identifier, messages.SearchAnswer, seconds=PATIENCE)
    table = None if data is None else _table(data)
    rows = [] if table is None else table.to_pylist()
    return Answer(answer.matches, answer.instances, answer.bytes, rows, table)


def resolved(
    desk: Asked, facility: str, account: Account, question: Question, keyring: Keyring, today: date
) -> dict[str, tuple[str, ...]]:
    """The conditions of a question; a pattern in the name becomes the patients it means, here."""
    found = conditions(question, keyring, today)
    if not wild_names.is_wild(question.patient_name):
        return found
    born = dates.one_day(question.birth_date, today=today) if question.birth_date else None
    pages = all_rows(desk, facility, account, found, level="study")
    rows = (row for answer in pages for row in answer.rows)
    reader = Reader(keyring)
    return found | wild_names.resolve(question.patient_name, born, rows, reader.identity, keyring)


def _user(account: Account) -> names.UserName:
    try:
        return names.user_name(account.user)
    except FormatError as error:
        raise SettingsError(str(error), hint="Check --user.") from error


def _table(data: bytes) -> pa.Table:
    try:
        # One thread: a pool that still winds down while the process ends would abort it.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise FormatError("the store's answer holds no readable table") from error


def sql(desk: Asked, facility: str, account: Account, statement: sql_words.Sent, written: str) -> pa.Table:
    """Run a statement at the store; the table of its rows, with the types SQL gave them.

    Args:
        desk: the session.
        facility: who asks.
        account: the person.
        statement: from `sql_words.translate`; nothing else may be sent.
        written: what the person wrote: a refusal shows the place in it.

    Raises:
        AccessDenied: the store refuses; the hint shows the part.
    """
    identifier, created = exchange.new_request()
    if len(statement.sql) > messages.MAX_SQL:
        raise SettingsError(f"a statement has at most {messages.MAX_SQL} characters, tokens included")
    request = messages.SqlRequest(
        id=identifier,
        facility=names.facility_name(facility),
        user=_user(account),
        password=account.password,
        sql=statement.sql,
        created=created,
    )
    try:
        _, data = desk.converse(request, identifier, messages.SqlAnswer, seconds=SQL_PATIENCE)
    except AccessDenied as error:
        place = re.search(r"at character (\d{1,5})$", str(error))
        if place is None:
            raise
        at = statement.written_at(int(place[1]) - 1)
        raise AccessDenied(
            str(error)[: place.start()].rstrip(", "), hint=f"Here: {_word(written, at)}"
        ) from error
    if data is None:
        raise FormatError("the store's answer to SQL holds no table")
    return _table(data)


def _word(text: str, at: int) -> str:
    """The word at a place, or the sign: enough to find it, and no text in quotes."""
    found = re.compile(r"\w{1,40}|[^\w]").match(text, at)
    return found[0] if found else "the end"


def all_rows(
    desk: Asked,
    facility: str,
    account: Account,
    wanted: Mapping[str, Sequence[str]],
    level: str = "instance",
) -> Iterator[Answer]:
    """Every matching row, page by page."""
    offset = 0
    while True:
        answer = search(desk, facility, account, level=level, wanted=wanted, limit=PAGE, offset=offset)
        yield answer
        offset += len(answer.rows)
        if not answer.rows or offset >= answer.matches:
            return


_SHOWN = ("patient_name", "patient_id", "birth_date")
UNREADABLE = "(sealed: no key here)"
"""Shown in place of an identity no domain of this terminal opens."""


class Reader:
    """Opens the sealed identities of rows; equal seals are opened once."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._opened: dict[bytes, dict[str, Any] | None] = {}

    def identity(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The identity of a row, or None if no domain here opens it."""
        seal = row.get("sealed_identity")
        if not seal:
            return None
        if seal not in self._opened:
            self._opened[seal] = sealed.open_identity(seal, self._keyring)
        return self._opened[seal]

    def readable(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row for people: the identity opened, seals and tokens left out."""
        identity = self.identity(row)
        shown: dict[str, Any] = {key: UNREADABLE if identity is None else identity.get(key) for key in _SHOWN}
        hidden = {"sealed_identity", "patient_id_tokens", "person_tokens", "accession_tokens"}
        return shown | {key: value for key, value in row.items() if key not in hidden}
