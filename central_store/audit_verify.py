"""Does the audit log hold: every event, every segment, every checkpoint, to its end?

Guarantees: `verify` finds an event that was changed, left out, put in or moved, a segment or checkpoint that
is missing or another, and names the first bad row of each segment. Whoever has the store's key and its disk
can write another log: only checkpoints kept elsewhere show that, and that events at the end were cut off.
Give them as `kept`.

Leaves to others: keeping checkpoints (`fstore audit head`, each terminal's `fsync audit`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from central_store import audit, audit_segments
from central_store.audit_events import START, Head
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
    proof = Proof()
    with audit.held(layout):
        numbers = audit_segments.numbers(layout)
        known = {int(path.stem) for path in layout.audit.glob("[0-9]*.json") if path.stem.isdigit()}
        last, previous = START, ""
        marks = {0: START.hash}
        for number in range(1, max([*numbers, *known], default=0) + 1):
            checkpoint, previous = _checkpoint(layout, number, signer, previous, proof)
            last = _segment(layout, number, checkpoint, last, proof)
            if checkpoint is not None:
                marks[checkpoint.sequence] = checkpoint.head
        journal, unread = audit.read(layout)
        if unread:
            proof.problems.append(f"journal: its last {unread} bytes are no event, or do not follow")
    proof.journalled, proof.events = len(journal), proof.events + len(journal)
    proof.head = (journal[-1].head() if journal else last).hash
    for signed in kept:
        message = signed.message
        if isinstance(message, Checkpoint):
            proof.kept += 1
            if marks.get(message.sequence) != message.head:
                proof.problems.append(
                    f"segment {message.segment}: the log is not the one of the checkpoint that was kept, "
                    f"of {message.created}: events were cut off or replaced"
                )
    return proof


def _checkpoint(
    layout: Layout, number: int, signer: str, previous: str, proof: Proof
) -> tuple[Checkpoint | None, str]:
    """A segment's checkpoint, and the digest the next one must name."""
    path = audit_segments.path(layout, number, "json")
    try:
        data = path.read_bytes()
        armor = audit_segments.path(layout, number, "json.sig").read_text("ascii")
        message = container.verify(data, armor, signer).message
    except FileNotFoundError:
        proof.problems.append(f"segment {number}: its checkpoint is missing")
        return None, ""
    except (SealError, FormatError, UnicodeDecodeError):
        proof.problems.append(f"segment {number}: its checkpoint is not signed by the store")
        return None, ""
    if not isinstance(message, Checkpoint) or message.segment != number or message.previous != previous:
        proof.problems.append(f"segment {number}: its checkpoint does not follow the one before it")
        return None, ""
    return message, hashlib.sha256(data).hexdigest()


def _segment(layout: Layout, number: int, checkpoint: Checkpoint | None, last: Head, proof: Proof) -> Head:
    """Compare a segment row by row; returns where the log stands behind it."""
    proof.segments += 1
    path = audit_segments.path(layout, number, "parquet")
    end = last if checkpoint is None else Head(checkpoint.sequence, checkpoint.head)
    try:
        table = audit_segments.table(path)
        same = checkpoint is None or hashlib.sha256(path.read_bytes()).hexdigest() == checkpoint.table
    except Damaged:
        proof.problems.append(f"segment {number}: it is missing or cannot be read")
        return end
    hashes = table.column("hash").to_pylist()
    for place, (event, hashed) in enumerate(zip(audit_segments.rows(table), hashes, strict=True), 1):
        if event is None or event.hash != hashed or not event.follows(last):
            proof.problems.append(f"segment {number}, row {place}: changed, or not the event that follows")
            return end
        last = event.head()
    proof.events += len(hashes)
    if checkpoint is not None and not (same and last == end and checkpoint.events == len(hashes)):
        proof.problems.append(f"segment {number}: it is not the one its checkpoint names")
        return end
    return last
