"""Every disk a power cut can leave while a batch is taken in, built and started on.

The operations are those of the real code (`tests/kit/crash_states.py` has the model). The second half turns
the test on itself: each line that makes something lasting or visible is left out in turn, and the states must
then show a broken promise; the few that may be left out are named with the reason.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from central_store import batches, damage
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from schemas import names
from schemas.errors import SyncError
from schemas.transit import durable
from tests.central_store.conftest import Place
from tests.central_store.test_crash import take_in
from tests.central_store.test_faults import after, copy, openers, signers
from tests.kit import invariants
from tests.kit.batches import NOW, Made, row
from tests.kit.crash_states import Recorder, State
from tests.kit.faults import Dead, Op, Verdict, failing

OBJECTS = 5
TOUCHED = ("staging", "journal", "manifests", "shelves", "quarantine", "damaged", "objects/packs")
"""The folders whose states count."""


class Scene(NamedTuple):
    """A store with a batch on its shelf."""

    place: Place
    made: Made
    catalog_fails: bool = False


def scene(place: Place, kind: str) -> Scene:
    """A store where a batch lies on the shelf: `new`; `again`: stored, and sent again; `lost`, `damaged`: the
    same, its pack lost, or found damaged; `behind`: new, and the catalog fails.
    """
    durable.make_dirs(place.store.layout.damaged)
    made = place.put(place.a, place.a.batch([row(number) for number in range(OBJECTS)], place.card))
    if kind in ("again", "lost", "damaged"):
        take_in(place)
        (place.outbound(place.a) / f"{made.batch}.receipt").unlink()
        place.put(place.a, made)
    if kind == "lost":
        place.store.layout.pack(made.batch).unlink()
    if kind == "damaged":
        pack = place.store.layout.pack(made.batch)
        batch = batches.Batch(names.facility_name(place.a.name), made.batch)
        assert damage.found(place.store, batch, "pack-bytes", NOW, damage.seen(pack.stat()))
        (place.outbound(place.a) / f"{made.batch}.notice").unlink()  # its facility took it
    return Scene(place, made, kind == "behind")


SCENES = ("new", "again", "lost", "damaged", "behind")


def run(scene: Scene) -> None:
    """The batch is taken in; `behind`: and the catalog does not follow."""
    with pytest.MonkeyPatch.context() as patch:
        if scene.catalog_fails:
            patch.setattr(Catalog, "follow", _fail)
        take_in(scene.place)


def _fail(*_: object) -> None:
    raise CatalogError("the catalog failed")


class Broken(Exception):
    """A promise is broken in a state."""


def hold(scene: Scene, work: Place, state: State) -> None:
    """Start on what the power cut left: what was promised is there, and the batch is stored in the end."""
    state.build(work.root)
    lost = f"batch {scene.made.batch[:8]}: its pack does not open: FileNotFoundError"
    promised = (work.outbound(work.a) / f"{scene.made.batch}.receipt").exists()
    wrong = invariants.promises(work.store, signers(work), openers(work))
    if [line for line in wrong if promised or line != lost]:  # without a receipt, a lost pack comes again
        raise Broken(f"after {state.after}: {wrong}")
    try:
        take_in(work)
        after(work, [scene.made])
    except (AssertionError, OSError, SyncError) as error:
        raise Broken(f"after {state.after}, started again: {error}") from error


def distinct(states: Iterator[State]) -> Iterator[State]:
    seen = set()
    for state in states:
        if state.key not in seen:
            seen.add(state.key)
            yield state


@pytest.mark.campaign("faults", small=1, large=1_000_000)
@pytest.mark.parametrize("kind", SCENES)
def test_a_power_cut_at_any_moment(
    place: Place, tmp_path: Path, kind: str, campaign_size: int, campaign_seed: int
) -> None:
    it = scene(place, kind)
    work = copy(place, tmp_path / "work")
    with Recorder(place.root, TOUCHED) as recorder:
        run(it)
    states = list(distinct(recorder.states()))
    chosen = random.Random(campaign_seed).sample(states, min(len(states), campaign_size))
    for state in chosen:
        hold(it, work, state)
    print(f"{kind}: {recorder.moments()} moments, {len(states)} states, {len(chosen)} started on")
    assert len(states) > 30 or kind == "again", "the operations were not seen"


def killed(it: Scene, at: int, live: Path, leave_out: Callable[[Op], Verdict]) -> Iterator[State]:
    """The process dies before its `at`-th operation, the next one starts, and then the power goes."""
    here = it._replace(place=copy(it.place, live))
    before = [failing(at, Dead())]

    def each(op: Op) -> Verdict:
        return before[0](op) or leave_out(op)

    with Recorder(here.place.root, TOUCHED, each) as recorder:
        with suppress(Dead):
            run(here)
        dead, before[0] = recorder.moments(), lambda _: None
        take_in(here.place)
    shutil.rmtree(live)
    yield from distinct(recorder.states(iter(range(dead, recorder.moments())), worst=True))


def operations(it: Scene, where: Path) -> list[Op]:
    """What a run does, on a copy."""
    here = it._replace(place=copy(it.place, where))
    with Recorder(here.place.root, TOUCHED) as recorder:
        run(here)
    shutil.rmtree(where)
    return recorder.ops


@pytest.mark.campaign("faults", small=1, large=1_000_000)
@pytest.mark.parametrize("kind", SCENES)
def test_killed_and_then_a_power_cut(
    place: Place, tmp_path: Path, kind: str, campaign_size: int, campaign_seed: int
) -> None:
    """What a killed process did is seen by the next one, and may still not be on the disk."""
    it = scene(place, kind)
    work = copy(place, tmp_path / "work")
    kills = range(1, len(operations(it, tmp_path / "count")) + 1)
    started = 0
    for at in sorted(random.Random(campaign_seed).sample(kills, min(len(kills), campaign_size))):
        for state in killed(it, at, tmp_path / "live", lambda _: None):
            hold(it, work, state)
            started += 1
    print(f"{kind}: {len(kills)} kills, {started} states started on")


def test_a_folder_of_packs_that_a_killed_process_made_is_made_lasting(place: Place, tmp_path: Path) -> None:
    """The campaign found it: the next process found the folder, and its name was never on the disk."""
    it = scene(place, "new")
    work = copy(place, tmp_path / "work")
    done = operations(it, tmp_path / "count")
    (made,) = (n for n, op in enumerate(done, 1) if op.kind == "mkdir" and "layout.pack(" in op.site)
    for state in killed(it, made + 2, tmp_path / "live", lambda _: None):
        hold(it, work, state)


# -- is the test worth anything? -------------------------------------------------------------------

MAY_GO = {
    "fsync_dir(src.parent)": "a name that comes back in staging is wiped at the next start",
    "fsync_dir(path.parent) < ingest.finish": "a batch that comes back in `in` gets its receipt again",
    "_sig(path).unlink": "the signature of a notice that is gone says nothing",
    "make_dirs: fsync_dir(folder) <": "what is put into a new folder makes its names lasting again",
}
"""Lines that may be left out here, and why; they stand for file systems that order moves otherwise."""


MAKES = ("fsync", "rename", "link", "unlink")


def sites(place: Place, tmp_path: Path) -> list[tuple[str, str]]:
    """Kind of operation and lines of everything that makes something lasting or visible."""
    found: dict[tuple[str, str], None] = {}
    for kind in SCENES:
        it = scene(copy(place, tmp_path / "sites"), kind)
        with Recorder(it.place.root, TOUCHED) as recorder:
            run(it)
        found |= {(op.kind, op.site): None for op in recorder.ops if op.kind in MAKES}
        shutil.rmtree(it.place.root)
    return list(found)


LASTING = {"packs", "manifests", "damaged"}
"""Folders of which a process that was killed may have changed names without bringing them to the disk."""
FOUND = ("ingest.again", "make_dirs: fsync_dir(path.parent)")
"""Lines that are there for what such a process left."""


def noticed(place: Place, tmp_path: Path, kind: str, site: str) -> str:
    """Leave a line out: how that is noticed, or "" if nothing notices it."""

    def leave_out(op: Op) -> Verdict:
        return "skip" if (op.kind, op.site) == (kind, site) else None

    for worst, name in itertools.product((True, False), SCENES):  # what lost most first: it tells most
        it = scene(copy(place, tmp_path / "mutant"), name)
        work = copy(it.place, tmp_path / "work")
        fresh = it._replace(place=copy(it.place, tmp_path / "fresh"))
        try:
            for state in _states_without(it, leave_out, worst):
                hold(it, work, state)
            if worst and any(part in site for part in FOUND):
                for op in operations(fresh, tmp_path / "count"):
                    at = Path(op.path)
                    if op.kind == "fsync" and {at.name, at.parent.name} & LASTING:
                        for state in killed(fresh, op.number, tmp_path / "live", leave_out):
                            hold(it, work, state)
        except Broken as broken:
            return f"{name}: {broken}"
        finally:
            for folder in ("mutant", "work", "fresh"):
                shutil.rmtree(tmp_path / folder)
    return ""


def _states_without(it: Scene, leave_out: Callable[[Op], Verdict], worst: bool) -> Iterator[State]:
    """The states of a run without a line, the latest first."""
    try:
        with Recorder(it.place.root, TOUCHED, leave_out) as recorder:
            run(it)
        if not it.catalog_fails:
            after(it.place, [it.made])
    except (AssertionError, OSError, KeyError, SyncError) as error:
        raise Broken(f"it does not work any more ({type(error).__name__})") from error
    yield from distinct(recorder.states(iter(range(recorder.moments() - 1, -1, -1)), worst=worst))


@pytest.mark.campaign("faults", small=1, large=1_000_000)
def test_every_line_that_makes_something_lasting_is_needed(
    place: Place, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    every = sites(place, tmp_path)
    needed = [key for key in every if not any(part in key[1] for part in MAY_GO)]
    chosen = random.Random(campaign_seed).sample(needed, min(len(needed), campaign_size))
    missed = []
    for kind, site in chosen:
        how = noticed(place, tmp_path, kind, site)
        print(f"{kind:7} {site}\n        {how[:200] or 'NOT NOTICED'}", flush=True)
        if not how:
            missed.append(site)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    assert missed == []
