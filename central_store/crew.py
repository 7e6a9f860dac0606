"""Worker processes, each with a pipe: one job at a time, and its end is noticed whatever it is.

Guarantees: a job ends as its result, its exception, or `Crashed` when its process died; then a fresh
process takes the dead one's place. Workers end when the service does, even if it was killed: the pipe
closes. `close` does not wait for jobs.

Leaves to others: what the jobs do; they are functions of this module's `JOBS`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from central_store import fetch, reseal, settings, sql, verify
from central_store.talk import Wanted
from schemas.errors import SyncError
from schemas.messages import FacilityCard, StoreCard
from schemas.names import BatchId

_context = get_context("forkserver")  # fork of a process with the imports done: quick to start, shares memory


class Crashed(Exception):
    """A job ended its process, or raised what it should not."""


@cache
def _store(root: Path) -> settings.Store:
    return settings.open_store(root)


def _verify(root: Path, card: FacilityCard | StoreCard, batch: BatchId) -> verify.Verified:
    store = _store(root)
    return verify.verify(store.layout, card, store.keys.age_identity, batch)


def _send(root: Path, order: fetch.Order) -> list[str]:
    return fetch.send(_store(root), order)


@cache
def _sandbox(root: Path) -> sql.Sandbox:
    return sql.Sandbox(_store(root).settings)


def _sql(root: Path, question: sql.Question) -> int:
    return sql.answer(_store(root), _sandbox(root), question)


def _reseal(root: Path, wanted: Wanted) -> None:
    reseal.send(_store(root), wanted)


JOBS: dict[str, Callable[..., Any]] = {"verify": _verify, "send": _send, "reseal": _reseal, "sql": _sql}


def _work(pipe: Connection, root: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides
    while True:
        try:
            name, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):  # the service ended, or was killed
            return
        try:
            outcome: tuple[bool, Any] = (True, JOBS[name](root, *arguments))
        except (SyncError, OSError) as error:
            outcome = (False, error)
        except Exception as error:
            outcome = (False, Crashed(f"{type(error).__name__} in {_place(error)}"))
        try:
            pipe.send(outcome)
        except BrokenPipeError:
            return


def _place(error: BaseException) -> str:
    """Module and line of an unforeseen error; its text may hold what no log line may."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class Worker:
    """One process and its pipe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job: Any = None
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_work, args=(theirs, self.root), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, job: Any, name: str, *arguments: Any) -> None:
        """Start a job; `pipe` becomes readable when it ended."""
        self.job = job
        try:
            self.pipe.send((name, arguments))
        except BrokenPipeError:  # it died idle
            self._restart()
            self.pipe.send((name, arguments))

    def end(self) -> Any:
        """The result of the job that ended; raises its exception, or `Crashed`."""
        self.job = None
        try:
            right, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._restart()
            raise Crashed("the process died") from None
        if not right:
            raise value
        return value

    def _restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Crew:
    """A fixed number of workers for one kind of job."""

    def __init__(self, root: Path, count: int) -> None:
        _context.set_forkserver_preload([__name__])
        self.workers = [Worker(root) for _ in range(count)]

    def idle(self) -> Worker | None:
        """A worker without a job, if there is one."""
        return next((worker for worker in self.workers if worker.job is None), None)

    def busy(self) -> Sequence[Worker]:
        """The workers that have a job."""
        return [worker for worker in self.workers if worker.job is not None]

    def close(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.close()
