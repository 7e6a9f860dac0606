"""Questions with the line down: a desk that answers from the rows this terminal keeps.

It takes the same requests as a store (`facility_sync.ask` makes them) and runs the same query
(`schemas.query`) on the same rows, so it gives the answers the store would have given when the rows were
brought. The rows are read in place. A question about objects takes each as a part of its own; all others take
the parts that the files hold.

Guarantees: nothing is written, and nothing but these files is read: DuckDB may open no other file, and its
settings are locked, once they are open. A statement of SQL is one SELECT. A damaged file is removed and said
to be so.

No password is checked: whoever can read the terminal's home can read its rows. Leaves to others: bringing the
rows (`facility_sync.bring_rows`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

import duckdb

from facility_sync import kept_rows
from facility_sync.home import Home
from facility_sync.kept_rows import BROKEN, CONFIG, KeptRows
from facility_sync.kept_state import Age, State
from schemas import answer_table, columns, names, query, views
from schemas.errors import AccessDenied, FormatError, SettingsError
from schemas.messages import Message, SearchAnswer, SearchRequest, SqlAnswer, SqlRequest
from schemas.names import FacilityName

_M = TypeVar("_M", bound=Message)

_SHARED, _OWN, _TOTALS = columns.shared(), columns.own(), columns.totals()
_STUDY = "facility || '/' || coalesce(study_uid, '')"


class OfflineDesk:
    """Answers requests from the rows kept in a home.

    Args:
        home: the terminal's.

    Raises:
        SettingsError: no rows were brought yet.
    """

    def __init__(self, home: Home) -> None:
        self._kept = KeptRows(home.offline)
        self._state: State = self._kept.state()
        if not self._state.as_of:
            raise SettingsError(
                "this terminal keeps no rows yet",
                hint="Run `fsync sync` or `fsync offline` while the line is up (with `offline = true`).",
            )

    def age(self, now: datetime) -> Age:
        """How old answers are."""
        return self._state.age(now)

    def converse(
        self, request: Message, identifier: names.RequestId, kind: type[_M], *, seconds: float
    ) -> tuple[_M, bytes | None]:
        """Answer a search or a statement as the store does; takes what `Desk.converse` takes.

        Raises:
            AccessDenied: the statement cannot be run.
            Damaged: rows kept here are damaged.
        """
        del identifier, seconds  # nothing is on a road
        with self._kept.held(changing=False), self._open() as opened:
            if isinstance(request, SearchRequest):
                answer: Message
                answer, table = self._search(*opened, request)
            elif isinstance(request, SqlRequest):
                answer, table = self._sql(*opened, request)
            else:
                raise FormatError("this needs the store")
        if not isinstance(answer, kind):
            raise FormatError("this is answered with another kind of message")
        return answer, table

    @contextmanager
    def _open(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[FacilityName]]]:
        """A database in memory beside which the files are open, and nothing else can be."""
        owners = self._kept.facilities()
        with duckdb.connect(":memory:", config=CONFIG) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for number, owner in enumerate(owners):
                path = str(self._kept.path(owner)).replace("'", "''")
                try:
                    connection.execute(f"ATTACH '{path}' AS f{number} (READ_ONLY)")
                    kept_rows.check(connection, f"f{number}")
                except duckdb.Error as error:
                    raise self._kept.broken([owner]) from error
            if not owners:  # a store without a batch
                connection.execute("ATTACH ':memory:' AS f0")
                connection.execute("USE f0")
                kept_rows.make(connection)
                connection.execute("USE memory")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection, owners

    def _search(
        self, connection: duckdb.DuckDBPyConnection, owners: Sequence[FacilityName], request: SearchRequest
    ) -> tuple[SearchAnswer, bytes | None]:
        built = query.build(request, owners, look_ups=False)
        parameters = dict(built.parameters)
        table: bytes | None = None
        returned = 0
        try:
            for view in _views(owners, each=_is_about_objects(request)):
                connection.execute(view)
            matches, instances, size = connection.execute(built.counts, parameters).fetchall()[0]
            if not request.count_only:
                rows = connection.sql(built.rows, params=parameters).to_arrow_table().cast(built.schema)
                table, returned = answer_table.to_parquet(rows), rows.num_rows
        except BROKEN as error:
            raise self._kept.broken(owners) from error
        answer = SearchAnswer(
            store=names.facility_name(self._state.store),
            request=request.id,
            matches=matches,
            instances=instances,
            bytes=size,
            returned=returned,
            table="" if table is None else hashlib.sha256(table).hexdigest(),
            answered=self._state.as_of,
        )
        return answer, table

    def _sql(
        self, connection: duckdb.DuckDBPyConnection, owners: Sequence[FacilityName], request: SqlRequest
    ) -> tuple[SqlAnswer, bytes]:
        for view in views.VIEWS:
            parts = (f"SELECT * FROM f{number}.{view}" for number in range(max(1, len(owners))))
            connection.execute(f"CREATE VIEW {view} AS {' UNION ALL '.join(parts)}")
        try:
            statements = connection.extract_statements(request.sql)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise AccessDenied("this is not one SELECT")
            rows = connection.sql(request.sql)
            if rows is None:
                raise AccessDenied("this is not one SELECT")
            answer_table.distinct(rows.columns)
            found = rows.to_arrow_table()
            table = answer_table.to_parquet(found)
        except BROKEN as error:
            raise self._kept.broken(owners) from error
        except duckdb.Error as error:  # our own rows, and our own words: they may be shown
            raise AccessDenied(f"this SQL cannot run here: {str(error).splitlines()[0]}") from error
        except FormatError as error:
            raise AccessDenied(str(error)) from error
        answer = SqlAnswer(
            store=names.facility_name(self._state.store),
            request=request.id,
            returned=found.num_rows,
            table=hashlib.sha256(table).hexdigest(),
            answered=self._state.as_of,
        )
        return answer, table


def _is_about_objects(request: SearchRequest) -> bool:
    found = (columns.by_name.get(name) for name in request.conditions)
    return request.level == "instance" or any(column is not None and column.distinct for column in found)


def _views(owners: Sequence[FacilityName], *, each: bool) -> list[str]:
    """The tables of `schemas.query` over these files; of parts, or of `each` object as a part of its own."""
    counted, table = "n_instances, first_object", "parts"
    if each:
        counted, table = "(NOT duplicate)::BIGINT AS n_instances, object_sha256 AS first_object", "rows"
    own = ", ".join(f'"{column.name}"' for column in _OWN)
    shared = ", ".join(f'"{column.name}"' for column in (*_SHARED, *_TOTALS))
    made: dict[str, list[str]] = {"objects": [], "parts": [], "conflicts": []}
    for number, owner in enumerate(owners or ("",)):
        at = f"{number << 40} + rowid"
        made["objects"].append(f"SELECT {at} AS part, {own}, duplicate FROM f{number}.rows")
        made["parts"].append(
            f"SELECT {at} AS part, {_STUDY} AS study, {_STUDY} || '/' || coalesce(series_uid, '') AS series, "
            f"{shared}, {counted} FROM f{number}.{table}"
        )
        made["conflicts"].append(f"SELECT '{owner}' AS facility, sop_instance_uid FROM f{number}.conflicts")
    return [f"CREATE VIEW {name} AS {' UNION ALL '.join(parts)}" for name, parts in made.items()]
