"""What was read and compared, when, and how it came out: one Parquet file for each run, kept.

    checks/<time the run began>.parquet     facility, batch, started, finished, bytes, outcome

Guarantees: a file appears whole, in the place of the one with fewer rows, every half minute and when the run
ends, however it ends; a run that is killed loses at most that half minute, which the next run reads again.

Leaves to others: reading packs (`central_store.check`). Any program that reads Parquet reads these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from central_store.batches import Batch
from central_store.layout import Layout
from schemas.names import BatchId
from schemas.transit import durable

_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema([
    pa.field("facility", pa.string(), nullable=False), pa.field("batch", pa.string(), nullable=False),
    pa.field("started", _TIME, nullable=False), pa.field("finished", _TIME, nullable=False),
    pa.field("bytes", pa.int64(), nullable=False), pa.field("outcome", pa.string(), nullable=False),
])  # fmt: skip
"""Columns of a run's file; `outcome` is `ok`, `resent`, or a code of `check.CODES`."""

OK, RESENT = "ok", "resent"
_EVERY = 30.0


class Result(NamedTuple):
    """How one batch came out."""

    facility: str
    batch: str
    started: datetime
    finished: datetime
    bytes: int
    outcome: str


class Run:
    """The results of a run under way; a context manager that publishes what there is at its end.

    Args:
        layout: the store.
        started: when the run began.
        monotonic: seconds.
    """

    def __init__(self, layout: Layout, started: datetime, monotonic: Callable[[], float]) -> None:
        self._path = layout.checks / f"{started:%Y%m%dT%H%M%S%f}Z.parquet"
        self._monotonic = monotonic
        self._published = monotonic()
        self._results: list[Result] = []

    @property
    def name(self) -> str:
        """The name of the run's file."""
        return self._path.name

    def __enter__(self) -> Run:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Publish what there is, whatever ended the run."""
        self.publish()

    def add(self, result: Result) -> None:
        """One more batch."""
        self._results.append(result)
        if self._monotonic() - self._published > _EVERY:
            self.publish()

    def publish(self) -> None:
        """Put the results so far into the run's file."""
        if self._results:
            rows = [result._asdict() for result in self._results]
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
            durable.publish(self._path, sink.getvalue().to_pybytes(), replace=True)
        self._published = self._monotonic()


def least_recent_first(layout: Layout, known: Collection[Batch]) -> list[Batch]:
    """The batches in the order a run takes them: never checked ones first, then by their last check."""
    last = _last_checked(sorted(layout.checks.glob("*.parquet"), reverse=True), {b.batch for b in known})
    return sorted(known, key=lambda batch: (last.get(batch.batch, ""), batch))


def _last_checked(files: Iterable[Path], wanted: set[BatchId]) -> dict[str, str]:
    """The newest run of each batch, by the name of its file; a file that cannot be read says nothing."""
    last: dict[str, str] = {}
    for path in files:
        if len(last) == len(wanted):
            break
        try:
            found = pq.read_table(path, columns=["batch"], use_threads=False).column("batch").to_pylist()
        except (pa.ArrowException, OSError):
            continue
        for number, batch in enumerate(found):
            if batch in wanted:
                last.setdefault(batch, f"{path.stem} {number:09}")
    return last
