"""The tombstones this terminal signed, and what each store said of them.

    erased/<tombstone>/tombstone.json  .sig       what was signed: the folder appears whole or not at all
                       sources                    keyed digests of the erased files, one a line
                       <store>.<batch>.erasure.json  .sig   the store's word: out of every answer; for good
                       <store>.refused            why that store did not take it

Guarantees: a file that is erased is never sent again from here, even if the ledger is lost: the digests are
in these folders, and the ledger learns them anew. Each store is given every tombstone until it certified that
the bytes are gone. Only what the trusted store signed is kept as its word.

Leaves to others: what has to be safe before one is signed (`facility_sync.erase`).
"""

from __future__ import annotations

import io
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from facility_sync.erased_files import ErasedFiles
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from facility_sync.patience import next_look
from schemas import container, envelope, names
from schemas.container import Signed
from schemas.erasure_messages import Erasure, Tombstone, name_of
from schemas.errors import Damaged, FormatError, SealError, SyncError
from schemas.messages import parse
from schemas.names import BatchId, ShelfName
from schemas.transit import durable

if TYPE_CHECKING:
    from facility_sync.exchange import Desk
    from facility_sync.report import Report
    from facility_sync.road import Road

PATIENCE = 10.0
"""Seconds to wait for a store's word; the next round hears it otherwise."""
_SOURCES = "sources"
_FIRST_LOOK = 0.02


class Buried(NamedTuple):
    """A tombstone of this terminal: the name of its folder, what was signed, whose files it concerns."""

    name: str
    signed: Signed
    message: Tombstone
    digests: tuple[str, ...]


class Standing(NamedTuple):
    """How far a store is with one erased batch; texts are times, or empty."""

    batch: BatchId
    store: str
    requested: str
    taken: str
    purged: str
    refused: str


def keep(home: Home, signed: Signed, digests: Iterable[str]) -> None:
    """Keep a tombstone that was signed just now; from here on it goes to every store."""
    durable.make_dirs(home.erased)
    folder = home.erased / f".{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    durable.write_hidden(folder / "tombstone.json", signed.data)
    durable.write_hidden(folder / "tombstone.json.sig", signed.armor.encode("ascii"))
    durable.write_hidden(folder / _SOURCES, "".join(f"{digest}\n" for digest in sorted(digests)).encode())
    durable.publish_dir(folder, home.erased / name_of(signed.data))


def listing(home: Home) -> Iterator[Buried]:
    """All tombstones of this terminal, the oldest first.

    Raises:
        Damaged: one of them cannot be read.
    """
    found = []
    for folder in home.erased.glob("*"):
        if folder.name.startswith("."):
            continue
        try:
            data = (folder / "tombstone.json").read_bytes()
            message, armor = Tombstone.from_bytes(data), (folder / "tombstone.json.sig").read_text("ascii")
            digests = tuple(map(names.object_id, (folder / _SOURCES).read_text("ascii").split()))
        except (OSError, UnicodeDecodeError, FormatError) as error:
            raise Damaged(
                "a tombstone in this terminal's home cannot be read",
                hint="Put the folder `erased` back from a backup of the home: it says what must not be sent.",
            ) from error
        found.append(Buried(folder.name, Signed(message, data, armor), message, digests))
    yield from sorted(found, key=lambda each: (each.message.created, each.name))


def index(home: Home, ledger: Ledger) -> None:
    """Tell the ledger which files and batches are erased, and forget what a stop left of signing."""
    for folder in home.erased.glob(".*"):
        shutil.rmtree(folder)
    known = list(listing(home))
    ErasedFiles(ledger).mark_erased(
        [name for each in known for name in (*each.digests, *each.message.batches)]
    )


def heard(home: Home, signed: Signed) -> None:
    """Keep a store's word about an erased batch, whose signature was verified."""
    message = signed.message
    if not isinstance(message, Erasure) or message.facility != home.settings.facility:
        raise SealError("what a store says of an erased batch is about another facility")
    for each in listing(home):  # it may name another of the same batch, or one of another home
        if message.batch in each.message.batches:
            path = home.erased / each.name / f"{message.store}.{message.batch}.erasure.json"
            durable.publish(path.with_name(path.name + ".sig"), signed.armor.encode("ascii"), replace=True)
            durable.publish(path, signed.data, replace=True)


def refused(home: Home, name: str, store: str, reason: str) -> None:
    """Note that a store did not take a tombstone."""
    folder = home.erased / name
    if folder.is_dir():
        durable.publish(folder / f"{store}.refused", reason.encode("ascii", "replace") + b"\n", replace=True)


def standings(home: Home) -> list[Standing]:
    """How far each trusted store is with each erased batch."""
    found = []
    for each in listing(home):
        for card in home.stores:
            refusal = home.erased / each.name / f"{card.store}.refused"
            why = refusal.read_text("ascii").strip() if refusal.exists() else ""
            for batch in each.message.batches:
                word = _word(home, each.name, card.store, batch)
                found.append(
                    Standing(
                        batch=batch,
                        store=card.store,
                        requested=each.message.created,
                        taken=word.taken if word else "",
                        purged=word.purged if word else "",
                        refused="" if word else why,
                    )
                )
    return found


def waiting(home: Home, store: str) -> list[Buried]:
    """The tombstones of which a store did not certify every batch."""
    return [
        each
        for each in listing(home)
        if any(not _purged(home, each.name, store, batch) for batch in each.message.batches)
    ]


def everywhere(home: Home, road: Road, only: str, report: Report) -> None:
    """Give every trusted store the tombstones it lacks; one that is away gets them with the next round.

    Args:
        home: the terminal's home.
        road: to the store in use.
        only: the one store to give them to; empty: all.
        report: told which stores could not be given theirs.
    """
    from facility_sync import exchange

    used = road.desk.store.store
    if waiting(home, used):
        road.persist(lambda desk: carry(home, desk))
    for card in home.chosen(only):
        if card.store != used and waiting(home, card.store):
            try:
                with exchange.connect(home, only=card.store) as desk:
                    carry(home, desk)
            except SyncError as error:
                report.unburied[card.store] = str(error)


def carry(home: Home, desk: Desk, *, again: bool = False) -> None:
    """Give a store every tombstone that it did not certify, and hear what it says of them.

    Args:
        home: the terminal's home.
        desk: a session with the store.
        again: those that it certified too: it may have been put back from a copy since.
    """
    given = list(listing(home)) if again else waiting(home, desk.store.store)
    for each in given:
        (home.erased / each.name / f"{desk.store.store}.refused").unlink(missing_ok=True)
        sealed = envelope.seal_bytes(container.whole(each.signed), [desk.store.age_recipient])
        desk.put(ShelfName(each.name, "tombstone"), io.BytesIO(sealed), len(sealed))
    started = time.monotonic()
    while given:
        desk.hear_erasures()
        given = [each for each in given if not _answered(home, each, desk.store.store)]
        waited = time.monotonic() - started
        if waited > PATIENCE:
            return
        if given:
            time.sleep(next_look(waited, _FIRST_LOOK))


def _answered(home: Home, each: Buried, store: str) -> bool:
    if (home.erased / each.name / f"{store}.refused").exists():
        return True
    return all(_word(home, each.name, store, batch) for batch in each.message.batches)


def _purged(home: Home, name: str, store: str, batch: BatchId) -> bool:
    word = _word(home, name, store, batch)
    return word is not None and bool(word.purged)


def _word(home: Home, name: str, store: str, batch: BatchId) -> Erasure | None:
    path: Path = home.erased / name / f"{store}.{batch}.erasure.json"
    try:
        message = parse(path.read_bytes())
    except (FileNotFoundError, FormatError):
        return None
    return message if isinstance(message, Erasure) else None
