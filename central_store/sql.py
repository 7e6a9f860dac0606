"""SQL from outside: a question, the process that runs it, and the answer.

Guarantees: a statement is run by a process of its own (`central_store.sql_child`) that is ended when
`sql_seconds` are over, on files that hold the rows of the permitted facilities and no others. Nothing that
process writes is interpreted here but one short line; its rows go on as the bytes they are, and no more of
them than one answer holds. Whatever becomes of the process, the asker gets an answer, or a refusal with the
reason.

Runs in a worker process. Leaves to others: who may ask and see what (`central_store.requests`), which
statements may run (`central_store.sql_rules`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from central_store import replies, sql_rows
from central_store.replies import Refused
from central_store.settings import Settings, Store
from schemas.messages import FacilityCard, SqlAnswer
from schemas.names import FacilityName, RequestId, ShelfName, UserName
from schemas.views import VIEWS

_HEAD = 4096


class Question(NamedTuple):
    """What to run, and for whom: decided by the service, carried out by a worker."""

    card: FacilityCard
    request: RequestId
    sql: str
    owners: tuple[FacilityName, ...]
    answered: str
    user: UserName

    def named(self) -> list[str]:
        """The views and columns whose names occur in it; its values are nobody's business."""
        known = {*VIEWS, *(column.name for view in VIEWS.values() for column in view)}
        return sorted(known.intersection(re.findall(r"[a-z_][a-z_0-9]*", self.sql.lower())))


class Done(NamedTuple):
    """What a statement gave."""

    rows: int
    table: bytes


class Sandbox:
    """Runs statements, each in a process of its own, by one first process that is kept ready.

    Args:
        settings: the limits.
    """

    command: Sequence[str] = (sys.executable, "-m", "central_store.sql_child")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        self._calls, theirs = socket.socketpair()
        with theirs:
            self._first = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                list(self.command),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        if not self._calls.recv(1):  # its start is not part of a statement's time
            raise Refused("store-trouble", "the process for SQL does not start")

    def run(self, sql: str, files: Sequence[Path]) -> Done:
        """Run one statement on these files; raises `Refused`."""
        most = self._settings.sql_mib << 20
        job = {
            "sql": sql, "files": [str(path) for path in files], "memory_mb": self._settings.sql_memory_mb,
            "seconds": self._settings.sql_seconds, "rows": self._settings.sql_rows, "bytes": most,
        }  # fmt: skip
        with self._call(json.dumps(job).encode()) as outcome:
            try:
                return _outcome(_read(outcome, self._settings.sql_seconds, most + _HEAD))
            except Refused as error:
                if error.reason != "sql-refused":
                    self.close()
                    _drain(outcome)  # until the process is gone, and with it its hold on the files
                raise

    def _call(self, job: bytes) -> BinaryIO:
        """Hand a job to a new process; returns where its outcome comes from."""
        if self._first is None or self._first.poll() is not None:
            self.close()
            self._start()
        (job_end, ours), (outcome, outcome_end) = os.pipe(), os.pipe()
        try:
            socket.send_fds(self._calls, [b"."], [job_end, outcome_end])
        finally:
            os.close(job_end)
            os.close(outcome_end)
        with suppress(BrokenPipeError), os.fdopen(ours, "wb") as file:
            file.write(job)
        return os.fdopen(outcome, "rb", buffering=0)

    def close(self) -> None:
        """End the first process, and with it the one that runs a statement."""
        if self._first is not None:
            self._first.kill()
            self._first.wait()
            self._first = None
            self._calls.close()


def _read(outcome: BinaryIO, seconds: float, most: int) -> bytes:
    """All a process writes; raises `Refused` when its time is over, or it writes more than it may."""
    got = bytearray()
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(outcome, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise Refused("too-slow", f"the statement ran longer than {seconds} seconds: narrow it")
            block = outcome.read(1 << 20)
            if not block:
                return bytes(got)
            got += block
            if len(got) > most:
                raise Refused("too-large", "the rows are more than one answer holds")


def _drain(outcome: BinaryIO) -> None:
    while outcome.read(1 << 20):
        pass


def _outcome(data: bytes) -> Done:
    line, newline, table = data.partition(b"\n")
    try:
        head = json.loads(line) if newline and len(line) < _HEAD else {}
    except ValueError:
        head = {}
    if isinstance(head.get("rows"), int) and table:
        return Done(head["rows"], table)
    if head.get("reason") in ("sql-refused", "too-large") and isinstance(head.get("message"), str):
        raise Refused(head["reason"], head["message"][:500])
    raise Refused("too-large", "the statement needs more time or memory than this store allows")


def answer(store: Store, sandbox: Sandbox, question: Question) -> int:
    """Run a question and put its answer on the asker's `out` shelf; returns the number of rows.

    Raises:
        Refused: the statement may not run, failed, or took more than it may.
        Damaged, OSError: trouble of the store's own.
    """
    with sql_rows.reading(store.layout, question.owners, store.settings.catalog_memory_mb) as files:
        done = sandbox.run(question.sql, files)
    said = SqlAnswer(
        store=store.name,
        request=question.request,
        returned=done.rows,
        table=hashlib.sha256(done.table).hexdigest(),
        answered=question.answered,
    )
    sealed = replies.sealed(store, question.card, said, done.table)
    replies.put(store, question.card, ShelfName(question.request, "answer"), sealed)
    return done.rows
