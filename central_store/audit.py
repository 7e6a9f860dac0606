"""The audit log: who did what, one event for each act, written before the act is seen.

    audit/journal.jsonl         the newest events, one line of canonical JSON each
    audit/<number>.parquet      older ones, in segments (`central_store.audit_segments`)
    audit/<number>.json  .sig   the checkpoint of each segment, signed by this store
    audit/<time>.damaged        lines of a journal that could not be read
    audit/settings.toml         the settings that were written into the log last (`central_store.settings`)
    audit/lock                  held while a line is written, or lines become a segment

Any process may record, the service and commands beside it: a line is written under the lock and fsynced
after it, so that writers at the same moment share an fsync. The line is lasting when `record` returns.
Callers record before what they did can be seen: before an answer lies on a shelf, a receipt is given, a grant
counts.

What a crash leaves: an event of something that did not happen after all, or one twice for what was begun
again; never an act without its event. Half a line at the journal's end is of no act: the next writer cuts it
off. Lines that were damaged otherwise are set aside, and the log says so for ever. After a failed fsync
nobody knows what the disk has of the journal: what can be read goes into a fresh file, and later lines with
it.

Leaves to others: what an event says (its callers: names, counts and `central_store.audit_conditions`, never a
password or an identity), what proves it (`central_store.audit_verify`).
"""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from central_store.audit_events import KINDS, MAX_LINE, START, Event, Head, following, from_line
from central_store.layout import Layout
from schemas.audit_messages import Checkpoint
from schemas.errors import Damaged, FormatError
from schemas.messages import canonical
from schemas.transit import durable

_LOOK = 8192
"""Bytes at the journal's end that nearly always hold its last line."""
_RW = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def record(
    layout: Layout,
    kind: str,
    *,
    facility: str = "",
    user: str = "",
    subject: str = "",
    details: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> None:
    """Write one event; it is lasting when this returns.

    Args:
        layout: the store.
        kind: one of `KINDS`.
        facility: who acted, or whose data it is about.
        user: an account of that facility.
        subject: the id or name it is about.
        details: counts and names.
        now: when; by default, now.

    Raises:
        OSError: it could not be written: what it is about must not happen.
        Damaged: the newest checkpoint cannot be read: nothing says where the log stands.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is no kind of event")
    moment = text_of(now or datetime.now(UTC))
    with ExitStack() as stack:
        with held(layout):
            last = _head(layout, moment)
            journal = stack.enter_context(_journal(layout))
            line = _event(last, moment, kind, facility, user, subject, details or {}).line()
            if len(line) > MAX_LINE:
                raise ValueError("an event is too long")
            _write(journal, line)
        try:
            os.fsync(journal.fileno())
        except OSError:
            _renew(layout)
            raise


def text_of(moment: datetime) -> str:
    """A time as it stands in an event."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def operator(**details: Any) -> dict[str, Any]:
    """The details of an operator's act: what is given, and the Unix user of this process."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    return details | {"by": name}


def _event(
    last: Head, moment: str, kind: str, facility: str, user: str, subject: str, details: Mapping[str, Any]
) -> Event:
    return Event(
        sequence=last.sequence + 1, time=moment, kind=kind, facility=facility, user=user, subject=subject,
        details=canonical(dict(details)).decode(), previous=last.hash,
    )  # fmt: skip


# -- the journal, under the lock -----------------------------------------------------------------------


@contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Hold the log's lock, waiting for it: for a line, or while a segment is made."""
    if not layout.audit.is_dir():  # a store of before there was one
        durable.make_dirs(layout.audit, mode=0o755)
    descriptor = os.open(layout.audit / "lock", _RW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def journal_path(layout: Layout) -> Path:
    """Where the newest events are."""
    return layout.audit / "journal.jsonl"


@contextmanager
def _journal(layout: Layout) -> Iterator[BinaryIO]:
    path = journal_path(layout)
    made = not path.exists()
    with os.fdopen(os.open(path, _RW, 0o644), "r+b") as journal:
        if made:
            durable.fsync_dir(path.parent)
        yield journal


def _write(journal: BinaryIO, line: bytes) -> None:
    """Append a line, whole, or leave half of one; nothing of it is written later."""
    journal.seek(0, os.SEEK_END)
    try:
        journal.write(line)
        journal.flush()
    except OSError:
        with suppress(OSError):
            journal.close()  # while the lock is held: closing tries once more
        raise


def _renew(layout: Layout) -> None:
    """Put the journal into a fresh file, if the disk takes one."""
    path = journal_path(layout)
    with suppress(OSError), held(layout):
        durable.publish(path, path.read_bytes(), mode=0o644, replace=True)


def read(layout: Layout) -> tuple[list[Event], int]:
    """The journal's events behind the newest checkpoint, and its bytes that could not be read."""
    with suppress(FileNotFoundError):
        data = journal_path(layout).read_bytes()
        found, end = following(data, checkpoint_head(layout))
        return found, len(data) - end
    return [], 0


def _head(layout: Layout, moment: str) -> Head:
    """Where the log stands; mends the journal's end first if need be."""
    try:
        with journal_path(layout).open("rb") as journal:
            size = journal.seek(0, os.SEEK_END)
            data = _tail(journal, min(size, _LOOK))
            if b"\n" not in data[:-1]:
                data = _tail(journal, size)
    except FileNotFoundError:
        size, data = 0, b""
    if not size:
        return checkpoint_head(layout)
    with suppress(FormatError):
        return from_line(data[data.rfind(b"\n", 0, -1) + 1 :]).head()
    return mended(layout, moment)


def _tail(journal: BinaryIO, count: int) -> bytes:
    journal.seek(-count, os.SEEK_END)
    return journal.read(count)


def mended(layout: Layout, moment: str) -> Head:
    """Cut off half a line, set aside what else cannot be read, under the lock; where the log stands then."""
    path, after = journal_path(layout), checkpoint_head(layout)
    data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    found, end = following(data, after)
    last, kept = found[-1].head() if found else after, data[:end]
    if end < len(data):
        name = moment.replace(":", "").replace("-", "") + ".damaged"
        durable.publish(layout.audit / name, data[end:], replace=True)
        details = {"bytes": len(data) - end, "lines": data.count(b"\n", end)}
        event = _event(last, moment, "journal-damaged", "", "", name, details)
        kept, last = kept + event.line(), event.head()
    durable.publish(path, kept, mode=0o644, replace=True)
    return last


# -- checkpoints ---------------------------------------------------------------------------------------


def newest(layout: Layout) -> Path | None:
    """The file of the newest checkpoint."""
    return max(layout.audit.glob("[0-9]*.json"), default=None)


def checkpoint(path: Path) -> Checkpoint:
    """A checkpoint, its signature unverified; raises `Damaged`."""
    try:
        return Checkpoint.from_bytes(path.read_bytes())
    except (FormatError, FileNotFoundError) as error:
        raise Damaged(f"audit/{path.name} is no checkpoint", hint="Run `fstore audit verify`.") from error


def checkpoint_head(layout: Layout) -> Head:
    """Where the log stood at the newest checkpoint."""
    path = newest(layout)
    if path is None:
        return START
    found = checkpoint(path)
    return Head(found.sequence, found.head)
