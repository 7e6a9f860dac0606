"""Does the audit log hold: every event, every segment, every checkpoint, to its end?

Guarantees: `verify` finds an event that was changed, left out, put in or moved, a segment or checkpoint that
is missing or another, and names the first bad row of each segment; and that lines of the journal were once
set aside as damaged. Writers wait only while what is newest is verified. Whoever has the store's key and its
disk can write another log: only checkpoints kept elsewhere show that, and that events at the end were cut
off. Give them as `kept`.

Leaves to others: keeping checkpoints (`fstore audit head`, each terminal's `fsync audit`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from central_store import audit, audit_segments
from central_store.audit_events import START, Event, Head
from central_store.layout import Layout
from schemas import container
from schemas.audit_messages import Checkpoint
from schemas.container import Signed
from schemas.errors import Damaged, FormatError, SealError


@dataclass
class Proof:
    """What was found; `problems` name the segment and, of its rows, the first bad one."""

    segments: int = 0
    events: int = 0
    journalled: int = 0
    kept: int = 0
    head: str = ""
    problems: list[str] = field(default_factory=list)


def verify(layout: Layout, signer: str, kept: Sequence[Signed] = ()) -> Proof:
    """Verify the whole log.

    Args:
        layout: the store.
        signer: the store's signing key, as its card has it.
        kept: checkpoints that were kept elsewhere, their signatures verified.
    """
    run = _Run(layout, signer)
    run.through(run.known())  # these never change: nobody waits for it
    with audit.held(layout):
        run.through(run.known())
        run.rest()
    proof = run.proof
    for signed in kept:
        message = signed.message
        if isinstance(message, Checkpoint):
            proof.kept += 1
            if run.marks.get(message.sequence) != message.head:
                proof.problems.append(
                    f"segment {message.segment}: the log is not the one of the checkpoint that was kept, "
                    f"of {message.created}: events were cut off or replaced"
                )
    return proof


class _Run:
    """One verification, and how far it is."""

    def __init__(self, layout: Layout, signer: str) -> None:
        self._layout, self._signer = layout, signer
        self.proof = Proof()
        self.marks = {0: START.hash}
        self._number, self._last, self._previous = 0, START, ""

    def known(self) -> int:
        """The number of the newest checkpoint."""
        path = audit.newest(self._layout)
        return 0 if path is None or not path.stem.isdigit() else int(path.stem)

    def through(self, end: int) -> None:
        """Verify the segments up to a number that has a checkpoint."""
        while self._number < end:
            self._number += 1
            checkpoint = self._checkpoint(self._number)
            self._last = self._segment(self._number, checkpoint)
            if checkpoint is not None:
                self.marks[checkpoint.sequence] = checkpoint.head

    def rest(self) -> None:
        """The journal, and what a segment left that was begun and has no checkpoint yet; under the lock."""
        try:
            journal, unread = audit.read(self._layout)
        except Damaged:  # the newest checkpoint, and a problem already
            journal, unread = [], 0
        begun = [number for number in audit_segments.numbers(self._layout) if number > self._number]
        if begun and not (begun == [self._number + 1] and self._of(begun[0], journal)):
            self._problem(f"segment {begun[0]}: its checkpoint is missing")
        if unread:
            self._problem(f"journal: its last {unread} bytes are no event, or do not follow")
        for event in journal:
            self._seen(event)
        self.proof.journalled, self.proof.events = len(journal), self.proof.events + len(journal)
        self.proof.head = (journal[-1].head() if journal else self._last).hash

    def _of(self, number: int, journal: list[Event]) -> bool:
        """Whether a segment without a checkpoint is a part of the journal: it will be written again."""
        try:
            rows = audit_segments.rows(
                audit_segments.table(audit_segments.path(self._layout, number, "parquet"))
            )
        except Damaged:
            return False
        return 0 < len(rows) <= len(journal) and rows == journal[: len(rows)]

    def _problem(self, text: str) -> None:
        self.proof.problems.append(text)

    def _seen(self, event: Event) -> None:
        if event.kind == "journal-damaged":
            self._problem(f"event {event.sequence}: damaged lines of the journal, see audit/{event.subject}")

    def _checkpoint(self, number: int) -> Checkpoint | None:
        path, previous = audit_segments.path(self._layout, number, "json"), self._previous
        self._previous = ""
        try:
            data = path.read_bytes()
            armor = audit_segments.path(self._layout, number, "json.sig").read_text("ascii")
            message = container.verify(data, armor, self._signer).message
        except FileNotFoundError:
            self._problem(f"segment {number}: its checkpoint is missing")
            return None
        except (SealError, FormatError, UnicodeDecodeError):
            self._problem(f"segment {number}: its checkpoint is not signed by the store")
            return None
        if not isinstance(message, Checkpoint) or message.segment != number or message.previous != previous:
            self._problem(f"segment {number}: its checkpoint does not follow the one before it")
            return None
        self._previous = hashlib.sha256(data).hexdigest()
        return message

    def _segment(self, number: int, checkpoint: Checkpoint | None) -> Head:
        """Compare a segment row by row; returns where the log stands behind it."""
        self.proof.segments += 1
        path = audit_segments.path(self._layout, number, "parquet")
        last = self._last
        end = last if checkpoint is None else Head(checkpoint.sequence, checkpoint.head)
        try:
            table = audit_segments.table(path)
            same = checkpoint is None or hashlib.sha256(path.read_bytes()).hexdigest() == checkpoint.table
        except Damaged:
            self._problem(f"segment {number}: it is missing or cannot be read")
            return end
        hashes = table.column("hash").to_pylist()
        for place, (event, hashed) in enumerate(zip(audit_segments.rows(table), hashes, strict=True), 1):
            if event is None or event.hash != hashed or not event.follows(last):
                self._problem(f"segment {number}, row {place}: changed, or not the event that follows")
                return end
            self._seen(event)
            last = event.head()
        self.proof.events += len(hashes)
        if checkpoint is not None and not (same and last == end and checkpoint.events == len(hashes)):
            self._problem(f"segment {number}: it is not the one its checkpoint names")
            return end
        return last
