"""The Merkle tree of RFC 6962 section 2.1 over a growing list, and entries in bundles (c2sp.org/tlog-tiles).

Guarantees: a `Range` is the whole tree in at most 62 hashes: those of complete subtrees, largest first.
Adding entries to it gives the range, and the root, of the longer list. So whoever kept the range of a list
and is given what follows has the best of consistency proofs: the root he computes is the one the other
side signed, or what he knew is not its beginning any more.

Pure. Leaves to others: who signed a root, where entries lie (`central_store.receipt_log`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.errors import FormatError

TILE = 256
"""Entries in a full bundle."""
MAX_SIZE = 1 << 62
_LENGTH = struct.Struct(">H")
MAX_ENTRY = (1 << 16) - 1
EMPTY = hashlib.sha256(b"").digest()


def leaf(entry: bytes) -> bytes:
    """Hash of one entry: SHA-256 of 00 and its bytes."""
    return hashlib.sha256(b"\0" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Hash over two subtrees: SHA-256 of 01 and their hashes."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True)
class Range:
    """A list of `size` entries, as the hashes of its complete subtrees; raises `FormatError` for others."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        fits = 0 <= self.size < MAX_SIZE and len(self.hashes) == self.size.bit_count()
        if not fits or any(len(item) != 32 for item in self.hashes):
            raise FormatError("this is no range of a Merkle tree")

    def extended(self, entries: Iterable[bytes]) -> Range:
        """The range of the list with these entries behind it."""
        size, hashes = self.size, list(self.hashes)
        for entry in entries:
            new, rest = leaf(entry), size
            while rest & 1:
                new, rest = node(hashes.pop(), new), rest >> 1
            hashes.append(new)
            size += 1
        return Range(size, tuple(hashes))

    @property
    def root(self) -> bytes:
        """The tree's hash, 32 bytes."""
        if not self.hashes:
            return EMPTY
        *others, root = self.hashes
        for left in reversed(others):
            root = node(left, root)
        return root


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries behind each other, each after its length in two bytes, big-endian; raises `FormatError`."""
    parts = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise FormatError("an entry is too long for a log")
        parts += [_LENGTH.pack(len(entry)), entry]
    return b"".join(parts)


def unbundle(data: bytes) -> list[bytes]:
    """The entries of a bundle, at most `TILE`; raises `FormatError`."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data) or len(entries) == TILE:
            raise FormatError("this is no bundle of log entries")
        entries.append(data[at + 2 : end])
        at = end
    return entries


def bundle_path(number: int) -> str:
    """Where a bundle lies: its number in groups of three digits, all but the last behind an x."""
    groups = f"{number:03d}"
    groups = groups.zfill(-(-len(groups) // 3) * 3)
    split = [groups[i : i + 3] for i in range(0, len(groups), 3)]
    return "/".join(["tile", "entries", *(f"x{group}" for group in split[:-1]), split[-1]])
