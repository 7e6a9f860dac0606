"""Bring matching images back: decide what is missing here, ask for it in pieces, restore each piece.

Guarantees: what is in place already with the right bytes is not fetched again; a stopped run loses at
most the pieces under way; memory and staging follow one piece, not the whole.

Leaves to others: the question (`facility_sync.ask`), the bytes (`facility_sync.restore`).
"""

from __future__ import annotations

import secrets
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facility_sync import exchange, restore
from facility_sync.ask import PATIENCE, Account, Reader
from facility_sync.filenames import image_path, protected_path
from facility_sync.home import Home
from facility_sync.identity.domains import Keyring
from facility_sync.identity.objects import PROTECTED
from facility_sync.restore import Outcome, Target
from facility_sync.rounds import Progress
from facility_sync.workers import Workers
from schemas import container, messages, names, ustar

PIECE_BYTES = 48 * 1024 * 1024
PIECE_OBJECTS = 2000


@dataclass
class Fetched:
    """What a fetch did; counts are images."""

    matched: int = 0
    in_place: int = 0
    restored: int = 0
    bytes: int = 0
    failed: list[Outcome] = field(default_factory=list)

    def begin_again(self) -> None:
        """The same fetch at another store: what was restored is in place there, and counts once."""
        self.matched, self.in_place = 0, -self.restored
        self.failed.clear()

    def end(self) -> None:
        """A second store may not have what the first gave: nothing is in place less than not at all."""
        self.in_place = max(0, self.in_place)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "matched": self.matched,
            "in_place": self.in_place,
            "restored": self.restored,
            "bytes": self.bytes,
            "failed": [
                {"object": o.target.object, "path": str(o.target.path), "reason": o.reason,
                 "meaning": restore.REASONS[o.reason]}
                for o in self.failed
            ],
        }  # fmt: skip


def targets(
    rows: Iterable[dict[str, Any]], to: Path, keyring: Keyring, *, protected: bool
) -> Iterator[Target]:
    """Where the image of each row goes."""
    reader = Reader(keyring)
    for row in rows:
        if protected:
            yield restore.target_of(row, to / protected_path(row), protected=True)
            continue
        yield restore.target_of(row, to / image_path(row, reader.identity(row) or {}))


def pieces(wanted: Iterable[Target]) -> Iterator[list[Target]]:
    """Cut what is wanted into requests of bounded size."""
    piece: list[Target] = []
    total = 0
    for target in wanted:
        if piece and (total + target.object_bytes > PIECE_BYTES or len(piece) >= PIECE_OBJECTS):
            yield piece
            piece, total = [], 0
        piece.append(target)
        total += target.object_bytes
    if piece:
        yield piece


@dataclass
class Fetch:
    """One fetch under way; `protected`: of the protected files, not of the originals."""

    home: Home
    desk: exchange.Desk
    account: Account
    keyring: Keyring
    workers: Workers
    progress: Progress
    protected: bool = False
    done: Fetched = field(default_factory=Fetched)

    def run(self, rows: list[dict[str, Any]], to: Path) -> None:
        """Fetch the images of these rows; adds to `done`.

        Raises:
            AccessDenied: the store refused.
            SyncError: the answer could not be believed, or the road broke: run it again.
        """
        staging = self.home.root / f"fetch-{secrets.token_hex(4)}"
        with ExitStack() as stack:
            staging.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            asked: deque[tuple[names.RequestId, list[Target]]] = deque()
            unpacking: deque[Future[list[Outcome]]] = deque()
            for piece in pieces(self._missing(rows, to)):
                asked.append((self._ask(piece), piece))
                if len(asked) > 1:  # the store packs the next piece while this one travels
                    self._receive(asked, unpacking, staging)
                while len(unpacking) > self.workers.count:
                    self._count(unpacking.popleft().result())
            while asked:
                self._receive(asked, unpacking, staging)
            while unpacking:
                self._count(unpacking.popleft().result())

    def _missing(self, rows: list[dict[str, Any]], to: Path) -> Iterator[Target]:
        held = {domain.id for domain in self.keyring.domains}
        for target in targets(rows, to, self.keyring, protected=self.protected):
            self.done.matched += 1
            if self.protected and target.encoding not in PROTECTED:
                self.done.failed.append(Outcome(target, "sealed-whole"))
            elif not self.protected and not held & set(target.domains):
                self.done.failed.append(Outcome(target, "no-key"))
            elif restore.is_in_place(target, self.keyring):
                self.done.in_place += 1
            else:
                yield target

    def _ask(self, piece: list[Target]) -> names.RequestId:
        identifier, created = exchange.new_request()
        request = messages.FetchRequest(
            id=identifier,
            facility=names.facility_name(self.home.settings.facility),
            user=names.user_name(self.account.user),
            password=self.account.password,
            objects=tuple(names.object_id(target.object) for target in piece),
            created=created,
        )
        self.desk.ask(request, identifier)
        return identifier

    def _receive(
        self,
        asked: deque[tuple[names.RequestId, list[Target]]],
        unpacking: deque[Future[list[Outcome]]],
        staging: Path,
    ) -> None:
        identifier, piece = asked.popleft()
        size = sum(target.object_bytes for target in piece)
        path = staging / f"{identifier}.answer"
        with path.open("wb") as sink:
            self.desk.wait(
                identifier,
                sink,
                limit=min(2 * size + container.BATCH_BYTES, container.MAX_CONTENT + ustar.BLOCK),
                seconds=PATIENCE,
                progress=lambda count: self.progress.step("received", count),
            )
        work = (path, identifier, self.desk.store, self.home.age_identity, piece, self.keyring)
        unpacking.append(self.workers.submit(restore.unpack, *work))

    def _count(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.reason:
                self.done.failed.append(outcome)
            else:
                self.done.restored += 1
                self.done.bytes += outcome.target.dicom_bytes
        self.progress.step("restored", sum(not outcome.reason for outcome in outcomes))


def sweep(home: Home, *, now: float) -> None:
    """Remove what killed fetches left in the home more than a day ago."""
    for path in home.root.glob("fetch-*"):
        if path.is_dir() and now - path.stat().st_mtime > 86400:
            shutil.rmtree(path, ignore_errors=True)
