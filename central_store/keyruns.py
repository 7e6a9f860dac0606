"""Sorted files of 64-bit keys and row numbers: a look-up that neither memory nor time notices growing.

    <n> keys, unsigned 64-bit little-endian, ascending
    <n> numbers, unsigned 32-bit
    fences: every 512th key, from the first on

Guarantees: a run is written whole and never changed; a look-up touches one page of keys and, if it finds the
key, one of numbers: the fences, a thousandth of the file, are in memory and say which. Merging reads and
writes slice by slice, so its memory does not follow the runs.

Leaves to others: which runs there are, and what a number means (`central_store.lookups`). Two rows may have
the same key: who looks up compares the values themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from central_store import mapped
from schemas.errors import Damaged
from schemas.transit import durable

_ENTRY = 12
_FENCE = 512
"""Keys of a page, and so from one fence to the next."""
_SLICE = 1 << 20
"""Entries merged at once."""
SHAPE = f"keys, numbers, every {_FENCE}th key"
"""What changes when a run is written otherwise."""
_MANY = 24
"""Keys from which on Arrow, which takes a step for all of them at once, is quicker."""


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

    def find(self, keys: Sequence[int]) -> list[int]:
        """The numbers of all entries with one of these keys, which ascend."""
        if len(keys) > _MANY:
            wanted = pa.array(keys, pa.uint64())
            starts = self._starts(wanted)
            there = pc.equal(self._at(starts), wanted)  # few are, of the keys of a new batch
            keys, starts = wanted.filter(there).to_pylist(), starts.filter(there).to_pylist()
        else:
            starts = [self._start(key) for key in keys]
        found, mine, entries = [], self.keys, self.entries
        for key, start in zip(keys, starts, strict=True):
            at = start
            while at < entries and mine[at] == key:
                found.append(self._numbers[at])
                at += 1
        return found

    def _at(self, places: pa.Array) -> pa.Array:
        """The keys at these places; behind the end, the last."""
        return pc.take(self.columns[0], pc.min_element_wise(places, pa.scalar(self.entries - 1, pa.uint64())))

    def _start(self, key: int) -> int:
        """Where a key stands, or would."""
        return bisect_left(self.keys, key)

    def _starts(self, keys: pa.Array) -> pa.Array:
        """The same for many."""
        return pc.search_sorted(self.columns[0], keys)


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
        together: what is looked for at once lies together, so that the system may read ahead.

    Raises:
        Damaged: it is missing, or of another size.
    """

    def __init__(self, path: Path, entries: int, *, together: bool = False) -> None:
        self.path = path
        front = entries * _ENTRY
        try:
            self._map = mapped.opened(path, together=together)
        except (FileNotFoundError, ValueError):
            raise Damaged("a look-up of the catalog is missing") from None
        if len(self._map) != front + _fences(entries) * 8:
            raise Damaged("a look-up of the catalog has another size")
        fences = self._map[front:]
        self._fences = memoryview(fences).cast("Q")
        self.fences = pa.Array.from_buffers(pa.uint64(), len(self._fences), [None, pa.py_buffer(fences)])
        buffer, keys = pa.py_buffer(self._map), entries * 8
        super().__init__(
            pa.Array.from_buffers(pa.uint64(), entries, [None, buffer.slice(0, keys)]),
            pa.Array.from_buffers(pa.uint32(), entries, [None, buffer.slice(keys, entries * 4)]),
        )

    def release(self) -> None:
        """Give the pages back that were touched."""
        mapped.release(self._map)

    # A key stands behind the last fence below it, and at the next one at the latest.

    def _start(self, key: int) -> int:
        fence = bisect_left(self._fences, key)
        if not fence:
            return 0
        return bisect_left(self.keys, key, (fence - 1) * _FENCE + 1, min(fence * _FENCE, self.entries))

    def _starts(self, keys: pa.Array) -> pa.Array:
        fences = pc.search_sorted(self.fences, keys)
        low = pc.subtract(pc.multiply(pc.max_element_wise(fences, _ONE), _WIDE), _BEFORE)
        places, step = pc.if_else(pc.equal(fences, _ZERO), _ZERO, low), _FENCE // 2
        while step:
            below = pc.less(self._at(pc.add(places, pa.scalar(step - 1, pa.uint64()))), keys)
            places = pc.if_else(below, pc.add(places, pa.scalar(step, pa.uint64())), places)
            step //= 2
        return pc.min_element_wise(places, pa.scalar(self.entries, pa.uint64()))


_ZERO, _ONE, _WIDE, _BEFORE = (pa.scalar(number, pa.uint64()) for number in (0, 1, _FENCE, _FENCE - 1))


def _fences(entries: int) -> int:
    return -(-entries // _FENCE)


def write(path: Path, keys: pa.Array, numbers: pa.Array) -> None:
    """Write one run; keys ascending."""

    def all_three(sink: BinaryIO) -> None:
        sorted_keys = keys.cast(pa.uint64())
        sink.write(_bytes(sorted_keys))
        sink.write(_bytes(numbers.cast(pa.uint32())))
        sink.write(_bytes(_every(sorted_keys, 0)))

    durable.publish(path, all_three, replace=True)


def _every(keys: pa.Array, before: int) -> pa.Array:
    """The fences among these keys, which stand behind so many others."""
    return pc.take(keys, pa.array(range(-before % _FENCE, len(keys), _FENCE), pa.int64()))


def merge(runs: Sequence[Run], path: Path, stopped: Callable[[], bool]) -> int:
    """Make one run of several; returns its entries.

    Raises:
        Stopped: `stopped` said so; there is no file.
    """
    total = sum(run.entries for run in runs)
    cuts = _cuts(runs)

    def write_slices(sink: BinaryIO) -> None:
        done, fences = 0, []
        for begin, end in pairwise(zip(*cuts, strict=True)):
            if stopped():
                raise Stopped
            spans = [(run, at, to - at) for run, at, to in zip(runs, begin, end, strict=True)]
            keys, numbers = (
                pa.concat_arrays([run.columns[which].slice(*span) for run, *span in spans])
                for which in (0, 1)
            )
            order = pc.sort_indices(keys)
            keys = keys.take(order)
            fences.append(_every(keys, done))
            sink.seek(done * 8)
            sink.write(_bytes(keys))
            sink.seek(total * 8 + done * 4)
            sink.write(_bytes(numbers.take(order)))
            done += len(keys)
        sink.seek(total * _ENTRY)
        sink.write(_bytes(pa.concat_arrays(fences)))

    durable.publish(path, write_slices, replace=True)
    return total


class Stopped(Exception):
    """A merge was told to stop."""


def _cuts(runs: Sequence[Run]) -> list[list[int]]:
    """Where each slice begins in each run, and the end.

    However the keys crowd, a slice has about `_SLICE` entries: there is a fence for each `_FENCE` of them.
    """
    fences = pa.concat_arrays([run.fences for run in runs]).sort()
    bounds = fences.take(pa.array(range(_SLICE // _FENCE, len(fences), _SLICE // _FENCE), pa.int64()))
    return [[0, *(bisect_left(run.keys, bound) for bound in bounds.to_pylist()), run.entries] for run in runs]


def _bytes(values: pa.Array) -> memoryview:
    """The values as they lie in memory, without a copy."""
    size = values.type.byte_width
    return memoryview(values.buffers()[1])[values.offset * size : (values.offset + len(values)) * size]
