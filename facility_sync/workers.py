"""Processes that read and seal: pyrage and zstd keep a core busy each.

Guarantees: small work is done in the calling process (starting workers costs more than it saves);
worker processes ignore Ctrl-C (the round decides) and leave when the round's process is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SMALL = 32 * 1024 * 1024  # bytes of work that do not pay for starting processes


class _Here(Executor):
    """Does the work at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # handed to whoever asks for the result
            future.set_exception(error)
        return future


class Workers:
    """A pool of `count` worker processes, started when work is large enough.

    Args:
        count: number of processes; 0 means one for each processor core this process may use.
    """

    def __init__(self, count: int) -> None:
        self.count = count or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count or 2
        self._pool: ProcessPoolExecutor | None = None
        self._small = 0

    def submit(self, work: Callable[_P, _T], *args: _P.args, size: int, **kwargs: _P.kwargs) -> Future[_T]:  # type: ignore[valid-type]
        """Run `work(*args)`, which touches about `size` bytes."""
        self._small += size
        if self._pool is None and self._small < _SMALL:
            return _Here().submit(work, *args, **kwargs)
        if self._pool is None:
            method = "spawn" if sys.platform in ("win32", "darwin") else "forkserver"
            context = multiprocessing.get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload(["facility_sync.pack"])
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin)
        return self._pool.submit(work, *args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())  # no public way to stop them
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            for process in processes:
                process.terminate()


def _begin() -> None:
    """Runs first in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
