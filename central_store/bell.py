"""Notice at once when something arrives on a shelf.

Guarantees: `Bell.facilities()` names every facility whose `in` changed since it was last asked, and the
bell's pipe is readable from the change on. It may ring for nothing. It is a hint only: events can be lost
(inotify queues overflow, network disks have none), so the service also looks by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import watchfiles

from schemas.names import PART_SUFFIX

log = logging.getLogger("central_store")

STEP_MS = 5
"""How often the watcher looks whether the kernel told it something: half of it is the mean delay."""
DEBOUNCE_MS = 20
"""An arrival waits at most this long while others keep arriving."""


class Bell:
    """Watches the shelves in a thread of its own until closed.

    Args:
        shelves: the folder of all shelves.
    """

    def __init__(self, shelves: Path) -> None:
        self._shelves = shelves.resolve()
        self._changed: set[str] = set()
        self._guard = threading.Lock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._stop = threading.Event()
        self.works = True
        """Whether the kernel tells us about changes; otherwise look more often."""
        self._thread = threading.Thread(target=self._watch, name="bell", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when it rang."""
        return self._reader

    def ring(self) -> None:
        """Wake whoever waits; safe in a signal handler."""
        with contextlib.suppress(OSError):  # the pipe is full: it rings already; or closed: nobody waits
            os.write(self._writer, b"!")

    def facilities(self) -> set[str]:
        """Names of folders under the shelves that changed; unchecked. Asking stops the ringing."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
        with self._guard:
            changed, self._changed = self._changed, set()
        return changed

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        watcher = watchfiles.watch(
            self._shelves,
            watch_filter=self._matters,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=1000,
            stop_event=self._stop,
            raise_interrupt=False,
        )
        try:
            for changes in watcher:
                with self._guard:
                    self._changed |= {Path(path).parent.parent.name for _, path in changes}
                self.ring()
        except OSError as error:  # out of inotify watches, …
            self.works = False
            log.warning("cannot watch the shelves (%s): looking every second instead", error.strerror)
            self.ring()

    def _matters(self, change: watchfiles.Change, path: str) -> bool:
        parts = Path(path).parts
        return (
            change is not watchfiles.Change.deleted
            and len(parts) == len(self._shelves.parts) + 3
            and parts[-2] == "in"
            and not path.endswith(PART_SUFFIX)
        )
