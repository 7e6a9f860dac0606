"""Processes that each run one statement from outside, and end.

The first, started by `central_store.sql`, has this module loaded and nothing else: it waits, and makes a copy
of itself (fork(2)) for each statement, which takes milliseconds. It is handed two pipes:

    job       JSON: the statement, the files that hold the permitted rows, limits
    outcome   one line of JSON: {"rows": n} or {"reason", "message"}; then the rows as Parquet

Order in the copy: limits; the statement is parsed and checked (`central_store.sql_rules`) before any row
is within reach; the files of permitted rows are opened read-only; then everything is locked; then it runs.

Guarantees, one layer each, so that a hole in one is no leak:
    * the database holds the permitted rows and nothing else;
    * only what the allow-list knows is run; DuckDB may reach no file, extension or Python variable, and its
      settings are locked;
    * the process can open no file, socket or other process from then on (RLIMIT_NOFILE 0), nor make a file
      longer (RLIMIT_FSIZE 0); its environment is empty; it never had a key;
    * memory (RLIMIT_AS), processor time (RLIMIT_CPU) and the size of the result are bounded; the copy
      dies with the first, which is ended from outside when the time is over;
    * a refusal quotes no value and no word of the statement.

Leaves to others: time by the clock, signing and sealing (`central_store.sql`).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from central_store import sql_rules
from central_store.refused import Refused
from schemas import answer_table
from schemas.errors import FormatError
from schemas.messages import MAX_SQL
from schemas.views import VIEWS

_PR_SET_PDEATHSIG = 1
_MARGIN = 256 << 20
"""Address space beside what DuckDB was allowed: Arrow, the result, stacks."""
_BLOCK = 2048
_FUNCTIONS = "SELECT DISTINCT lower(function_name) FROM duckdb_functions()"
_NAMES = (
    "SELECT lower(table_name) FROM duckdb_tables() UNION SELECT lower(view_name) FROM duckdb_views() "
    f"UNION {_FUNCTIONS}"
)

_FAILED: tuple[tuple[type[duckdb.Error], str, str], ...] = (
    (duckdb.OutOfMemoryException, "too-large", "the statement needs more memory than this store allows"),
    (duckdb.BinderException, "sql-refused", "a column or function does not fit here"),
    (duckdb.CatalogException, "sql-refused", "there is no table, column or function of this name"),
    (duckdb.ParserException, "sql-refused", "this is not SQL"),
    (duckdb.SyntaxException, "sql-refused", "this is not SQL"),
    (duckdb.ConversionException, "sql-refused", "a value is none of the type it is converted to"),
    (duckdb.OutOfRangeException, "sql-refused", "a value is out of the range of its type"),
    (duckdb.InvalidInputException, "sql-refused", "an argument is not one its function takes"),
)
_SAID = {
    "COLUMN_NOT_FOUND": "there is no such column here: `fsync query --help` and the docs list them",
    "MISSING_ENTRY": "there is no function or table of this name",
    "NO_MATCHING_FUNCTION": "the function takes other arguments",
}


def main() -> None:
    """Make a copy for each pair of pipes that comes over standard input, until that closes."""
    os.environ.clear()
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    with socket.socket(fileno=0) as calls:
        calls.send(b".")  # ready
        while True:
            said, pipes, _, _ = socket.recv_fds(calls, 1, 2)
            if not said:
                return
            if os.fork() == 0:
                _die_with_parent()
                calls.close()
                try:
                    _copy(*pipes)
                finally:
                    os._exit(0)  # threads of DuckDB are not waited for
            for pipe in pipes:
                os.close(pipe)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _copy(job_pipe: int, outcome_pipe: int) -> None:
    with os.fdopen(job_pipe, "rb") as file:
        job: dict[str, Any] = json.loads(file.read())
    try:
        rows = _run(job)
        head, body = {"rows": rows[0]}, rows[1]
    except Refused as error:
        head, body = {"reason": error.reason, "message": str(error)}, b""  # type: ignore[dict-item]
    except (MemoryError, pa.ArrowMemoryError):
        head, body = {"reason": "too-large", "message": _FAILED[0][2]}, b""  # type: ignore[dict-item]
    with os.fdopen(outcome_pipe, "wb") as out:
        out.write(json.dumps(head).encode() + b"\n" + body)


def _run(job: dict[str, Any]) -> tuple[int, bytes]:
    sql: str = job["sql"]
    with duckdb.connect(":memory:", config=_config(job)) as connection:
        _warm(connection)
        _limit(job)
        try:
            _check(connection, sql)
            _open(connection, job["files"])
            _lock(connection)
            return _result(connection.sql(sql).to_arrow_reader(_BLOCK), job["rows"], job["bytes"])
        except (duckdb.BinderException, duckdb.CatalogException) as error:
            raise _translated(_with_place(connection, sql, error), sql) from None
        except duckdb.Error as error:
            raise _translated(error, sql) from None


def _config(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "memory_limit": f"{job['memory_mb']}MB",
        "threads": 1,
        "temp_directory": "",
        "max_temp_directory_size": "0KiB",
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
        "errors_as_json": True,
    }


def _warm(connection: duckdb.DuckDBPyConnection) -> None:
    """What loads a module or a time zone when it is first used is used while files can be opened."""
    connection.execute("SET TimeZone = 'UTC'")
    sql = "SELECT now() AS t, strftime(now(), '%Y') AS y, date_trunc('month', now()) AS m, lower('Ä') AS c"
    _result(connection.sql(sql).to_arrow_reader(_BLOCK), 1, 1 << 20)


def _limit(job: dict[str, Any]) -> None:
    now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    most = now + (int(job["memory_mb"]) << 20) + 2 * int(job["bytes"]) + _MARGIN
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    seconds = int(job["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise `Refused` unless the statement may run; runs nothing of it."""
    if len(sql) > MAX_SQL:
        raise Refused("sql-refused", f"a statement has at most {MAX_SQL} characters")
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    try:
        tree = json.loads(text)
    except RecursionError:
        raise Refused("sql-refused", "the statement is nested too deeply") from None

    @cache
    def names(listing: str) -> frozenset[str]:
        return frozenset(name for (name,) in connection.execute(listing).fetchall()) | frozenset(VIEWS)

    sql_rules.check(tree, sql, lambda: names(_NAMES), lambda: names(_FUNCTIONS))


def _open(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    for number, file in enumerate(files):
        quoted = file.replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS f{number} (READ_ONLY)")
    for view in VIEWS:
        parts = " UNION ALL ".join(f"SELECT * FROM f{number}.{view}" for number in range(len(files)))
        connection.execute(f"CREATE VIEW {view} AS {parts}")


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _result(reader: pa.RecordBatchReader, most_rows: int, most_bytes: int) -> tuple[int, bytes]:
    batches, rows, size = [], 0, 0
    for batch in reader:
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows > most_rows:
            raise Refused("too-large", f"there are more than {most_rows} rows: narrow it, or add LIMIT")
        if size > 4 * most_bytes:  # Parquet is smaller; this bounds what is held before it is made
            raise Refused("too-large", "the rows are more than one answer holds: name fewer columns")
        batches.append(batch)
    try:
        answer_table.distinct(reader.schema.names)
        made = answer_table.to_parquet(pa.Table.from_batches(batches, reader.schema))
    except FormatError as error:
        raise Refused("sql-refused", str(error)) from None
    if len(made) > most_bytes:
        raise Refused("too-large", "the rows are more than one answer holds: name fewer columns")
    return rows, made


def _with_place(connection: duckdb.DuckDBPyConnection, sql: str, error: duckdb.Error) -> duckdb.Error:
    """The same error as `execute` tells it: with the place. It cannot run, for it does not fit the tables."""
    try:
        connection.execute(sql)
    except duckdb.Error as again:
        return again
    return error


def _translated(error: duckdb.Error, sql: str) -> Refused:
    """DuckDB's words may quote values and what was asked: only its class and a place are told."""
    said: dict[str, Any] = {}
    text = str(error)
    if "{" in text:
        try:
            said = json.loads(text[text.index("{") :])
        except ValueError:
            said = {}
    position = said.get("position")
    for kind, reason, message in _FAILED:
        if isinstance(error, kind):
            if reason != "sql-refused":
                return Refused(reason, message)
            return sql_rules.refused(_SAID.get(str(said.get("error_subtype")), message), sql, position)
    if "allocate" in text or "memory" in text.lower():
        return Refused(*_FAILED[0][1:])
    return sql_rules.refused(f"the statement failed ({type(error).__name__})", sql, position)


if __name__ == "__main__":
    main()
