"""Sorted files of 64-bit keys and row numbers: a look-up that neither memory nor time notices growing.

    <n> keys, unsigned 64-bit little-endian, ascending     then     <n> numbers, unsigned 32-bit

Guarantees: a run is written whole and never changed; a look-up touches a few pages of it, because keys are
hashes and so lie where their value says. Keys that somebody chose to lie together are found too, by halving.
Merging reads and writes slice by slice, so its memory does not follow the runs.

Leaves to others: which runs there are, and what a number means (`central_store.lookups`). Two rows may have
the same key: who looks up compares the values themselves.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import Damaged
from schemas.transit import durable

_ENTRY = 12
_SPAN = 1 << 64
_SLICE = 1 << 20
"""Entries merged at once."""
_MANY = 24
"""Keys from which on Arrow, which halves over all entries, is quicker than halving a window here."""


class Sorted:
    """Keys in ascending order and their numbers: in memory, or in a mapped file.

    Args:
        keys: unsigned 64-bit.
        numbers: as many, unsigned, of 32 or 64 bits.
    """

    def __init__(self, keys: pa.Array, numbers: pa.Array) -> None:
        self.columns = keys, numbers
        self.keys = _bytes(keys).cast("Q")
        self._numbers = _bytes(numbers).cast("Q" if numbers.type == pa.uint64() else "I")
        self.entries = len(keys)
        self._window = 3 * int(self.entries**0.5) + 8

    def find(self, keys: Sequence[int]) -> list[int]:
        """The numbers of all entries with one of these keys, which ascend."""
        starts = self._starts_of_many(keys) if len(keys) > _MANY else map(self._start, keys)
        found, mine, entries = [], self.keys, self.entries
        for key, start in zip(keys, starts, strict=True):
            at = start
            while at < entries and mine[at] == key:
                found.append(self._numbers[at])
                at += 1
        return found

    def _start(self, key: int) -> int:
        """Where a key stands, or would."""
        mine, entries, window = self.keys, self.entries, self._window
        guess = key * entries // _SPAN
        low, high = max(0, guess - window), min(entries, guess + window)
        if (low and mine[low - 1] >= key) or (high < entries and mine[high] < key):
            low, high = 0, entries
        return bisect_left(mine, key, low, high)

    def _starts_of_many(self, keys: Sequence[int]) -> list[int]:
        found: list[int] = pc.search_sorted(self.columns[0], pa.array(keys, pa.uint64())).to_pylist()
        return found


class Recent(Sorted):
    """Entries in memory.

    Args:
        rows: columns `key`, in ascending order, and `number`, both unsigned 64-bit.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows.combine_chunks()
        super().__init__(*(self.rows[name].chunk(0) for name in ("key", "number")))

    def __add__(self, other: Recent) -> Recent:
        """All entries of both."""
        both = pa.concat_tables([self.rows, other.rows])
        return Recent(both.take(pc.sort_indices(both["key"])))


class Run(Sorted):
    """One open run.

    Args:
        path: the file.
        entries: how many it must have.

    Raises:
        Damaged: it is missing, or of another size.
    """

    def __init__(self, path: Path, entries: int) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != entries * _ENTRY:
                    raise Damaged("a look-up of the catalog has another size")
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except FileNotFoundError:
            raise Damaged("a look-up of the catalog is missing") from None
        self._map.madvise(mmap.MADV_RANDOM)
        buffer, front = pa.py_buffer(self._map), entries * 8
        super().__init__(
            pa.Array.from_buffers(pa.uint64(), entries, [None, buffer.slice(0, front)]),
            pa.Array.from_buffers(pa.uint32(), entries, [None, buffer.slice(front)]),
        )


def write(path: Path, keys: pa.Array, numbers: pa.Array) -> None:
    """Write one run; keys ascending."""

    def both(sink: BinaryIO) -> None:
        sink.write(_bytes(keys.cast(pa.uint64())))
        sink.write(_bytes(numbers.cast(pa.uint32())))

    durable.publish(path, both, replace=True)


def merge(runs: Sequence[Run], path: Path, stopped: Callable[[], bool]) -> int:
    """Make one run of several; returns its entries.

    Raises:
        Stopped: `stopped` said so; there is no file.
    """
    total = sum(run.entries for run in runs)
    slices = total // _SLICE + 1
    cuts = [_cuts(run, slices) for run in runs]

    def write_slices(sink: BinaryIO) -> None:
        done = 0
        for n in range(slices):
            if stopped():
                raise Stopped
            spans = [(run, cut[n], cut[n + 1] - cut[n]) for run, cut in zip(runs, cuts, strict=True)]
            keys, numbers = (
                pa.concat_arrays([run.columns[which].slice(*span) for run, *span in spans])
                for which in (0, 1)
            )
            order = pc.sort_indices(keys)
            sink.seek(done * 8)
            sink.write(_bytes(keys.take(order)))
            sink.seek(total * 8 + done * 4)
            sink.write(_bytes(numbers.take(order)))
            done += len(keys)

    durable.publish(path, write_slices, replace=True)
    return total


class Stopped(Exception):
    """A merge was told to stop."""


def _cuts(run: Run, slices: int) -> list[int]:
    """Where each slice of the key space begins in a run, and the end."""
    return [*(bisect_left(run.keys, n * _SPAN // slices) for n in range(slices)), run.entries]


def _bytes(values: pa.Array) -> memoryview:
    """The values as they lie in memory, without a copy."""
    size = values.type.byte_width
    return memoryview(values.buffers()[1])[values.offset * size : (values.offset + len(values)) * size]
