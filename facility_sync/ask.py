"""A person's question to the store, and the answer as rows a person can read.

Guarantees: what identifies a patient becomes tokens here, before anything is sent; an answer's table is
the one its signature names; names are shown where a domain of this terminal opens them, and marked
where none does.

Leaves to others: the connection (`facility_sync.exchange`), printing, fetching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facility_sync import dates, exchange
from facility_sync.identity import sealed, tokens
from facility_sync.identity.domains import Generation, Keyring
from schemas import messages, names
from schemas.errors import FormatError, SettingsError

PAGE = 20_000
"""Most rows asked for at once."""
PATIENCE = 120.0
"""Seconds to wait for an answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Conditions as a person gives them; all given ones must hold."""

    patient_id: str = ""
    issuer: str = ""
    patient_name: str = ""
    birth_date: str = ""
    accession: str = ""
    date: str = ""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def conditions(question: Question, keyring: Keyring, today: date) -> dict[str, tuple[str, ...]]:
    """The conditions of a request: column to accepted values.

    Raises:
        SettingsError: a name without a birth date or the reverse, an issuer without an ID.
        FormatError: a date nobody can read.
    """
    found: dict[str, tuple[str, ...]] = {
        column: tuple(values) for column, values in question.columns.items() if values
    }
    if bool(question.patient_name) != bool(question.birth_date):
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
    if question.patient_name:
        born = dates.one_day(question.birth_date, today=today)
        found["person_tokens"] = _tokens(keyring, lambda by: tokens.person(by, question.patient_name, born))
    if question.accession:
        found["accession_tokens"] = _tokens(keyring, lambda by: tokens.accession(by, question.accession))
    if question.date:
        first, last = dates.parse(question.date, today=today)
        found["study_date"] = (f"{first or ''}..{last or ''}",)
    return found


def _tokens(keyring: Keyring, make: Callable[[Generation], list[str]]) -> tuple[str, ...]:
    """Of every generation of every domain: old rows have the tokens of their time."""
    made = [token for generation in keyring.generations for token in make(generation)]
    return tuple(dict.fromkeys(made))


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
    desk: exchange.Desk,
    facility: str,
    account: Account,
    *,
    level: str,
    wanted: Mapping[str, Sequence[str]],
    limit: int,
    offset: int = 0,
    count_only: bool = False,
) -> Answer:
    """Ask and wait; raises `AccessDenied` when the store refuses."""
    identifier, created = exchange.new_request()
    try:
        user = names.user_name(account.user)
    except FormatError as error:
        raise SettingsError(str(error), hint="Check --user.") from error
    request = messages.SearchRequest(
        id=identifier,
        facility=names.facility_name(facility),
        user=user,
        password=account.password,
        level=level,
        conditions={column: tuple(values) for column, values in wanted.items()},
        count_only=count_only,
        limit=limit,
        offset=offset,
        created=created,
    )
    answer, data = desk.converse(request, identifier, messages.SearchAnswer, seconds=PATIENCE)
    table = None
    if data is not None:
        try:
            # One thread: a pool that still winds down while the process ends would abort it.
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise FormatError("the store's answer holds no readable table") from error
    rows = [] if table is None else table.to_pylist()
    return Answer(answer.matches, answer.instances, answer.bytes, rows, table)


def all_rows(
    desk: exchange.Desk, facility: str, account: Account, wanted: Mapping[str, Sequence[str]]
) -> Iterator[Answer]:
    """Every matching row at instance level, page by page."""
    offset = 0
    while True:
        answer = search(desk, facility, account, level="instance", wanted=wanted, limit=PAGE, offset=offset)
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
