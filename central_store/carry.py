"""Carry files between our shelf for a peer and our shelf at the peer, both ways over one dialled road.

    shelves/<peer>/out  ->  in/ at the peer         shelves/<peer>/in  <-  out/ at the peer

Guarantees: a file is removed where it came from only after it is whole and lasting where it went; messages
go before batches; a batch that broke off, either way, is gone on with. Batches travel from
`replicate_from_hour` until `replicate_to_hour`, at `replicate_kib_s` at most. Nothing of a file is read here:
it is sealed.

Leaves to others: what the files say (`central_store.talk`), which process this runs in
(`central_store.carrying`), going on with what broke off (`central_store.carry_part`).
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO

from central_store import carry_part, lock
from central_store.carry_part import Download
from central_store.peers import Peer
from central_store.settings import Settings, Store
from schemas.errors import AccessDenied, Busy, FormatError, HostKeyError, SyncError
from schemas.names import ShelfName
from schemas.transit import durable, sftp
from schemas.transit.marks import FileMark
from schemas.transit.sftp import SftpSession
from schemas.transit.shelf import Absent, FolderShelf

log = logging.getLogger("central_store")

IDLE = (0.2, 5.0)
"""Seconds between looks when there is nothing to carry: at first, and at most."""
PAUSE = (1.0, 60.0)
"""Seconds before dialling again after trouble: at first, and at most."""


class Rate:
    """At most so many bytes a second, over all streams to one peer.

    Args:
        rate: bytes a second; 0 for no limit.
        monotonic: seconds.
        sleep: waits.
    """

    def __init__(
        self,
        rate: int,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate, self._monotonic, self._sleep = rate, monotonic, sleep
        self._free = monotonic()  # when the bytes so far are paid for
        self._guard = threading.Lock()

    def __call__(self, count: int) -> None:
        """So many bytes were moved: wait until they may have been."""
        if not self._rate:
            return
        with self._guard:
            now = self._monotonic()
            self._free = max(self._free, now) + count / self._rate
            wait = self._free - now
        self._sleep(wait)


def open_hours(settings: Settings, now: datetime) -> bool:
    """Whether batches may travel at this local time."""
    begin, end = settings.replicate_from_hour, settings.replicate_to_hour
    if begin <= end:
        return begin <= now.hour < end
    return now.hour >= begin or now.hour < end


class Stream:
    """One of the connections to one peer.

    Args:
        store: ours.
        peer: whom we dial.
        number: which of `of` streams: each carries its share of the names.
        of: their number.
        rate: shared by them.
    """

    def __init__(
        self, store: Store, peer: Peer, number: int = 0, of: int = 1, rate: Rate | None = None
    ) -> None:
        self._store, self._peer, self._number, self._of = store, peer, number, of
        self._rate = rate or Rate(store.settings.replicate_kib_s * 1024)
        layout = store.layout
        self._in, self._out = FolderShelf(layout.inbound(peer.name)), FolderShelf(layout.outbound(peer.name))
        self._marks = layout.peer(peer.name)
        self.carried = 0

    def dial(self) -> SftpSession:
        """Connect; raises as `schemas.transit.sftp.connect` does."""
        return sftp.connect(
            host=self._peer.host,
            port=self._peer.port,
            user=self._store.name,
            key=self._store.keys.signing,
            host_key=self._peer.card.host_key,
        )

    def run(self, stopping: threading.Event) -> None:
        """Carry until told to stop; trouble is a line in the log and another try.

        Of two processes that would carry the same, one waits until the other ends.
        """
        pause, turn = PAUSE[0], self._store.layout.peer(self._peer.name) / f"carry-{self._number}.lock"
        while not stopping.is_set():
            try:
                with lock.held(turn), self.dial() as session:
                    idle = IDLE[0]
                    while not stopping.is_set():
                        moved = self.turn(session)
                        idle = IDLE[0] if moved else min(idle * 1.5, IDLE[1])
                        pause = PAUSE[0]
                        if not moved:
                            stopping.wait(idle)
            except Busy:
                pause = PAUSE[0]
            except (HostKeyError, AccessDenied) as error:
                log.error("peer=%s: %s", self._peer.name, error)
                pause = PAUSE[1]
            except SyncError as error:
                log.warning("peer=%s: %s", self._peer.name, error)
            except OSError as error:
                log.error("peer=%s: %s", self._peer.name, error.strerror)
            stopping.wait(pause)
            pause = min(pause * 2, PAUSE[1])

    def turn(self, session: SftpSession) -> int:
        """Carry what lies on both sides now, messages first; returns the number of files."""
        ours, theirs = session.shelf("in"), session.shelf("out")
        bulk = open_hours(self._store.settings, datetime.now().astimezone())
        moved = 0
        for name in self._share(self._out.names(), bulk=bulk):
            self._up(ours, name)
            moved += 1
        offered = theirs.names()
        for name in self._share(offered, bulk=bulk):
            moved += self._down(theirs, name)
        for name in carry_part.begun(self._marks):
            if self._is_mine(name) and name not in offered:
                Download(name, self._marks).forget()
        self.carried += moved
        return moved

    def _share(self, found: list[ShelfName], *, bulk: bool) -> list[ShelfName]:
        mine = [
            name
            for name in found
            if name.kind in ("request", "batch") and (bulk or name.kind != "batch") and self._is_mine(name)
        ]
        return sorted(mine, key=lambda name: (name.kind == "batch", name))

    def _is_mine(self, name: ShelfName) -> bool:
        return zlib.crc32(name.id.encode()) % self._of == self._number

    def _up(self, shelf: sftp.SftpShelf, name: ShelfName) -> None:
        path = self._out.path(name)
        mark = FileMark(self._marks / f"{name}.mark") if name.kind == "batch" else None
        try:
            with path.open("rb") as source:
                size = source.seek(0, 2)
                source.seek(0)
                shelf.put(name, source, size, self._rate, mark)
        except FileNotFoundError:
            return
        self._out.remove(name)

    def _down(self, shelf: sftp.SftpShelf, name: ShelfName) -> int:
        limit, final = self._store.settings.file_mib << 20, self._in.path(name)

        def write(sink: BinaryIO) -> None:
            shelf.get(name, sink, limit, self._rate)

        try:
            if name.kind == "batch":
                Download(name, self._marks).bring(shelf, final, limit, self._rate)
            else:
                durable.publish(final, write, replace=True)
        except Absent:
            return 0
        except FormatError as error:
            log.error("peer=%s has a file that is too large: %s", self._peer.name, error)
            return 0
        shelf.remove(name)
        return 1
