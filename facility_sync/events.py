"""What the store's audit log says about this facility's data, and the proof of it that is kept here.

Guarantees: an answer's table is the one its signature names. The store's newest checkpoint comes with each
answer, is verified, and kept in `checkpoints/` of the home, message and signature: whoever cuts the log off
or writes another one cannot take these back (`fstore audit verify --head`). A store whose newest checkpoint
is older than one kept here, or another of the same number, is not believed.

Leaves to others: the connection (`facility_sync.exchange`), printing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facility_sync import exchange
from facility_sync.ask import PATIENCE, Account
from facility_sync.home import Home
from schemas import container, names
from schemas.audit_messages import AuditAnswer, AuditRequest, Checkpoint
from schemas.errors import FormatError, SealError, SettingsError
from schemas.messages import StoreCard
from schemas.transit import durable

PAGE = 10_000
"""Most events asked for at once."""


def read(
    home: Home, desk: exchange.Desk, account: Account, *, since: str, limit: int
) -> Iterator[dict[str, Any]]:
    """The events, newest first.

    Args:
        home: the terminal.
        desk: a session with the store.
        account: who asks.
        since: not older than this time (RFC 3339, UTC), or empty.
        limit: most events.

    Raises:
        AccessDenied: the store refused.
        SealError: the store's log is not the one it was.
    """
    before = 0
    while limit > 0:
        answer, rows = _page(home, desk, account, since, before, min(limit, PAGE))
        _keep(home.root / "checkpoints" / desk.store.store, desk.store, answer)
        yield from rows
        limit -= len(rows)
        before = answer.more
        if not before:
            return


def _page(
    home: Home, desk: exchange.Desk, account: Account, since: str, before: int, limit: int
) -> tuple[AuditAnswer, list[dict[str, Any]]]:
    identifier, created = exchange.new_request()
    try:
        user = names.user_name(account.user)
    except FormatError as error:
        raise SettingsError(str(error), hint="Check --user.") from error
    request = AuditRequest(
        id=identifier,
        facility=names.facility_name(home.settings.facility),
        user=user,
        password=account.password,
        since=since,
        before=before,
        limit=limit,
        created=created,
    )
    answer, data = desk.converse(request, identifier, AuditAnswer, seconds=PATIENCE)
    try:
        # One thread: a pool that still winds down while the process ends would abort it.
        table = pq.ParquetFile(pa.BufferReader(data or b"")).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise FormatError("the store's answer holds no readable table") from error
    return answer, table.to_pylist()


def _keep(folder: Path, store: StoreCard, answer: AuditAnswer) -> None:
    """Verify the checkpoint of an answer, compare it with those kept here, and keep it."""
    newest = 0
    if answer.checkpoint:
        data = answer.checkpoint.encode()
        found = container.verify(data, answer.signature, store.signing_key).message
        if not isinstance(found, Checkpoint) or found.store != store.store:
            raise SealError("the store's checkpoint is none of its own")
        newest, path = found.segment, folder / f"{found.segment:08}.json"
        if not path.exists():
            durable.make_dirs(folder)
            durable.publish(path.with_name(path.name + ".sig"), answer.signature.encode(), replace=True)
            durable.publish(path, data, replace=True)
        elif path.read_bytes() != data:
            raise SealError(_OTHER, hint=_ASK)
    if any(int(path.stem) > newest for path in folder.glob("[0-9]*.json")):
        raise SealError(_OTHER, hint=_ASK)


_OTHER = "the store's audit log is not the one it was: a checkpoint kept here is not in it"
_ASK = "Ask the store's operator, and keep the folder `checkpoints` of this home: it is the proof."
