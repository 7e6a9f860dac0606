"""One thread that ends what takes too long: a timer for each statement costs more than many a statement.

Guarantees: `late` is called only while the limited work is going on, so that it never ends somebody else's.

Leaves to others: what ends the work (`central_store.catalog`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """Limits of time for work that is done one after the other.

    Args:
        late: ends the work that is going on; called from another thread.
    """

    def __init__(self, late: Callable[[], None]) -> None:
        self._late = late
        self._changed = threading.Condition()
        self._until: float | None = None
        self._awake = float("inf")  # when the thread looks next
        self._thread: threading.Thread | None = None
        self._closed = False
        self.ended = False
        """Whether the work that goes on, or the last one, took too long: for work that looks itself."""

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Work that is ended after so many seconds."""
        until = time.monotonic() + seconds
        with self._changed:
            self._until, self.ended = until, False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()
            elif until < self._awake:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._until = None

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if self._until is not None and self._until <= now:
                    self._until, self.ended = None, True
                    self._late()
                # Without work it sleeps on: whoever begins wakes it only if it would look too late.
                self._awake = float("inf") if self._until is None else self._until
                self._changed.wait(None if self._until is None else self._until - now)
