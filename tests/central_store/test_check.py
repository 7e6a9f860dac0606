"""`check` finds what is wrong, each thing under its code; `rebuild` makes the catalog again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from central_store import audit, audit_verify, catalog_file, lock
from central_store.catalog import Catalog
from central_store.check import CODES, Step, check
from central_store.facilities import enrol
from tests.central_store.conftest import Place
from tests.kit.batches import Facility, Made, row
from tests.kit.killing import Nursery


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Made]:
    root = tmp_path_factory.mktemp("filled") / "store"
    shutil.copytree(made_store.root, root)
    place = Place(opened(root), made_store.a, made_store.b)
    made = place.put(place.a, place.a.batch([row(n) for n in range(3)], place.card))
    place.put(place.b, place.b.batch([row(n, study=2) for n in range(2)], place.card))
    assert place.work().stored == 2
    return place, made


def opened(root: Path):
    from central_store.settings import open_store

    return open_store(root)


@pytest.fixture
def broken(filled: tuple[Place, Made], tmp_path: Path) -> tuple[Place, Made]:
    origin, made = filled
    shutil.copytree(origin.root, tmp_path / "store")
    return Place(opened(tmp_path / "store"), origin.a, origin.b), made


def _edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))


def _flip(data: bytes) -> bytes:
    return data[:-1500] + bytes([data[-1500] ^ 1]) + data[-1499:]


def test_a_sound_store_has_no_problems(filled: tuple[Place, Made]) -> None:
    read: list[Step] = []
    report = check(filled[0].store, read_data=True, progress=read.append)
    assert report.problems == []
    assert (report.batches, report.objects, report.catalog) == (2, 5, "checked")
    assert sum(step.bytes for step in read) == report.bytes > 0
    assert {(step.batch, step.known) for step in read} == {(1, 2), (2, 2)}


def _flip_early(data: bytes) -> bytes:
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


def _orphan(pack: Path) -> None:
    pack.parent.mkdir()
    pack.write_bytes(b"x")


DAMAGE: dict[str, tuple[Callable[[Place, Made], None], bool]] = {
    "pack-missing": (lambda p, m: p.store.layout.pack(m.batch).unlink(), False),
    "pack-size": (lambda p, m: _edit(p.store.layout.pack(m.batch), lambda d: d[:-512]), False),
    "pack-bytes": (lambda p, m: _edit(p.store.layout.pack(m.batch), _flip), True),
    "manifest": (lambda p, m: _edit(folder(p, m) / "manifest.parquet", _flip), False),
    "signature": (lambda p, m: _edit(folder(p, m) / "receipt.json.sig", _flip_early), False),
    "batch-unreadable": (lambda p, m: (folder(p, m) / "statement.json").unlink(), False),
    "pack-orphan": (lambda p, m: _orphan(p.store.layout.pack("ab" * 32)), False),
    "catalog-unread": (lambda p, m: p.store.layout.catalog.write_bytes(b"no database") and None, False),
}  # fmt: skip


def folder(place: Place, made: Made) -> Path:
    return place.store.layout.manifest(place.a.card.facility, made.batch)


@pytest.mark.parametrize("code", DAMAGE)
def test_each_damage_has_its_code(broken: tuple[Place, Made], code: str) -> None:
    place, made = broken
    damage, needs_reading = DAMAGE[code]
    damage(place, made)
    if needs_reading:
        assert check(place.store, read_data=False).problems == []
    report = check(place.store, read_data=needs_reading)
    assert [problem.code for problem in report.problems] == [code]
    assert report.batches == 2


def test_every_code_is_provoked_somewhere() -> None:
    elsewhere = {"catalog-rows", "pack-unreadable", "not-resent"}  # the last two in test_damage
    elsewhere |= {"tombstone", "erased-left"}  # in test_erasure
    assert set(DAMAGE) | elsewhere == set(CODES)


def test_a_catalog_that_lost_a_batch_is_found_and_made_again(broken: tuple[Place, Made]) -> None:
    place, made = broken
    hidden = place.root / "hidden"
    folder(place, made).rename(hidden)
    catalog_file.drop(place.store.layout)
    with Catalog(place.store.layout, place.store.settings) as remade:
        assert len(remade.rows_of_batches()) == 1
    hidden.rename(folder(place, made))
    assert [p.code for p in check(place.store, read_data=False).problems] == ["catalog-rows"]
    with lock.held(place.store.layout.lock):
        catalog_file.drop(place.store.layout)
        with Catalog(place.store.layout, place.store.settings) as remade:
            assert remade.totals() == {"clinic-a": (1, 3), "hospital_b": (1, 2)}
    assert check(place.store, read_data=True).problems == []


TABLES = ("instances", "batches", "conflicts", "damaged", "version")
SUMS, BY = (
    "SELECT facility, series_uid, sum(object_bytes)::BIGINT AS bytes,",
    "GROUP BY ALL HAVING n > 0 ORDER BY ALL",
)


def dump(place: Place) -> dict[str, list[dict]]:
    """Every row of every table, in one order; of parts what searches see (numbers follow the arrival)."""
    with Catalog(place.store.layout, place.store.settings) as found:
        rows = {name: found.table(f"SELECT * FROM {name} ORDER BY ALL", {}).to_pylist() for name in TABLES}
        rows["parts"] = found.table(f"{SUMS} sum(n_instances)::BIGINT AS n FROM parts {BY}", {}).to_pylist()
        counted = f"{SUMS} count(*) AS n FROM instances WHERE NOT duplicate {BY}"
        assert rows["parts"] == found.table(counted, {}).to_pylist()
        return rows


def test_a_rebuild_reproduces_the_catalog_exactly_whatever_came_in_whatever_order(
    filled: tuple[Place, Made], tmp_path: Path
) -> None:
    """Duplicates within and across batches, conflicts, damage; two orders of arrival: one catalog."""
    origin, _ = filled
    sender = Facility("clinic-a", origin.a.key, origin.a.identity, origin.a.sequence, origin.a.previous)
    rng = random.Random(20261124)
    numbers = [[rng.randrange(12) for _ in range(6)] for _ in range(6)]
    made = [sender.batch([row(n) for n in each], origin.card) for each in numbers]
    made.append(sender.batch([row(1, sop_instance_uid="1.2.1.1.0"), row(2, study=7)], origin.card))
    dumps = []
    for number in range(2):
        root = tmp_path / str(number)
        shutil.copytree(origin.root, root)
        place = Place(opened(root), sender, origin.b)
        for age, batch in enumerate(rng.sample(made, len(made))):
            place.put(sender, batch)
            os.utime(place.inbound(sender) / batch.file, (age, age))
        assert place.work().stored == len(made)
        pack = place.store.layout.pack(made[0].batch)
        _edit(pack, _flip)
        assert check(place.store, read_data=True).set_aside == [made[0].batch]
        dumps.append(dump(place))
        catalog_file.drop(place.store.layout)
        assert dump(place) == dumps[-1]
    assert dumps[0] == dumps[1]
    rows = dumps[0]["instances"]
    first = [(r["facility"], r["source_digest"]) for r in rows if not r["duplicate"]]
    assert len(first) == len(set(first)), "one row for each file, however often it was sent"
    assert set(first) == {(r["facility"], r["source_digest"]) for r in rows}
    assert len(first) < len(rows)
    assert {pair["sop_instance_uid"] for pair in dumps[0]["conflicts"]} == {"1.2.1.1.0"}
    assert [line["batch_id"] for line in dumps[0]["damaged"]] == [made[0].batch]


def test_what_a_replaced_key_signed_stays_provable(broken: tuple[Place, Made]) -> None:
    place, _ = broken
    enrol(place.store.layout, Facility("clinic-a").card, replace_key=True)
    assert check(place.store, read_data=False).problems == []


def test_a_check_that_is_killed_anywhere_is_in_the_audit_log(
    broken: tuple[Place, Made], tmp_path: Path
) -> None:
    place, _ = broken
    layout, finished, unfinished = place.store.layout, 0, 0
    with Nursery() as nursery:
        for kill_at in range(1, 100):
            words = ("fstore", "--root", place.root, "check", "--read-data")
            process = nursery.start(*words, log=tmp_path / "log", kill_at=kill_at, below=place.root)
            status = process.wait()
            events = audit.read(layout)[0]
            begun = {json.loads(event.details)["results"] for event in events if event.kind == "check-begun"}
            kept = {path.name for path in layout.checks.glob("*.parquet")}
            assert kept <= begun, f"killed before operation {kill_at}"
            finished = sum(event.kind == "check" for event in events)
            unfinished = max(unfinished, len(kept) - finished)
            if status != -signal.SIGKILL:
                break
    assert status == 0
    assert unfinished >= 1, "one was killed between its results and its end"
    assert audit_verify.verify(layout, place.card.signing_key).problems == []
