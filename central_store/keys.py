"""What look-ups are asked by: a value as 64 bits. Pure.

A key is 64 bits of the value's MD5, which DuckDB and Python both have; nothing rests on nobody finding two
values with one key. Of the kinds `WITHIN`, which are looked for within a facility, its first 12 bits are the
facility's: what a facility's next batch is compared with lies together, and not on a page for each key. A
kind of `OBJECTS` leads to numbers of objects; tokens to those of studies, as their UIDs do.

Guarantees: `key` and `key_sql` are the same; a test compares them.

Leaves to others: looking them up (`central_store.lookups`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from schemas import columns
from schemas.conditions import ENTITIES, TOKEN

OBJECTS: tuple[str, ...] = tuple(c.name for c in columns.COLUMNS if c.distinct)
WITHIN: tuple[str, ...] = ("source_digest", "sop_instance_uid")
KINDS: tuple[str, ...] = (*OBJECTS, *ENTITIES, TOKEN)

_VALUE_BITS = 52
_OWNER = ((1 << 64) - 1) ^ ((1 << _VALUE_BITS) - 1)


def key(value: str | None) -> int:
    """The key of a value; `key_sql` says the same in SQL."""
    digest = hashlib.md5((value or "").encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little")


def keys(kind: str, values: Iterable[str | None], owners: Iterable[str]) -> list[int]:
    """The keys of values of this kind, ascending; of the kinds `WITHIN`, those of each owner."""
    plain = {*map(key, values)}
    if kind not in WITHIN:
        return sorted(plain)
    return sorted({each for owner in map(key, owners) for each in _within(owner, plain)})


def _within(owner: int, plain: Iterable[int]) -> list[int]:
    mine = owner & _OWNER
    return [mine | (each >> (64 - _VALUE_BITS)) for each in plain]


def key_sql(kind: str, value: str) -> str:
    """The key of a value as an expression; of the kinds `WITHIN`, of a column `facility` too."""
    plain = f"md5_number_lower(coalesce({value}, ''))"
    if kind not in WITHIN:
        return plain
    return f"((md5_number_lower(facility) & {_OWNER}::UBIGINT) | ({plain} >> {64 - _VALUE_BITS}))"


def of_batch(objects: pa.Table, parts: pa.Table) -> pa.Table:
    """What look-ups need to know of a batch: `kind`, `key` and `number`, sorted by the first two.

    Args:
        objects: its objects, with their numbers.
        parts: its parts, with the numbers of their studies and series.
    """
    owner, numbers = key(parts["facility"][0].as_py()), objects["number"]
    found: dict[str, tuple[list[int], pa.ChunkedArray | list[int]]] = {}
    for kind in OBJECTS:
        plain = [key(value) for value in objects[kind].to_pylist()]
        found[kind] = (_within(owner, plain) if kind in WITHIN else plain, numbers)
    for kind, number in ENTITIES.items():
        first = parts.filter(pc.equal(parts[number], parts["part"]))  # the others are known
        found[kind] = ([key(uid) for uid in first[kind].to_pylist()], first["part"])
    studies = parts["study"].to_pylist()
    tokens = {
        (token, study)
        for column in columns.tokens()
        for study, several in zip(studies, parts[column.name].to_pylist(), strict=True)
        for token in several
    }
    found[TOKEN] = ([key(token) for token, _ in tokens], [study for _, study in tokens])
    return pa.concat_tables([_sorted(kind, *found[kind]) for kind in sorted(found)])


def _sorted(kind: str, found: list[int], numbers: pa.ChunkedArray | list[int]) -> pa.Table:
    made = pa.array(found, pa.uint64())
    order = pc.array_sort_indices(made)
    rows = numbers.combine_chunks() if isinstance(numbers, pa.ChunkedArray) else pa.array(numbers, pa.int64())
    kinds = pa.array([kind], pa.string()).take(pa.array([0] * len(found), pa.int8()))
    return pa.table({"kind": kinds, "key": made.take(order), "number": rows.cast(pa.uint64()).take(order)})
