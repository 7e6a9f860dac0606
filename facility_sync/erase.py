"""Erase images at the stores: their batches go, and the other images of these batches are sent again first.

Order, and what a stop at each point leaves:

    find which batches hold the wanted images          nothing
    bring back the others that are not here any more   files in the home that the next run brings again
    send the others again, until each has a receipt    new batches; both hold them
    keep the signed tombstone in the home              COMMIT. The next round gives it to the stores
    give it to every trusted store                     the same
    look again: what stood behind others may show      the next run finds it

A batch is named by its content, so nothing is ever cut out of one. Guarantees: no tombstone is signed before
every other image of its batches is in another batch with a verified receipt, bit for bit what the facility
read, or a person gave it up because it lies nowhere any more; the wanted files are never sent again from this
terminal. Nothing of an identity is in what is said, but as tokens.

Leaves to others: asking the person (`cli.erasing`), rounds (`facility_sync.rounds`), what the stores do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from facility_sync import ask, exchange, fetching, plan, scan, tombstones
from facility_sync.erased_files import ErasedFiles
from facility_sync.home import Home
from facility_sync.identity import sql_words
from facility_sync.identity.domains import Keyring
from facility_sync.ledger import Ledger
from facility_sync.rounds import Progress, Round
from facility_sync.workers import Workers
from schemas import container, names
from schemas.erasure_messages import MOST_BATCHES, Tombstone
from schemas.errors import Incomplete, SyncError, TransitError
from schemas.messages import rfc3339
from schemas.names import BatchId

_COLUMNS = "study_uid, source_digest, object_sha256, encoding, object_bytes, dicom_bytes, domains"
_FETCHED = "to-send-again"
_LOOKS = 20
"""How often at most what stood behind others is looked for."""


@dataclass
class Plan:
    """What would be erased, and what would be sent again; rows by keyed digest.

    Attributes:
        wanted: the images to erase.
        others: the other images of the same batches.
        batches: those batches.
        stores: of each image, the stores that list it.
        given_up: digests of the others that no store gives back, and that a person said may go.
        away: stores that could not be asked, each with what was found.
    """

    wanted: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: set[BatchId] = field(default_factory=set)
    stores: dict[str, list[str]] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    away: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        rows = self.wanted.values()
        again = [row for digest, row in self.others.items() if digest not in self.given_up]
        return {
            "studies": len({row["study_uid"] for row in rows}),
            "images": len(self.wanted),
            "bytes": sum(row["object_bytes"] for row in rows),
            "batches": sorted(self.batches),
            "sent_again": len(again),
            "sent_again_bytes": sum(row["object_bytes"] for row in again),
            "given_up": len(self.given_up),
            "away": self.away,
        }


@dataclass
class Erase:
    """One act of erasing.

    Attributes:
        home: the terminal's home.
        account: who asks.
        keyring: makes tokens, and opens what has to be sent again.
        where: the condition, as SQL with words like `patient('…')`; of texts that were checked.
        today: for dates.
        workers: a pool that was entered before anything connected.
        progress: told what happens.
        only: names the one store to erase at; empty: all that are trusted.
        give_up: most other images that may be lost, if they are not here and no store gives them back.
    """

    home: Home
    account: ask.Account
    keyring: Keyring
    where: str
    today: date
    workers: Workers
    progress: Progress
    only: str = ""
    give_up: int = 0

    def look(self) -> Plan:
        """Find the images and their batches at every trusted store.

        Raises:
            TransitError: no store is there.
            AccessDenied: a store refuses.
        """
        found, away = Plan(), dict[str, SyncError]()
        for card in self.home.chosen(self.only):
            try:
                with exchange.connect(self.home, only=card.store) as desk:
                    self._look_at(desk, found)
            except TransitError as error:
                away[card.store] = error
        if len(away) == len(self.home.chosen(self.only)):
            raise exchange.nobody(away)
        found.away = {store: str(error) for store, error in away.items()}
        with closing(Ledger(self.home.ledger_path)) as ledger:
            tombstones.index(self.home, ledger)
            erased = ErasedFiles(ledger).erased(found.others)  # a store may not have heard of it yet
        for digest in {*found.wanted, *erased}:
            found.others.pop(digest, None)
        return found

    def _look_at(self, desk: exchange.Desk, found: Plan) -> None:
        own = f"facility = '{names.facility_name(self.home.settings.facility)}'"
        which = self._rows(desk, f"SELECT DISTINCT batch_id FROM instances WHERE {own} AND ({self.where})")
        for batch in sorted(names.batch_id(row["batch_id"]) for row in which):
            rows = self._rows(
                desk,
                f"SELECT {_COLUMNS}, coalesce({self.where}, false) AS wanted FROM instances "
                f"WHERE {own} AND batch_id = '{batch}'",
            )
            found.batches.add(batch)
            for row in rows:
                digest = str(row["source_digest"])
                (found.wanted if row.pop("wanted") else found.others)[digest] = row
                found.stores.setdefault(digest, []).append(desk.store.store)

    def _rows(self, desk: exchange.Desk, sql: str) -> list[dict[str, Any]]:
        sent = sql_words.translate(sql, self.keyring, self.today)
        table = ask.sql(desk, self.home.settings.facility, self.account, sent, sql)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    # -- doing it --------------------------------------------------------------------------------

    def run(self, found: Plan, reason: str) -> Plan:
        """Erase what was found, and what shows behind it; returns all of that.

        Args:
            found: what the person agreed to.
            reason: a code of `schemas.erasure_messages.REASONS`.

        Raises:
            Incomplete: not all other images could be sent again: their batches are not erased.
            SyncError: the road broke, a store refused; run it again.
        """
        done = Plan(away=found.away)
        for _ in range(_LOOKS):
            found.given_up |= done.given_up
            self._once(found, reason)
            done.wanted |= found.wanted
            done.others |= found.others
            done.batches |= found.batches
            done.given_up |= found.given_up
            if not self.acknowledged(found):
                break  # a store's word is still to come: the next run looks again
            found = self.look()
            done.away |= found.away
            if not found.batches:
                break
        return done

    def _once(self, found: Plan, reason: str) -> None:
        fetched = self.home.root / _FETCHED
        with closing(Ledger(self.home.ledger_path)) as ledger:
            files = ErasedFiles(ledger)
            open_ones = found.others.keys() - files.stored_outside(found.others, found.batches)
            these, absent = self._here(files, open_ones)
        if open_ones:
            these += self._brought_back([found.others[digest] for digest in sorted(absent)], found, fetched)
            leaving = frozenset(map(str, found.batches))
            Round(
                self.home, self.progress, self.only, these=these, leaving=leaving, workers=self.workers
            ).run()
        with closing(Ledger(self.home.ledger_path)) as ledger:
            files = ErasedFiles(ledger)
            left = found.others.keys() - files.stored_outside(found.others, found.batches)
            found.given_up &= left
            if waiting := left - found.given_up:
                raise Incomplete(
                    f"{len(waiting):,} other images of these batches have no receipt in another batch yet: "
                    "nothing is erased",
                    hint="`fsync status` says why; run the command again when they are stored.",
                )
            files.moved(found.others, found.batches)
            files.given_up(found.given_up, found.batches, rfc3339(datetime.now(UTC)))
            self._sign(found, reason, ledger)
            files.forget(str(fetched))
        shutil.rmtree(fetched, ignore_errors=True)
        self._give(found)

    def _here(self, files: ErasedFiles, digests: Iterable[str]) -> tuple[list[plan.Wanted], set[str]]:
        """Of files to send again: those that lie where they were read, and the digests of the rest."""
        these, absent = [], set()
        for digest in sorted(digests):
            for source, folder, name, size, mtime_ns in files.places(digest):
                fact = scan.look(source, folder, name)
                if fact is not None and (fact.size, fact.mtime_ns) == (size, mtime_ns):
                    these.append(plan.Wanted(source, fact))
                    break
            else:
                absent.add(digest)
        return these, absent

    def _brought_back(self, rows: Sequence[dict[str, Any]], found: Plan, to: Path) -> list[plan.Wanted]:
        """The originals of these rows from the stores, below a folder of the home; the rest is given up."""
        missing, why = {str(row["source_digest"]): row for row in rows}, ""
        for store in sorted({store for digest in missing for store in found.stores[digest]}):
            mine = [row for digest, row in missing.items() if store in found.stores[digest]]
            if not mine:
                continue
            with exchange.connect(self.home, only=store) as desk:
                run = fetching.Fetch(self.home, desk, self.account, self.keyring, self.workers, self.progress)
                run.run(mine, to)
            failed = {each.target.source_digest: each.reason for each in run.done.failed}
            why = next(iter(failed.values()), why)
            for row in mine:
                if row["source_digest"] not in failed:
                    del missing[row["source_digest"]]
        found.given_up |= missing.keys()
        if len(found.given_up) > self.give_up:
            raise Incomplete(
                f"{len(found.given_up):,} other images of these batches are not here and did not come back "
                f"({why}): nothing is erased",
                hint="`fsync fetch` says more about them. If they are lost for good, "
                f"--give-up {len(found.given_up)} erases without them.",
            )
        return list(_files(to))

    def _sign(self, found: Plan, reason: str, ledger: Ledger) -> None:
        """Tombstones for all batches that have none yet, each kept before it is given to anybody."""
        with self.home.only_round():
            signed = {batch for each in tombstones.listing(self.home) for batch in each.message.batches}
            which = sorted(found.batches - signed)
            for start in range(0, len(which), MOST_BATCHES):
                tombstone = Tombstone(
                    facility=names.facility_name(self.home.settings.facility),
                    batches=tuple(which[start : start + MOST_BATCHES]),
                    reason=reason,
                    created=rfc3339(datetime.now(UTC)),
                )
                tombstones.keep(self.home, container.sign(tombstone, self.home.ssh_key), found.wanted)
            tombstones.index(self.home, ledger)

    def _give(self, found: Plan) -> None:
        for card in self.home.chosen(self.only):
            try:
                with exchange.connect(self.home, only=card.store) as desk:
                    tombstones.carry(self.home, desk)
            except TransitError as error:
                found.away[card.store] = str(error)

    def acknowledged(self, found: Plan) -> bool:
        """Whether every store that is there has these batches out of its answers."""
        stores = {card.store for card in self.home.chosen(self.only)} - found.away.keys()
        mine = [one for one in tombstones.standings(self.home) if one.batch in found.batches]
        return all(one.taken for one in mine if one.store in stores)


def _files(folder: Path) -> Iterator[plan.Wanted]:
    for each in scan.walk(str(folder)):
        for fact in each.facts:
            yield plan.Wanted(str(folder), fact)
