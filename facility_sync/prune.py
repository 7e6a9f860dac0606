"""Delete local files that are stored, and only those: the one place that deletes a source file.

A file goes only if all of this holds at this moment:

    * the ledger has it as stored, with the size and modification time it has now;
    * its batch has a receipt whose signature verifies now, old enough, with as many replicas as asked for;
    * it was read again, and the keyed digest of its bytes is the one that was sent;
    * no link was followed below the source to reach it, and it did not change up to the deletion.

Order, and what a stop at each point leaves:

    files of a folder are read and compared     nothing
    a line for each in `pruned.jsonl`, fsynced  a line for a file that is there: the next run adds another
    the ledger has them as pruned               the same; a file that is there is never counted as gone
    each is deleted                             the others are there, and the next run takes them

Guarantees: what is deleted stands in the log and in the ledger before it is gone; a file that could not be
deleted is taken back in both. The ledger still knows every deleted file as stored.

Leaves to others: receipts (`facility_sync.receipts`); empty folders stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from facility_sync import intake, line_log, receipts, scan
from facility_sync.home import Home
from facility_sync.identity import tokens
from facility_sync.identity.domains import Keyring
from facility_sync.ledger import Ledger, Record
from schemas.errors import SettingsError
from schemas.messages import rfc3339

LOG = "pruned.jsonl"
_CHUNK = 256  # files deleted together: one fsync of the log and one transaction for all of them
_BLOCK = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a person asked for.

    Attributes:
        older_than: age of the receipt.
        replicas: replicas that must be known.
        delete: really delete; otherwise only say what would be.
        now: the time by which receipts age, in UTC.
    """

    older_than: timedelta
    replicas: int
    delete: bool
    now: datetime


@dataclass
class Pruned:
    """What a run deleted (or would delete) and why the rest stays."""

    files: int = 0
    bytes: int = 0
    kept: Counter[str] = field(default_factory=Counter)


class Outcome(NamedTuple):
    """One file: deleted (or to be deleted) when `reason` is empty, else a key of `reasons.PRUNE`."""

    source: str
    path: str
    bytes: int
    reason: str


class _Mark(NamedTuple):
    """A file as it was while its bytes were read."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Kept(Exception):
    """Why a file stays."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def prune(
    home: Home, ledger: Ledger, keyring: Keyring, rules: Rules, tell: Callable[[Outcome], None]
) -> Pruned:
    """Go through every source; the caller holds `home.only_round()` when `rules.delete`.

    Raises:
        SettingsError: the log cannot be written; nothing was deleted without a line in it.
    """
    return _Run(home, ledger, keyring, rules, tell).run()


class _Run:
    def __init__(
        self, home: Home, ledger: Ledger, keyring: Keyring, rules: Rules, tell: Callable[[Outcome], None]
    ) -> None:
        self._home, self._ledger, self._keyring = home, ledger, keyring
        self._rules, self._tell = rules, tell
        self._done = Pruned()
        self._batches: dict[str, str] = {}  # batch -> why its files stay, or empty

    def run(self) -> Pruned:
        for source in self._home.settings.sources:
            for folder in scan.walk(source):
                if folder.facts:
                    self._folder(source, folder.folder, folder.facts)
        return self._done

    def _folder(self, source: str, folder: str, facts: Sequence[scan.Fact]) -> None:
        known = {record.name: record for record in self._ledger.records(source, folder)}
        try:
            with _opened(source, folder) as at:
                for start in range(0, len(facts), _CHUNK):
                    self._chunk(source, folder, at, facts[start : start + _CHUNK], known)
        except _Kept as kept:
            for fact in facts:
                self._say(source, fact, kept.reason)

    def _chunk(
        self, source: str, folder: str, at: int, facts: Sequence[scan.Fact], known: Mapping[str, Record]
    ) -> None:
        going: list[tuple[scan.Fact, Record, _Mark]] = []
        for fact in facts:
            try:
                record = self._stored(known.get(fact.name), fact)
                going.append((fact, record, self._unchanged(at, record)))
            except _Kept as kept:
                self._say(source, fact, kept.reason)
        if not self._rules.delete:
            for fact, _, _ in going:
                self._say(source, fact, "")
        elif going:
            self._delete(source, folder, at, going)

    def _stored(self, record: Record | None, fact: scan.Fact) -> Record:
        """The ledger's record of a file that its batch allows to go."""
        if record is None or record.state != "stored":
            raise _Kept("not-stored")
        if (record.size, record.mtime_ns) != (fact.size, fact.mtime_ns):
            raise _Kept("changed")
        if record.batch not in self._batches:
            self._batches[record.batch] = self._hindrance(record.batch)
        if hindrance := self._batches[record.batch]:
            raise _Kept(hindrance)
        return record

    def _hindrance(self, batch: str) -> str:
        kept = receipts.kept(self._home, batch)
        if kept is None or kept.receipt is None or not kept.verified:
            return "no-receipt"
        sent = self._ledger.batch(batch)
        if sent is not None and (sent.objects, sent.bytes) != (kept.receipt.objects, kept.receipt.bytes):
            return "no-receipt"
        stored = datetime.fromisoformat(kept.receipt.stored)
        if self._rules.now - stored < self._rules.older_than:
            return "too-young"
        if len(receipts.holders(kept)) - 1 < self._rules.replicas:
            return "replicas"
        return ""

    def _unchanged(self, at: int, record: Record) -> _Mark:
        """Read a file again; what it was meanwhile."""
        try:
            descriptor = os.open(record.name, _FILE, dir_fd=at)
        except OSError as error:
            raise _Kept("link" if _is_link(at, record.name) else "unreadable") from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            before = _mark(os.fstat(descriptor))
            if (before.size, before.mtime_ns) != (record.size, record.mtime_ns):
                raise _Kept("changed")
            digest = hashlib.sha256()
            try:
                while block := file.read(_BLOCK):
                    digest.update(block)
            except OSError as error:
                raise _Kept("unreadable") from error
            after = _mark(os.fstat(descriptor))
        keyed = {tokens.keyed_digest(domain, digest.digest()) for domain in self._keyring.domains}
        if before != after or record.digest not in keyed:
            raise _Kept("changed")
        return before

    def _delete(
        self, source: str, folder: str, at: int, going: Sequence[tuple[scan.Fact, Record, _Mark]]
    ) -> None:
        moment, back = rfc3339(self._rules.now), []
        self._log("deleting", source, folder, [record for _, record, _ in going])
        self._ledger.mark_pruned(source, folder, [fact.name for fact, _, _ in going], moment)
        for fact, record, mark in going:
            try:
                if _mark(os.stat(fact.name, dir_fd=at, follow_symlinks=False)) != mark:
                    raise _Kept("changed")
                os.unlink(fact.name, dir_fd=at)
            except _Kept as kept:
                back.append((fact, record, kept.reason))
            except OSError:
                back.append((fact, record, "unreadable"))
            else:
                self._say(source, fact, "")
        if back:
            self._log("not deleted", source, folder, [record for _, record, _ in back])
            self._ledger.mark_pruned(source, folder, [fact.name for fact, _, _ in back], "")
            for fact, _, reason in back:
                self._say(source, fact, reason)

    def _log(self, what: str, source: str, folder: str, records: Sequence[Record]) -> None:
        lines = [
            json.dumps(
                {
                    "what": what, "time": rfc3339(self._rules.now), "source": source,
                    "path": intake.below(folder, record.name), "bytes": record.size,
                    "batch": record.batch, "source_digest": record.digest,
                }
            )
            for record in records
        ]  # fmt: skip
        try:
            line_log.append(self._home.root / LOG, "".join(line + "\n" for line in lines).encode("ascii"))
        except OSError as error:
            raise SettingsError(
                f"{LOG} in the home cannot be written, and nothing is deleted without it",
                hint="Check the disk and its owner.",
            ) from error

    def _say(self, source: str, fact: scan.Fact, reason: str) -> None:
        if reason:
            self._done.kept[reason] += 1
        else:
            self._done.files += 1
            self._done.bytes += fact.size
        self._tell(Outcome(source, intake.below(fact.folder, fact.name), fact.size, reason))


@contextmanager
def _opened(source: str, folder: str) -> Iterator[int]:
    """A folder below a source, opened step by step, so that no step is a link; the source may be one."""
    try:
        at = os.open(source, _FOLDER)
    except OSError as error:
        raise _Kept("unreadable") from error
    try:
        for part in Path(folder).parts:
            try:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            except OSError as error:
                raise _Kept("link" if _is_link(at, part) else "unreadable") from error
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _is_link(at: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _mark(status: os.stat_result) -> _Mark:
    return _Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
