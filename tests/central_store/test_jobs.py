"""Whose finished work is taken when: nobody waits behind others that finish again and again."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from central_store import settings
from central_store.jobs import Jobs


class Worker:
    """A worker as `Jobs` sees it, whose job ends when the test says so."""

    def __init__(self) -> None:
        self.pipe, self._theirs = Pipe()
        self.job: Any = "work"

    def finish(self) -> None:
        self.job = "work"
        self._theirs.send("done")

    def close(self) -> None:
        self.pipe.close()

    def take(self) -> None:
        """What the service does with a worker that `next` gave it."""
        self.job = None
        self.pipe.recv()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(settings.init(tmp_path / "store", name="central", host="127.0.0.1", port=1))
    yield made
    made.close()


def crews(jobs: Jobs) -> tuple[list[Worker], Worker]:
    """Two workers that verify and one that packs, in place of processes."""
    verifying, packing = [Worker(), Worker()], Worker()
    for crew, workers in ((jobs._crew, verifying), (jobs._packers, [packing])):
        for worker in crew.workers:
            worker.close()
        crew.workers = workers  # type: ignore[assignment]
    return verifying, packing


def test_a_fetch_does_not_wait_behind_batches_that_are_verified_one_after_another(jobs: Jobs) -> None:
    verifying, packing = crews(jobs)
    for worker in (*verifying, packing):
        worker.finish()
    taken = []
    for _ in range(3):
        found: Any = jobs.next([], 1)
        taken.append(found)
        found.take()
        if found is not packing:
            found.finish()  # the next batch, at once
    assert packing in taken


def test_a_bell_goes_first_but_not_twice_in_a_row(jobs: Jobs) -> None:
    _, packing = crews(jobs)
    bell, ringer = Pipe()
    ringer.send("!")
    packing.finish()
    assert jobs.next([bell], 1) is None
    assert jobs.next([bell], 1) is packing  # type: ignore[comparison-overlap]
    packing.take()
    assert jobs.next([bell], 1) is None
