"""The power goes, or a writer dies, at any step: what was recorded is in the audit log, and it goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from central_store import audit, audit_segments
from tests.central_store.conftest import Place
from tests.central_store.test_audit import events, problems
from tests.central_store.test_crash_states import distinct
from tests.central_store.test_faults import copy
from tests.kit.batches import NOW
from tests.kit.crash_states import Recorder
from tests.kit.faults import Dead, Disk, Op, Verdict, failing


def acts(place: Place) -> list[Callable[[], object]]:
    """Four events, a segment among them."""
    record = partial(audit.record, place.store.layout, "check", now=NOW)
    one, two, three, four = (partial(record, subject=f"act.{number}") for number in range(4))
    return [one, two, lambda: audit_segments.close(place.store, NOW), three, four]


@pytest.fixture
def torn(place: Place) -> Place:
    """A store whose journal ends with half a line."""
    with audit.journal_path(place.store.layout).open("ab") as journal:
        journal.write(b'{"details":{},"facility":')
    return place


def subjects(place: Place) -> list[str]:
    return [event.subject for event in events(place.store.layout)]


def goes_on(work: Place, promised: list[str]) -> None:
    """What was promised is there once and in order, at most the act under way behind it; the log goes on."""
    layout = work.store.layout
    assert [line for line in problems(work.store) if not line.startswith("journal: its last ")] == []
    audit.record(layout, "start", subject="again", now=NOW)
    assert problems(work.store) == []
    audit_segments.close(work.store, NOW)
    assert problems(work.store) == []
    under_way = f"act.{sum(subject.startswith('act.') for subject in promised)}"
    found = subjects(work)
    assert found[: len(promised)] == promised
    assert found[len(promised) :] in (["again"], [under_way, "again"])
    assert not list(layout.audit.glob("*.damaged"))


@pytest.mark.campaign("faults", small=40, large=1_000_000)
def test_a_power_cut_at_any_moment(
    torn: Place, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    work = copy(torn, tmp_path / "work")
    promises = [(0, subjects(torn))]
    with Recorder(torn.root, ("audit",)) as recorder:
        for act in acts(torn):
            act()
            promises.append((len(recorder.events), subjects(torn)))
    states = list(distinct(recorder.states()))
    assert len(states) > 30, "the operations were not seen"
    for state in random.Random(campaign_seed).sample(states, min(len(states), campaign_size)):
        state.build(work.root)
        goes_on(work, [promised for moment, promised in promises if moment <= state.after][-1])


@pytest.mark.campaign("faults", small=8, large=1_000_000)
def test_killed_at_any_step(torn: Place, tmp_path: Path, campaign_size: int, campaign_seed: int) -> None:
    count = copy(torn, tmp_path / "count")
    with Disk(count.root) as disk:
        for act in acts(count):
            act()
    steps = range(1, disk.count + 1)
    assert len(steps) > 20, "the operations were not seen"
    for at in random.Random(campaign_seed).sample(steps, min(len(steps), campaign_size)):
        here = copy(torn, tmp_path / f"killed.{at}")
        promised = subjects(here)
        with Disk(here.root, before=failing(at, Dead())), suppress(Dead):
            for act in acts(here):
                act()
                promised = subjects(here)
        goes_on(here, promised)


def test_after_a_failed_fsync_the_journal_is_another_file(place: Place) -> None:
    """The kernel may have dropped pages and say nothing the next time: what comes later needs fresh ones."""
    layout, failed = place.store.layout, list[int]()

    def before(op: Op) -> Verdict:
        if op.kind == "fsync" and op.path.endswith("journal.jsonl") and not failed:
            failed.append(op.number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return None

    audit.record(layout, "check", now=NOW)
    former = audit.journal_path(layout).stat().st_ino
    with Disk(place.root, before=before) as disk, pytest.raises(OSError, match="error"):
        audit.record(layout, "check", subject="failed", now=NOW)
    assert failed
    assert disk.kinds["rename"] == 1
    assert audit.journal_path(layout).stat().st_ino != former
    audit.record(layout, "check", now=NOW)
    assert problems(place.store) == []
