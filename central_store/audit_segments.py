"""Segments of the audit log: the journal's events as Parquet, each with a checkpoint signed by the store.

    audit/<number>.parquet    sequence, time, kind, facility, user, subject, details, previous, hash
    audit/<number>.json.sig   SSHSIG over the checkpoint, namespace `checkpoint@facility-sync`
    audit/<number>.json       the checkpoint: where the log stands, the segment's SHA-256, what came before

Order of `close`, under the log's lock, and what a crash after each step leaves:

    1  the segment           one without a checkpoint: written again, the same events and perhaps more
    2  the signature         the same
    3  the checkpoint        the segment counts; the journal has its events still, and they are passed over
    4  a new journal         nothing

Guarantees: a segment with a checkpoint never changes; segments are numbered without a gap, and each follows
the one before. The service makes one when the journal is large or of another day (`due`).

Leaves to others: the journal (`central_store.audit`), whether all of it holds (`central_store.audit_verify`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from central_store import audit
from central_store.audit_events import Event
from central_store.layout import Layout
from central_store.settings import Store
from schemas import answer_table, container
from schemas.audit_messages import Checkpoint
from schemas.errors import Damaged, FormatError
from schemas.messages import rfc3339
from schemas.transit import durable

_TEXTS = ("kind", "facility", "user", "subject", "details", "previous", "hash")
SCHEMA = pa.schema([
    pa.field("sequence", pa.int64(), nullable=False), pa.field("time", pa.timestamp("us", tz="UTC")),
    *(pa.field(name, pa.string()) for name in _TEXTS),
])  # fmt: skip
"""Columns of a segment. In what is handed to one facility, events of others have only their hashes."""

LARGE = 1 << 20
"""Bytes of a journal that becomes a segment: about 3,000 events."""


def path(layout: Layout, number: int, ending: str) -> Path:
    """A file of a segment: `parquet`, `json` or `json.sig`."""
    return layout.audit / f"{number:08}.{ending}"


def due(layout: Layout, now: datetime) -> bool:
    """Whether the journal is large, or its first event is of an earlier day."""
    with suppress(FileNotFoundError), audit.journal_path(layout).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size > LARGE or (size > 0 and _day(file.readline()) != f"{now.astimezone(UTC):%Y-%m-%d}")
    return False


def close_if_due(store: Store, now: datetime) -> None:
    """Close it then."""
    if due(store.layout, now):
        close(store, now)


def _day(line: bytes) -> str:
    return line.partition(b'"time":"')[2][:10].decode("ascii", "replace")


def close(store: Store, now: datetime) -> Checkpoint | None:
    """Make the journal's events a segment; returns the newest checkpoint, if there is one then.

    Raises:
        Damaged: the newest checkpoint cannot be read.
        OSError: the disk failed.
    """
    layout = store.layout
    with audit.held(layout):
        found = _journalled(layout, now)
        before = audit.newest(layout)
        last = None if before is None else audit.checkpoint(before)
        if not found:
            return last
        number = 1 if last is None else last.segment + 1
        data = parquet(found)
        made = Checkpoint(
            store=store.name,
            segment=number,
            events=len(found),
            sequence=found[-1].sequence,
            head=found[-1].hash,
            table=hashlib.sha256(data).hexdigest(),
            previous="" if before is None else hashlib.sha256(before.read_bytes()).hexdigest(),
            created=rfc3339(now),
        )
        signed = container.sign(made, store.keys.signing)
        durable.publish(path(layout, number, "parquet"), data, replace=True)
        durable.publish(path(layout, number, "json.sig"), signed.armor.encode("ascii"), replace=True)
        durable.publish(path(layout, number, "json"), signed.data, replace=True)
        durable.publish(audit.journal_path(layout), b"", mode=0o644, replace=True)
        return made


def _journalled(layout: Layout, now: datetime) -> list[Event]:
    found, unread = audit.read(layout)
    if unread:
        audit.mended(layout, audit.text_of(now))
        found, _ = audit.read(layout)
    return found


def parquet(events: Sequence[Event]) -> bytes:
    """A segment's file."""
    rows = {
        "sequence": [event.sequence for event in events],
        "time": [datetime.fromisoformat(event.time) for event in events],
        **{name: [getattr(event, name) for event in events] for name in _TEXTS},
    }
    return answer_table.to_parquet(pa.table(rows, SCHEMA))


def table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A segment; raises `Damaged` if it cannot be read or has other columns."""
    try:
        # One thread: a pool that still winds down while the process ends would abort it.
        found = pq.ParquetFile(pa.BufferReader(file.read_bytes())).read(columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"audit/{file.name} cannot be read") from error
    if columns is None and not found.schema.equals(SCHEMA):
        raise Damaged(f"audit/{file.name} has other columns than a segment")
    return found


def rows(found: pa.Table) -> list[Event | None]:
    """The events of a segment's rows; None for a row that is none."""
    made: list[Event | None] = []
    for values in found.drop_columns(["hash"]).to_pylist():
        try:
            made.append(Event(**values | {"time": audit.text_of(values["time"])}))
        except (FormatError, TypeError, AttributeError, ValueError):
            made.append(None)
    return made


def numbers(layout: Layout) -> list[int]:
    """The numbers of all segments, in order."""
    return sorted(int(file.stem) for file in layout.audit.glob("[0-9]*.parquet") if file.stem.isdigit())
