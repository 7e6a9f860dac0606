"""Processes that read, seal and open: pyrage and zstd keep a core busy each.

Guarantees: worker processes ignore Ctrl-C (whoever started them decides) and leave when that process is
gone, however it went.

They are forks, so they start at once and load nothing again. A fork copies no threads, and locks held by
one would stay held: enter `Workers` before anything starts a thread, above all before connecting.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_STOPPING = {signal.SIGINT, signal.SIGTERM}


class Workers:
    """A pool of `count` worker processes.

    Args:
        count: number of processes; 0 means one for each processor core this process may use.
    """

    def __init__(self, count: int) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(
            self.count,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_begin,
            initargs=(os.getpid(),),
        )

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `work` in a worker."""
        return self._pool.submit(work, *args, **kwargs)

    def __enter__(self) -> Self:
        # The first work given starts all workers: now, not later. A signal in the midst of it would leave
        # workers nobody stops, so it waits until they are there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        self._pool.submit(_nothing)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:  # the handler of a signal that waited
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._pool.shutdown()
        else:
            self._stop()

    def _stop(self) -> None:
        processes = list((self._pool._processes or {}).values())  # no public way to stop them
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)  # a fork holds what we hold, the lock of the round too


def _nothing() -> None:
    """Does nothing."""


def _begin(parent: int) -> None:
    """Runs first in each worker; `parent` may be dead by then, and a worker must not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def leave_with_parent() -> None:  # it holds the lock of the round, and the next one waits for that
        watched = select.poll()
        with suppress(OSError):  # it is gone, or this system tells nobody
            watched.register(os.pidfd_open(parent), select.POLLIN)
            if os.getppid() == parent:  # or the number is another process's by now
                watched.poll()
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
