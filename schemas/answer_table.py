"""The table in an answer: rows as the bytes of a Parquet file. Pure.

Guarantees: one way to write it on both sides; `FormatError` says, without a value of any row, what a table
cannot be in an answer.

Leaves to others: how many rows and bytes an answer may have.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import FormatError


def distinct(names: Sequence[str]) -> None:
    """Raise `FormatError` if two columns have one name."""
    if len(set(names)) != len(names):
        raise FormatError("two columns of the result have the same name: give them others with AS")


def to_parquet(table: pa.Table, *, quick: bool = False) -> bytes:
    """A table as Parquet; raises `FormatError` if a column has a type Parquet does not know.

    Args:
        table: the rows.
        quick: in half the time, and a sixth longer.
    """
    sink = pa.BufferOutputStream()
    try:
        # Statistics help to skip rows of a file that is kept: here they would be a quarter of the bytes.
        way = "snappy" if quick else "zstd"
        pq.write_table(table, sink, compression=way, use_dictionary=not quick, write_statistics=False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        # Every way in which Arrow says that there is no such type; what it says may hold values of rows.
        raise FormatError("a column has a type an answer cannot hold: cast it") from None
    found: bytes = sink.getvalue().to_pybytes()
    return found
