"""A damaged pack: set aside, told, still read where it is whole, repaired or made up for; runs of checks.

Over 400 lines: every way a pack is found damaged and made whole again is tried on one kind of store.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from central_store import damage, ingest, lock, packs, verify
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.check import Report, check
from central_store.report import status
from central_store.settings import open_store
from schemas import container, envelope, messages, names, ustar
from schemas.errors import Busy, SettingsError
from schemas.transit import durable
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, Facility, Made, request_id, row


class Tick:
    """A clock that goes on by a second whenever it is asked."""

    def __init__(self) -> None:
        self.seconds = 0

    def now(self):
        self.seconds += 1
        return NOW + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[Made]]:
    root = tmp_path_factory.mktemp("filled") / "store"
    shutil.copytree(made_store.root, root)
    place = Place(
        open_store(root), Facility("clinic-a", made_store.a.key, made_store.a.identity), made_store.b
    )
    made = [
        place.put(place.a, place.a.batch([row(n, study=s) for n in range(3)], place.card)) for s in (1, 2)
    ]
    assert place.work().stored == 2
    return place, made


@pytest.fixture
def broken(filled: tuple[Place, list[Made]], tmp_path: Path) -> tuple[Place, Made]:
    """The middle object of the first batch has another byte."""
    origin, made = filled
    shutil.copytree(origin.root, tmp_path / "store")
    sender = Facility("clinic-a", origin.a.key, origin.a.identity, origin.a.sequence, origin.a.previous)
    place = Place(open_store(tmp_path / "store"), sender, origin.b)
    spoil(place, made[0])
    return place, made[0]


def spoil(place: Place, made: Made) -> None:
    pack = place.store.layout.pack(made.batch)
    data = bytearray(pack.read_bytes())
    data[data.index(list(made.objects.values())[1]) + 7] ^= 1
    pack.unlink()
    pack.write_bytes(data)


def aside(place: Place, ending: str = ".tar") -> list[Path]:
    return sorted(place.store.layout.set_aside.glob(f"*{ending}"))


def codes(report: Report) -> list[str]:
    return [problem.code for problem in report.problems]


def held(place: Place, made: Made, *numbers: int) -> dict[str, str]:
    digests = tuple(row(n)["source_digest"] for n in numbers or range(3))
    asked = messages.HeldRequest(
        id=request_id(), facility="clinic-a", digests=digests, created=messages.rfc3339(NOW)
    )
    place.ask(place.a, asked)
    assert place.work().answered == 1
    answer = place.reply(place.a, f"{asked.id}.answer")
    assert isinstance(answer, messages.HeldAnswer)
    return dict(answer.held)


def fetch(place: Place, *objects: str) -> tuple[dict[str, bytes], tuple[str, ...]]:
    asked = place.search(place.a)
    wanted = messages.FetchRequest(
        id=request_id(), facility="clinic-a", user=asked.user, password=asked.password, objects=objects,
        created=messages.rfc3339(NOW),
    )  # fmt: skip
    place.ask(place.a, wanted)
    assert place.work().answered == 1
    sealed = (place.outbound(place.a) / f"{wanted.id}.answer").read_bytes()
    plain = io.BytesIO(envelope.open_bytes(sealed, [place.a.identity], limit=1 << 24))
    tar = ustar.Reader(plain, limit=1 << 24)
    message = container.read_head(tar, lambda _: place.card.signing_key).signed.message
    assert isinstance(message, messages.FetchAnswer)
    found = {}
    while (member := tar.next()) is not None:
        found[member.name[8:72]] = tar.read(member.size)
    return found, message.missing


def found_objects(place: Place) -> set[str]:
    asked = place.search(place.a, "instance", conditions={"study_uid": ("1.2.1",)})
    place.ask(place.a, asked)
    assert place.work().answered == 1
    _, table, _ = place.a.open((place.outbound(place.a) / f"{asked.id}.answer").read_bytes(), place.card)
    return set(pq.read_table(io.BytesIO(table or b"")).column("object_sha256").to_pylist())


def test_a_damaged_pack_is_set_aside_told_and_made_up_for_by_another_batch(
    broken: tuple[Place, Made],
) -> None:
    place, made = broken
    layout = place.store.layout
    assert codes(check(place.store, read_data=False)) == []
    report = check(place.store, read_data=True)
    assert (codes(report), report.set_aside) == (["pack-bytes"], [made.batch])
    assert not layout.pack(made.batch).exists()
    assert len(aside(place)) == len(aside(place, ".reason")) == 1
    assert aside(place, ".reason")[0].read_text() == "pack-bytes\n"
    notice = place.reply(place.a, f"{made.batch}.notice")
    assert isinstance(notice, messages.Notice)
    assert (notice.batch, notice.facility, notice.reason) == (made.batch, "clinic-a", "pack-bytes")
    assert not (place.outbound(place.a) / f"{made.batch}.receipt").exists()
    assert [line.damaged for line in status(place.store)] == [1, 0]

    assert held(place, made) == {}
    whole = list(made.objects)
    objects, missing = fetch(place, *whole)
    assert missing == (whole[1],)
    assert objects == {name: made.objects[name] for name in (whole[0], whole[2])}

    (place.outbound(place.a) / f"{made.batch}.notice").unlink()  # the terminal took it
    again = check(place.store, read_data=True)
    assert (codes(again), again.set_aside, again.resent) == (["not-resent"], [], 0)
    assert (place.outbound(place.a) / f"{made.batch}.notice").exists()  # it is told until it sent all

    part = place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    assert place.work().stored == 1
    assert codes(check(place.store, read_data=False)) == ["not-resent"]
    rest = place.put(place.a, place.a.batch([row(2)], place.card))
    assert place.work().stored == 1
    report = check(place.store, read_data=True)
    assert (codes(report), report.resent, report.catalog) == ([], 1, "checked")
    assert set(held(place, made).values()) == {part.batch, rest.batch}
    assert found_objects(place) == {*part.objects, *rest.objects}
    objects, missing = fetch(place, *part.objects, *rest.objects)
    assert (objects, missing) == (part.objects | rest.objects, ())


def test_the_same_batch_again_repairs_its_pack(broken: tuple[Place, Made]) -> None:
    place, made = broken
    check(place.store, read_data=True)
    place.put(place.a, made)
    assert place.work().stored == 1
    assert place.store.layout.pack(made.batch).read_bytes() == made.plain
    assert packs.damaged(place.store.layout) == frozenset()
    assert [path.suffix for path in sorted(place.store.layout.damaged.iterdir())] == []
    assert len(aside(place)) == 1
    assert isinstance(place.reply(place.a, f"{made.batch}.receipt"), messages.Receipt)
    assert not (place.outbound(place.a) / f"{made.batch}.notice").exists()
    assert set(held(place, made).values()) == {made.batch}
    assert found_objects(place) == set(made.objects)
    report = check(place.store, read_data=True)
    assert (codes(report), report.catalog) == ([], "checked")


def test_a_stop_at_any_step_of_a_repair_is_finished_after_the_next_start(
    broken: tuple[Place, Made], tmp_path: Path, monkeypatch
) -> None:
    check(broken[0].store, read_data=True)
    step, killed = 0, True
    while killed:
        shutil.copytree(broken[0].root, tmp_path / f"at {step}")
        place, made = Place(open_store(tmp_path / f"at {step}"), broken[0].a, broken[0].b), broken[1]
        place.put(place.a, made)
        with monkeypatch.context() as patch:
            killed = _cut_after(patch, step, functools.partial(_take, place, made))
        _take(place, made)  # the next start
        assert place.store.layout.pack(made.batch).read_bytes() == made.plain
        assert packs.damaged(place.store.layout) == frozenset()
        assert isinstance(place.reply(place.a, f"{made.batch}.receipt"), messages.Receipt)
        assert not (place.outbound(place.a) / f"{made.batch}.notice").exists()
        assert list(place.inbound(place.a).iterdir()) == list(place.store.layout.journal.iterdir()) == []
        assert len(aside(place)) in (1, 2), "a verified pack may be set aside too"
        step += 1
    assert step > 5


def _take(place: Place, made: Made) -> None:
    """What the service does with a batch on the shelf, without its workers."""
    store, batch = place.store, Batch(names.facility_name("clinic-a"), made.batch)
    ingest.wipe(store.layout)
    with Catalog(store.layout, store.settings) as catalog:
        ingest.recover(store, catalog)
        if (place.inbound(place.a) / made.file).exists():
            if ingest.accepted(store, batch):
                ingest.again(store, catalog, place.a.card, batch)
            else:
                done = verify.verify(store.layout, place.a.card, store.keys.age_identity, batch.batch)
                ingest.accept(store, catalog, place.a.card, done, NOW)


class Killed(BaseException):
    """The process ends here."""


def _cut_after(patch: pytest.MonkeyPatch, steps: int, work: Callable[[], object]) -> bool:
    """Do something, and stop before the next change after so many; whether it came to that."""
    left = iter([1] * steps)
    for place, name in (
        *((durable, each) for each in ("publish", "rename", "publish_dir")),
        (Path, "unlink"),
    ):
        real = getattr(place, name)

        def cut(*args, real=real, **kwargs):
            if not next(left, 0):
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(place, name, cut)
    try:
        work()
    except Killed:
        return True
    return False


def test_a_batch_that_is_damaged_but_not_set_aside_yet_is_taken_again_too(broken: tuple[Place, Made]) -> None:
    """A stop between the record and the move."""
    place, made = broken
    check(place.store, read_data=True)
    durable.rename(aside(place)[0], place.store.layout.pack(made.batch))
    place.put(place.a, made)
    assert place.work().stored == 1
    assert place.store.layout.pack(made.batch).read_bytes() == made.plain
    assert {path.read_text() for path in aside(place, ".reason")} == {"pack-bytes\n", "replaced\n"}
    assert codes(check(place.store, read_data=True)) == []


def test_another_statement_for_the_same_batch_does_not_take_the_place(broken: tuple[Place, Made]) -> None:
    place, made = broken
    check(place.store, read_data=True)
    place.a.sequence, place.a.previous = 6, "0c" * 32
    rows = pq.read_table(io.BytesIO(made.table)).to_pylist()
    other = place.a.batch(rows, place.card, list(made.objects.values()))
    assert other.batch == made.batch
    place.put(place.a, other)
    assert place.work().refused == 1
    refusal = place.reply(place.a, f"{made.batch}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert refusal.reason == "other-statement"
    assert not place.store.layout.pack(made.batch).exists()
    assert not any(place.store.layout.staging.glob("clinic-a*"))
    assert packs.damaged(place.store.layout) == {made.batch}


def test_a_pack_somebody_puts_back_whole_counts_again(broken: tuple[Place, Made]) -> None:
    place, made = broken
    check(place.store, read_data=True)
    place.store.layout.pack(made.batch).write_bytes(made.plain)
    assert codes(check(place.store, read_data=False)) == ["not-resent"]  # not read: not believed
    report = check(place.store, read_data=True)
    assert (codes(report), report.repaired) == ([], 1)
    assert set(held(place, made).values()) == {made.batch}


SPOILT: dict[str, Callable[[Path], object]] = {
    "pack-missing": lambda pack: pack.unlink(),
    "pack-size": lambda pack: os.truncate(pack, pack.stat().st_size - 2000),
}


@pytest.mark.parametrize("code", SPOILT)
def test_missing_and_short_packs_are_told_too(broken: tuple[Place, Made], code: str) -> None:
    place, made = broken
    SPOILT[code](place.store.layout.pack(made.batch))
    assert codes(check(place.store, read_data=False)) == [code]
    assert packs.damaged(place.store.layout) == frozenset()
    assert codes(check(place.store, read_data=True)) == [code]
    assert place.reply(place.a, f"{made.batch}.notice").reason == code  # type: ignore[attr-defined]
    assert len(aside(place)) == (code == "pack-size")
    objects, missing = fetch(place, *made.objects)
    assert len(objects) == (code == "pack-size")  # the first; the second was spoilt, the third cut
    assert {*objects, *missing} == set(made.objects)
    assert held(place, made) == {}


def test_a_disk_that_is_not_mounted_is_no_damage(broken: tuple[Place, Made]) -> None:
    place, _ = broken
    shutil.move(place.store.layout.packs, place.root / "elsewhere")
    with pytest.raises(SettingsError):
        check(place.store, read_data=True)
    assert packs.damaged(place.store.layout) == frozenset()


def test_a_disk_that_gives_no_bytes_is_reported_and_nothing_moved(
    broken: tuple[Place, Made], monkeypatch
) -> None:
    place, made = broken

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ustar.Reader, "next", fail)
    assert set(codes(check(place.store, read_data=True))) == {"pack-unreadable"}
    assert place.store.layout.pack(made.batch).exists()


def test_a_file_that_took_the_place_meanwhile_is_left_alone(broken: tuple[Place, Made]) -> None:
    place, made = broken
    batch = damage.Batch(names.facility_name("clinic-a"), made.batch)
    pack = place.store.layout.pack(made.batch)
    at = damage.seen(pack.stat())
    pack.rename(pack.with_suffix(".old"))
    pack.write_bytes(made.plain)
    pack.with_suffix(".old").rename(place.root / "old")
    assert not damage.found(place.store, batch, "pack-bytes", NOW, at)
    assert not damage.found(place.store, batch, "pack-missing", NOW, None)
    assert packs.damaged(place.store.layout) == frozenset()


@pytest.mark.parametrize("step", range(8))
def test_a_stop_at_any_step_is_finished_by_the_next_check(
    broken: tuple[Place, Made], monkeypatch, step: int
) -> None:
    place, made = broken

    with monkeypatch.context() as patch:
        killed = _cut_after(patch, step, lambda: check(place.store, read_data=True))
    assert killed == (step < 7)
    check(place.store, read_data=True)
    assert packs.damaged(place.store.layout) == {made.batch}
    assert not place.store.layout.pack(made.batch).exists()
    assert len(aside(place)) == 1
    assert isinstance(place.reply(place.a, f"{made.batch}.notice"), messages.Notice)
    assert not (place.outbound(place.a) / f"{made.batch}.receipt").exists()
    place.put(place.a, made)
    _take(place, made)
    assert codes(check(place.store, read_data=True)) == []


def test_runs_take_the_least_recently_checked_first_and_keep_what_they_found(
    filled: tuple[Place, list[Made]], tmp_path: Path
) -> None:
    origin, _ = filled
    shutil.copytree(origin.root, tmp_path / "store")
    sender = Facility("clinic-a", origin.a.key, origin.a.identity, origin.a.sequence, origin.a.previous)
    place = Place(open_store(tmp_path / "store"), sender, origin.b)
    for study in (3, 4, 5):
        place.put(sender, sender.batch([row(0, study=study)], place.card))
    assert place.work().stored == 3
    clock = Tick()

    def run(seconds: float | None = None) -> Report:
        return check(
            place.store, read_data=True, max_seconds=seconds, now=clock.now, monotonic=clock.monotonic
        )

    first, second, third = run(10), run(10), run(10)
    assert [(r.batches, r.known) for r in (first, second, third)] == [(2, 5)] * 3
    files = sorted(place.store.layout.checks.glob("*.parquet"))
    tables = [pq.read_table(path).to_pylist() for path in files]
    order = [line["batch"] for table in tables for line in table]
    assert len(set(order[:5])) == 5
    assert order[5] == order[0]
    assert all(line["outcome"] == "ok" and line["bytes"] > 0 for table in tables for line in table)
    assert all(line["started"] < line["finished"] for table in tables for line in table)
    files[0].chmod(0o600)
    files[0].write_bytes(b"no Parquet")  # a file nobody can read costs a check too early, no more
    assert run().batches == 5
    with lock.held(place.store.layout.checks / "lock"), pytest.raises(Busy):
        run()


def test_a_run_that_is_stopped_keeps_what_it_did(broken: tuple[Place, Made]) -> None:
    place, _ = broken

    def stop(step: object) -> None:
        if step.batch == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(place.store, read_data=True, progress=stop)
    (path,) = place.store.layout.checks.glob("*.parquet")
    assert pq.read_table(path).num_rows == 1
