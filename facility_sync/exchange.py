"""The terminal's side of the shelf: put a batch, ask and wait, take what lies there for us.

Guarantees:
    * every answer, receipt and refusal is opened with our key and its signature checked with the trusted
      store's before anything is believed; a replica (another store's receipt) with that other store's;
    * a receipt or notice is on disk in `receipts/` (message and signature, `ssh-keygen -Y verify` checks
      them) before its file is removed from the shelf;
    * an answer counts only for the request it names, a refusal only for what it names;
    * of several trusted stores the first that is there is taken; one that refuses, or is not the one that
      was trusted, is loud and never passed over.

Leaves to others: what a receipt changes (`facility_sync.courier`), trying again (`facility_sync.patience`).
"""

from __future__ import annotations

import io
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from facility_sync import receipts, tombstones
from facility_sync.home import Home
from facility_sync.patience import Patience, next_look, persist
from schemas import container, envelope, messages, names, ustar
from schemas.erasure_messages import Erasure
from schemas.errors import (
    AccessDenied,
    Damaged,
    FormatError,
    OutcomeUnknown,
    SealError,
    SyncError,
    TransitError,
)
from schemas.row_messages import ManifestsAnswer, ManifestsRequest
from schemas.transit import sftp
from schemas.transit.dial import TurnedAway
from schemas.transit.pump import Lost

_M = TypeVar("_M", bound=messages.Message)

SMALL = 64 * 1024 * 1024
"""Largest answer without objects, sealed, in bytes."""
LARGEST = container.MAX_TABLE + messages.MAX_BYTES + 64 * 1024
"""Largest answer with manifests, opened, in bytes: its message and one manifest of the largest size."""
_REACH = 5.0  # seconds to wait for a store's first answer when there are others
_FIRST_LOOK = 0.004  # seconds: what the quickest answers take


class Replica(NamedTuple):
    """Another store's receipt; `verified`: that store is trusted here, and it signed it."""

    receipt: messages.Receipt
    verified: bool


class Desk:
    """One session with a store; use it from one thread.

    Attributes:
        store: the store's card.
        away: stores that come before it and are not there, each with what was found.
    """

    def __init__(
        self, home: Home, store: messages.StoreCard, session: sftp.SftpSession, away: dict[str, str]
    ) -> None:
        self._home = home
        self._session = session
        self.store, self.away = store, away
        self._in, self._out = session.shelf("in"), session.shelf("out")

    def close(self) -> None:
        """End the session."""
        self._session.close()

    # -- sending ---------------------------------------------------------------------------------

    def call_again(self) -> None:
        """Replace a connection that broke; raises as `connect` does."""
        self._session.call_again()

    def send(
        self,
        batch: names.BatchId,
        path: Path,
        progress: Callable[[int], None] | None = None,
        mark: sftp.Mark | None = None,
        *,
        look: bool = True,
    ) -> None:
        """Put a batch on the store's shelf, whole or not at all; done already is done.

        Args:
            batch: its id.
            path: the sealed file.
            progress: told about bytes sent.
            mark: where an earlier try of this file ended.
            look: first see whether the store has taken it in and answered: for a batch that may have been
                sent before.

        Raises:
            Damaged: the sealed file cannot be read, or changes.
        """
        name = names.ShelfName(batch, "batch")
        if look and self._in.size(name) is None:  # in this order: the answer comes before the batch goes
            answers = (names.ShelfName(batch, "receipt"), names.ShelfName(batch, "refusal"))
            if any(self._out.size(answer) is not None for answer in answers):
                return
        try:
            source = path.open("rb")
        except OSError as error:
            raise Damaged("a sealed batch cannot be read", hint="Check this machine's disk.") from error
        with source:
            self._in.put(name, source, os.fstat(source.fileno()).st_size, progress, mark)

    def put(self, name: names.ShelfName, source: BinaryIO, size: int) -> None:
        """Put something sealed on the store's shelf."""
        self._in.put(name, source, size)

    def ask(self, request: messages.Message, identifier: names.RequestId) -> None:
        """Sign, seal and send a request."""
        signed = container.sign(request, self._home.ssh_key)
        sealed = envelope.seal_bytes(container.whole(signed), [self.store.age_recipient])
        self._in.put(names.ShelfName(identifier, "request"), io.BytesIO(sealed), len(sealed))

    # -- receiving -------------------------------------------------------------------------------

    def wait(
        self,
        identifier: names.RequestId,
        sink: BinaryIO,
        *,
        limit: int,
        seconds: float,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Copy the sealed answer to a request into `sink` and take it off the shelf.

        Raises:
            AccessDenied: the store refused; the message is the store's explanation.
            OutcomeUnknown: no answer came in time.
        """
        answer, refusal = names.ShelfName(identifier, "answer"), names.ShelfName(identifier, "refusal")
        started = time.monotonic()
        while True:
            if self._out.try_get(answer, sink, limit, progress):
                self._out.remove(answer)
                return
            refused = io.BytesIO()
            if self._out.try_get(refusal, refused, SMALL):
                self._out.remove(refusal)
                message = self.open(refused.getvalue(), messages.Refusal)
                if message.subject != identifier:
                    raise SealError("the store's refusal names another request")
                raise AccessDenied(message.explanation, hint=_REFUSED.get(message.reason, ""))
            waited = time.monotonic() - started
            if waited > seconds:
                raise OutcomeUnknown(
                    f"the store has not answered within {seconds:.0f} seconds",
                    hint="Is its service running (`fstore serve` or `fstore ingest`)? Then ask again.",
                )
            time.sleep(next_look(waited, _FIRST_LOOK))

    def converse(
        self, request: messages.Message, identifier: names.RequestId, kind: type[_M], *, seconds: float
    ) -> tuple[_M, bytes | None]:
        """Send a request and return its verified answer and the table beside it."""
        self.ask(request, identifier)
        sink = io.BytesIO()
        self.wait(identifier, sink, limit=SMALL, seconds=seconds)
        head = self._read(sink.getvalue())
        if not isinstance(head.signed.message, kind):
            raise FormatError("the store's answer is of another kind than the question")
        if getattr(head.signed.message, "request", identifier) != identifier:
            raise SealError("the store's answer is to another request")
        return head.signed.message, head.table

    def manifests(
        self, request: ManifestsRequest, identifier: names.RequestId, *, seconds: float
    ) -> tuple[ManifestsAnswer, list[bytes]]:
        """Ask for manifests: the verified answer, and each manifest whose bytes fit its name."""
        self.ask(request, identifier)
        sink = io.BytesIO()
        self.wait(identifier, sink, limit=envelope.sealed_size(LARGEST, 64 * 1024), seconds=seconds)
        plain = envelope.open_bytes(sink.getvalue(), [self._home.age_identity], limit=LARGEST)
        tar = ustar.Reader(io.BytesIO(plain), limit=LARGEST)
        answer = container.read_head(tar, self.signer).signed.message
        if not isinstance(answer, ManifestsAnswer):
            raise FormatError("the store's answer is of another kind than the question")
        if answer.request != identifier:
            raise SealError("the store's answer is to another request")
        if not len(answer.statements) == len(answer.receipts) == len(answer.sizes):
            raise FormatError("the store's answer does not say of each manifest what it is")
        said = [messages.Statement.from_bytes(text.encode()).batch for text in answer.statements]
        expected = zip(said, answer.sizes, strict=True)
        return answer, [table for _, table in container.read_manifests(tar, expected)]

    def hear_erasures(self) -> None:
        """Keep what the store says of erased batches and refused tombstones, and nothing else."""
        for name in list(self._out.names()):
            if name.kind not in ("erasure", "refusal") or len(name.id) == 32:
                continue
            sealed = io.BytesIO()
            if not self._out.try_get(name, sealed, SMALL):
                continue
            signed = self._read(sealed.getvalue()).signed
            message = signed.message
            if isinstance(message, Erasure) and message.batch == name.id:
                tombstones.heard(self._home, signed)
            elif (
                isinstance(message, messages.Refusal)
                and message.kind == "tombstone"
                and message.subject == name.id
            ):
                tombstones.refused(self._home, message.subject, message.store, message.reason)
            else:
                continue
            self._out.remove(name)

    def news(self) -> Iterator[messages.Receipt | messages.Refusal | messages.Notice | Replica]:
        """What the shelf says of batches, each verified; receipts, replicas and notices are kept first.

        A notice comes after a receipt of the same batch: the worse news counts.

        What cannot be believed is left where it is and raises after the others were taken.
        """
        doubtful: SyncError | None = None
        self.hear_erasures()
        for name in sorted(self._out.names(), key=lambda name: name.kind == "notice"):
            if name.kind not in ("receipt", "replica", "refusal", "notice") or len(name.id) == 32:
                continue  # answers and refusals of requests belong to whoever asked
            sealed = io.BytesIO()
            if not self._out.try_get(name, sealed, SMALL):
                continue
            try:
                if name.kind == "replica":
                    told = self._replica(name, sealed.getvalue())
                    if told is not None:
                        yield told
                    self._out.remove(name)
                    continue
                signed = self._read(sealed.getvalue()).signed
            except (FormatError, SealError) as error:
                doubtful = error
                continue
            message = signed.message
            if isinstance(message, messages.Receipt | messages.Notice) and message.batch == name.id:
                receipts.keep(self._home, signed)
                yield message
            elif isinstance(message, messages.Refusal) and message.subject == name.id:
                yield message
            else:
                doubtful = SealError("a message on the shelf is not what its name says")
                continue
            self._out.remove(name)
        if doubtful is not None:
            raise doubtful

    def open(self, sealed: bytes, kind: type[_M]) -> _M:
        """Open a sealed message of the store; raises `SealError`, `FormatError`."""
        message = self._read(sealed).signed.message
        if not isinstance(message, kind):
            raise FormatError(f"the store sent a {message.TYPE}, not a {kind.TYPE}")
        return message

    def _read(self, sealed: bytes) -> container.Head:
        plain = envelope.open_bytes(sealed, [self._home.age_identity], limit=SMALL)
        tar = ustar.Reader(io.BytesIO(plain), limit=SMALL)
        head = container.read_head(tar, self.signer)
        if tar.next() is not None:
            raise FormatError("there is more in the store's answer than it announces")
        return head

    def signer(self, message: messages.Message) -> str:
        """Whose signature a message must bear: the trusted store's, and it must speak as that store."""
        if getattr(message, "store", None) != self.store.store:
            raise SealError("this was said by another store than the one trusted here")
        return self.store.signing_key

    def _replica(self, name: names.ShelfName, sealed: bytes) -> Replica | messages.Notice | None:
        """Another store's receipt, kept; that of a store unknown here is kept too, and not believed.

        Or its notice, if it is that of a store that is trusted here.
        """
        plain = envelope.open_bytes(sealed, [self._home.age_identity], limit=SMALL)
        signed = container.read_unverified(ustar.Reader(io.BytesIO(plain), limit=SMALL))
        message = signed.message
        if not isinstance(message, messages.Receipt | messages.Notice) or (
            (message.batch, message.store) != names.replica_of(name.id)
            or message.facility != self._home.settings.facility
        ):
            raise FormatError("a message on the shelf is not what its name says")
        if isinstance(message, messages.Notice):
            return message if receipts.keep_notice(self._home, signed) else None
        return Replica(message, receipts.keep_replica(self._home, signed))


_REFUSED = {"access-denied": "Check the user name and password; accounts are made with `fstore account add`."}


@contextmanager
def connect(
    home: Home, *, only: str = "", timeout: float = 30, patience: Patience | None = None
) -> Iterator[Desk]:
    """A session with the first trusted store that is there.

    Args:
        home: the terminal's home.
        only: name of the one store to try; empty: all of them in order.
        timeout: seconds without an answer after which the connection counts as lost.
        patience: how long to try again when a store is there and has no room; None: not at all.

    Raises:
        HostKeyError: a server is not the one that was trusted.
        AccessDenied: a store does not know this terminal's key.
        TransitError: no connection.
    """
    cards = home.chosen(only)
    with closing(
        call(home, cards, timeout=timeout)
        if patience is None
        else persist(lambda: call(home, cards, timeout=timeout), lambda: None, patience)
    ) as desk:
        yield desk


def call(home: Home, cards: Sequence[messages.StoreCard], *, timeout: float = 30) -> Desk:
    """A session with the first of these stores that is there; raises as `connect` does."""
    away: dict[str, SyncError] = {}
    for card in cards:
        try:
            session = sftp.connect(
                host=card.host,
                port=card.port,
                user=home.settings.store_user or home.settings.facility,
                key=home.ssh_key,
                host_key=card.host_key,
                timeout=timeout,
                reach=min(timeout, _REACH) if len(home.stores) > 1 else None,
            )
        except TransitError as error:
            away[card.store] = error
        else:
            return Desk(home, card, session, {name: str(error) for name, error in away.items()})
    raise nobody(away)


def nobody(away: Mapping[str, SyncError]) -> SyncError:
    """The error that says that no store is there: the one store's own, or one that names them all."""
    first, *more = away.values()
    if not more:
        return first
    text = "none of the trusted stores is there: " + "; ".join(f"{name}: {away[name]}" for name in away)
    kinds = {type(error) for error in away.values()}
    return (TurnedAway if kinds & {TurnedAway, Lost} else TransitError)(text)


def new_request() -> tuple[names.RequestId, str]:
    """A fresh request id and the time to write into the request."""
    return names.RequestId(secrets.token_hex(16)), messages.rfc3339(datetime.now(UTC))
