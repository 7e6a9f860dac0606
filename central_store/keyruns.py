"""Sorted files of 64-bit keys and row numbers: a look-up that neither memory nor time notices growing.

    <n> keys, unsigned 64-bit little-endian, ascending
    <n> numbers, unsigned 32-bit
    fences: every 512th key, from the first on

Guarantees: a run is written whole and never changed; a look-up reads one page of keys and, if it finds the
key, its number: the fences, a thousandth of the file, are in memory and say which page. Merging reads and
writes slice by slice, so its memory does not follow the runs. Files are read, not mapped: a page that is
touched brings fifteen others that would count as memory of ours, and a disk that fails is an error.

Leaves to others: which runs there are, and what a number means (`central_store.lookups`). Two rows may have
the same key: who looks up compares the values themselves.
"""

from __future__ import annotations

import errno
import os
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import Damaged
from schemas.transit import durable

_ENTRY = 12
_FENCE = 512
"""Keys of a page, and so from one fence to the next."""
_AT_ONCE = 1024
"""Keys that are looked for at once: for each a page may be read."""
_SLICE = 1 << 20
"""Entries merged at once."""
SHAPE = f"keys, numbers, every {_FENCE}th key"
"""What changes when a run is written otherwise."""
_MANY = 24
"""Keys from which on Arrow, which takes a step for all of them at once, is quicker."""

Span = tuple[int, int]
"""From where on, and how many."""


class Sorted:
    """Keys in ascending order, in memory: unsigned 64-bit."""

    def __init__(self, keys: pa.Array) -> None:
        self._array, self._keys = keys, _bytes(keys).cast("Q")

    def __len__(self) -> int:
        """How many."""
        return len(self._keys)

    def places(self, keys: Sequence[int]) -> Iterator[int]:
        """The places of all entries with one of these keys, which ascend."""
        starts: Sequence[int]
        if len(keys) > _MANY and self._keys:
            wanted = pa.array(keys, pa.uint64())
            found = pc.search_sorted(self._array, wanted)
            last = pa.scalar(len(self._keys) - 1, found.type)
            there = pc.equal(self._array.take(pc.min_element_wise(found, last)), wanted)
            # Few are there, of the keys of a new batch.
            keys, starts = wanted.filter(there).to_pylist(), found.filter(there).to_pylist()
        else:
            starts = [bisect_left(self._keys, key) for key in keys]
        mine, entries = self._keys, len(self._keys)
        for key, start in zip(keys, starts, strict=True):
            at = start
            while at < entries and mine[at] == key:
                yield at
                at += 1

    def spans(self, keys: Sequence[int]) -> set[tuple[int, int]]:
        """For each key how many are less, and how many are not greater."""
        if len(keys) > _MANY:
            wanted = pa.array(keys, pa.uint64())
            ends = (pc.search_sorted(self._array, wanted, side=side) for side in ("left", "right"))
            return {*zip(*(end.to_pylist() for end in ends), strict=True)}
        return {(bisect_left(self._keys, key), bisect_right(self._keys, key)) for key in keys}


class Numbered(Sorted):
    """Keys in ascending order, in memory, and the number of each: unsigned 64-bit."""

    def __init__(self, keys: pa.Array, numbers: pa.Array) -> None:
        super().__init__(keys)
        self._numbers = _bytes(numbers).cast("Q")

    def find(self, keys: Sequence[int]) -> list[int]:
        """The numbers of all entries with one of these keys, which ascend."""
        return [self._numbers[at] for at in self.places(keys)]


class Recent(Numbered):
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


class Run:
    """One open run.

    Args:
        path: the file.
        entries: how many it must have.

    Raises:
        Damaged: it is missing, or of another size.
    """

    def __init__(self, path: Path, entries: int) -> None:
        self.path, self._entries = path, entries
        front = entries * _ENTRY
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise Damaged("a look-up of the catalog is missing") from None
        self.close = weakref.finalize(self, os.close, self._file)
        """Nothing is looked for here any more."""
        if os.fstat(self._file).st_size != front + _fences(entries) * 8:
            raise Damaged("a look-up of the catalog has another size")
        self.fences = self._read(pa.uint64(), front, [(0, _fences(entries))])
        self._fences = Sorted(self.fences)

    def __len__(self) -> int:
        """How many entries."""
        return self._entries

    def find(self, keys: Sequence[int]) -> list[int]:
        """The numbers of all entries with one of these keys, which ascend; raises `OSError`."""
        found: list[int] = []
        for at in range(0, len(keys), _AT_ONCE):
            if places := self._places(keys[at : at + _AT_ONCE]):
                found += self.numbers(*_together(places)).to_pylist()
        return found

    def _places(self, keys: Sequence[int]) -> list[int]:
        # A key stands behind the last fence below it, and at the next one at the latest.
        spans = self._fences.spans(keys)
        pages = sorted({page for low, high in spans for page in range(max(low - 1, 0), high)})
        if not pages:
            return []
        read = self.keys(*((page * _FENCE, count * _FENCE) for page, count in _together(pages)))
        return [pages[at // _FENCE] * _FENCE + at % _FENCE for at in Sorted(read).places(keys)]

    def start(self, key: int) -> int:
        """Where a key stands, or would; raises `OSError`."""
        ((below, _),) = self._fences.spans([key])
        page = max(below - 1, 0)
        ((start, _),) = Sorted(self.keys((page * _FENCE, _FENCE))).spans([key])
        return page * _FENCE + start

    def keys(self, *spans: Span) -> pa.Array:
        """The keys that lie there, up to the end; raises `OSError`."""
        entries = self._entries
        return self._read(pa.uint64(), 0, [(at, min(count, entries - at)) for at, count in spans])

    def numbers(self, *spans: Span) -> pa.Array:
        """The numbers that lie there; raises `OSError`."""
        return self._read(pa.uint32(), self._entries * 8, spans)

    def _read(self, kind: pa.DataType, front: int, spans: Sequence[Span]) -> pa.Array:
        """Values of this type behind a front, one span after the other."""
        width, entries, at = kind.byte_width, sum(count for _, count in spans), 0
        buffer = pa.allocate_buffer(entries * width)  # of Arrow's memory, which need not come from the system
        into = memoryview(buffer)
        for place, count in spans:
            end = at + count * width
            if os.preadv(self._file, [into[at:end]], front + place * width) != end - at:
                raise OSError(errno.EIO, "a look-up of the catalog has become shorter")
            at = end
        return pa.Array.from_buffers(kind, entries, [None, buffer])


def _together(ascending: Iterable[int]) -> list[Span]:
    """Where numbers that follow each other begin, and how many they are."""
    found: list[Span] = []
    for number in ascending:
        if found and sum(found[-1]) == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


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
    total = sum(map(len, runs))
    cuts = _cuts(runs)

    def write_slices(sink: BinaryIO) -> None:
        done, fences = 0, []
        for begin, end in pairwise(zip(*cuts, strict=True)):
            if stopped():
                raise Stopped
            spans = [(run, at, to - at) for run, at, to in zip(runs, begin, end, strict=True)]
            keys = pa.concat_arrays([run.keys((at, count)) for run, at, count in spans])
            numbers = pa.concat_arrays([run.numbers((at, count)) for run, at, count in spans])
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
    return [[0, *map(run.start, bounds.to_pylist()), len(run)] for run in runs]


def _bytes(values: pa.Array) -> memoryview:
    """The values as they lie in memory, without a copy."""
    size = values.type.byte_width
    return memoryview(values.buffers()[1])[values.offset * size : (values.offset + len(values)) * size]
