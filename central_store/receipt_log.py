"""A log on disk: every receipt a store gave, in order, never changed, only added to.

    head                    canonical JSON: size, subtree hashes, root; LF; entries after the last full bundle
    tile/entries/x001/234   256 entries (c2sp.org/tlog-tiles, entry bundles)              immutable

An entry is a receipt, LF, and its SSHSIG: the log alone proves what the store holds. A store keeps its own
log and, for each peer, the beginning of the peer's that it followed.

Order: full bundles, then the head, which is the commit; a bundle that the head does not speak of yet is
written again. So a log may grow by many pieces before they count (`Growing`), and a stop before that leaves
the log as it was. Guarantees: what `head` names is there after a power cut; one writer (the service).

Leaves to others: what may stand in a log (`central_store.ingest`, `central_store.talk`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from schemas import merkle
from schemas.container import Signed, verify
from schemas.errors import Damaged, FormatError
from schemas.merkle import TILE, Range
from schemas.messages import Receipt, canonical, parse
from schemas.names import BatchId
from schemas.transit import durable


class Entry(NamedTuple):
    """A receipt and its signature, not verified."""

    receipt: Receipt
    signed: Signed


def encode(data: bytes, armor: str) -> bytes:
    """An entry's bytes."""
    return data + b"\n" + armor.encode("ascii", "replace")


def decode(entry: bytes) -> Entry:
    """An entry from its bytes; raises `FormatError`."""
    data, _, armor = entry.partition(b"\n")
    message = parse(data)
    if not isinstance(message, Receipt):
        raise FormatError("an entry of the log is no receipt")
    return Entry(message, Signed(message, data, armor.decode("ascii", "replace")))


_BATCH = re.compile(rb'"batch":"([0-9a-f]{64})"')


def batch_of(entry: bytes) -> BatchId:
    """The batch an entry is about, without reading the rest of it; raises `FormatError`."""
    found = _BATCH.search(entry)  # of canonical JSON whose values hold no quotation mark
    return decode(entry).receipt.batch if found is None else BatchId(found[1].decode("ascii"))


def verified(data: str, armor: str, signer: str) -> Entry:
    """An entry as another store sent it, its signature checked; raises `FormatError`, `SealError`."""
    signed = verify(data.encode("utf-8"), armor, signer)
    if not isinstance(signed.message, Receipt):
        raise FormatError("an entry of the log is no receipt")
    return Entry(signed.message, signed)


class ReceiptLog:
    """One log; reads the disk at every call.

    Args:
        folder: where it lies; made by the first `append`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return (self._folder / "head").exists()

    def range(self) -> Range:
        """Size and subtree hashes; raises `Damaged`."""
        return self._load()[0]

    def entries(self, start: int, stop: int) -> Iterator[bytes]:
        """Entries of these numbers, as far as there are; raises `Damaged`."""
        known, tail = self._load()
        stop = min(stop, known.size)
        full = known.size - len(tail)
        while start < min(stop, full):
            first = start // TILE * TILE
            found = self._bundle(start // TILE)
            yield from found[start - first : stop - first]
            start = first + TILE
        if start < stop:
            yield from tail[start - full : stop - full]

    def append(self, entries: Sequence[bytes]) -> Range:
        """Add entries; they are there for good when this returns."""
        growing = self.growing()
        growing.add(entries)
        growing.commit()
        return growing.range

    def growing(self) -> Growing:
        """This log with more behind it, which counts when it is committed; raises `Damaged`."""
        return Growing(self._folder, *self._load())

    def _load(self) -> tuple[Range, list[bytes]]:
        try:
            first, _, rest = (self._folder / "head").read_bytes().partition(b"\n")
        except FileNotFoundError:
            return Range(), []
        try:
            found = json.loads(first)
            known = Range(found["size"], tuple(bytes.fromhex(item) for item in found["hashes"]))
            tail = merkle.unbundle(rest)
        except (ValueError, KeyError, TypeError, FormatError) as error:
            raise Damaged("the head of a log cannot be read") from error
        if (known.size - len(tail)) % TILE or known.root.hex() != found["root"]:
            raise Damaged("the head of a log does not fit itself")
        return known, tail

    def _bundle(self, number: int) -> list[bytes]:
        try:
            found = merkle.unbundle((self._folder / merkle.bundle_path(number)).read_bytes())
        except (FileNotFoundError, FormatError) as error:
            raise Damaged("a bundle of a log cannot be read") from error
        if len(found) != TILE:
            raise Damaged("a bundle of a log is not full")
        return found


class Growing:
    """A log that gets longer piece by piece; holds less than a bundle in memory.

    Args:
        folder: where it lies.
        known: the log as its head says.
        tail: the entries behind its last full bundle.
    """

    def __init__(self, folder: Path, known: Range, tail: list[bytes]) -> None:
        self._folder, self._tail = folder, tail
        self.began = self.range = known

    def add(self, entries: Sequence[bytes]) -> None:
        """Put entries behind it; what fills bundles is written, and counts for nobody yet."""
        self.range, self._tail = self.range.extended(entries), self._tail + list(entries)
        number = (self.range.size - len(self._tail)) // TILE
        while len(self._tail) >= TILE:
            path = self._folder / merkle.bundle_path(number)
            durable.make_dirs(path.parent, mode=0o755)
            durable.publish(path, merkle.bundle(self._tail[:TILE]), replace=True)
            self._tail, number = self._tail[TILE:], number + 1

    def commit(self) -> None:
        """Write the head: from now on this is the log, for good."""
        durable.make_dirs(self._folder, mode=0o755)
        head = {
            "size": self.range.size,
            "hashes": [item.hex() for item in self.range.hashes],
            "root": self.range.root.hex(),
        }
        data = canonical(head) + b"\n" + merkle.bundle(self._tail)
        durable.publish(self._folder / "head", data, replace=True)
