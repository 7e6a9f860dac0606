"""What was refused, and what waits to be fetched, has a bound: a hostile facility does not fill the disk."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from central_store import inbox, quarantine
from schemas import names
from schemas.names import ShelfName
from tests.central_store.conftest import Place

A = names.facility_name("clinic-a")
MIB = 1 << 20


def refuse(place: Place, name: str, subject: str, limit: int = 100 * MIB) -> None:
    quarantine.take(place.store.layout, A, name, subject, "seal", limit=limit)


def held(place: Place) -> tuple[int, list[str]]:
    folder = place.store.layout.quarantine(A)
    return (
        sum(path.lstat().st_blocks * 512 for path in folder.iterdir()),
        sorted(path.stem for path in folder.glob("*.reason")),
    )


def test_its_bytes_are_bounded_and_the_oldest_go_first(place: Place) -> None:
    for number in range(40):
        (place.inbound(place.a) / "evil").write_bytes(bytes([number]) * 100_000)
        refuse(place, "evil", f"{number:064x}", MIB)
        size, kept = held(place)
        assert size <= MIB
        assert kept[-1] == f"{number:064x}"
    assert kept == [f"{number:064x}" for number in range(40 - len(kept), 40)]
    assert len(kept) >= 5
    (place.inbound(place.a) / "evil").write_bytes(bytes(2 * MIB))
    refuse(place, "evil", "f" * 64, MIB)
    assert held(place) == (0, []), "larger than all there may be"


def test_its_entries_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST", 12)
    for number in range(50):
        (place.inbound(place.a) / "evil").touch()
        refuse(place, "evil", f"{number:064x}")
        assert len(held(place)[1]) <= 12


def test_a_sparse_file_counts_what_it_takes(place: Place) -> None:
    with (place.inbound(place.a) / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    refuse(place, "sparse", "0" * 64)
    assert held(place)[1] == ["0" * 64]


def test_the_sender_does_not_say_how_long_it_stays(place: Place) -> None:
    for name, when in (("past", 1), ("future", 2**33)):
        path = place.inbound(place.a) / name
        path.touch()
        os.utime(path, (when, when))
        refuse(place, name, name)
    folder, now = place.store.layout.quarantine(A), time.time()
    assert quarantine.sweep(place.store.layout, A, now - 60) == 0
    assert quarantine.sweep(place.store.layout, A, now + 60) == 2
    assert not list(folder.iterdir())


@pytest.mark.timeout(30)
def test_a_folder_goes_however_deep_it_is_and_nothing_it_points_to(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    deep = place.inbound(place.a) / f"{'2' * 64}.batch"
    deep.mkdir()
    (deep / "link").symlink_to(outside)
    (deep / "locked").mkdir()
    (deep / "locked" / "inside").touch()
    (deep / "locked").chmod(0)
    folder = os.open(deep, os.O_RDONLY)
    for number in range(3000):  # deeper than recursion, longer than any path
        os.mkdir("a" * 100, dir_fd=folder)
        os.symlink("/", "b", dir_fd=folder)
        if number % 100 == 0:
            os.mkfifo("c", dir_fd=folder)
        inner = os.open("a" * 100, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert place.work().refused == 1
    assert not deep.exists()
    assert (outside / "precious").read_bytes() == b"x"
    assert [path.suffix for path in place.store.layout.quarantine(A).iterdir()] == [".reason"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may move everything")
def test_what_may_not_be_moved_does_not_end_the_service(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = place.inbound(place.a)
    (shelf / "evil").touch()
    shelf.chmod(0o500)
    try:
        assert place.work().refused == 1
    finally:
        shelf.chmod(0o700)
    assert "stuck facility=clinic-a" in caplog.text


def test_what_its_owner_took_back_is_no_trouble(place: Place) -> None:
    refuse(place, "gone", "0" * 64)
    assert held(place)[1] == ["0" * 64]


def test_answers_and_refusals_nobody_fetches_are_bounded(place: Place) -> None:
    out = place.outbound(place.a)
    for number in range(30):
        for kind in ("answer", "refusal", "receipt"):
            path = out / f"{number:032x}.{kind}"
            path.write_bytes(bytes(1000))
            os.utime(path, (number, number))

    def left(kind: str) -> list[int]:
        return sorted(int(path.stem, 16) for path in out.glob(f"*.{kind}"))

    inbox.trim(out, "answer", size=30_000)
    inbox.trim(out, "refusal", files=30)
    assert left("answer") == left("refusal") == list(range(30))
    inbox.trim(out, "answer", size=4500)
    inbox.trim(out, "refusal", files=7)
    assert (left("answer"), left("refusal")) == ([26, 27, 28, 29], list(range(23, 30)))
    inbox.trim(out, "answer", size=1)
    assert left("answer") == [29], "the newest is what was asked for now"
    assert left("receipt") == list(range(30))


def test_the_service_keeps_the_bound_of_its_settings(place: Place) -> None:
    settings = dataclasses.replace(place.store.settings, answers_mib=1, quarantine_mib=1)
    place.store = dataclasses.replace(place.store, settings=settings)
    for number in range(3):
        old = place.outbound(place.a) / f"{number:032x}.answer"
        old.write_bytes(bytes(MIB // 2))
        os.utime(old, (time.time() - 100 + number,) * 2)
        (place.inbound(place.a) / f"{number:064x}.batch").write_bytes(bytes(MIB // 2))
    asked = place.search(place.a)
    place.ask(place.a, asked)
    counts = place.work()
    assert (counts.answered, counts.refused) == (1, 3)
    assert sorted(path.stem for path in place.outbound(place.a).glob("*.answer")) == sorted(
        [f"{2:032x}", asked.id]
    )
    assert held(place)[0] <= MIB


def test_a_look_takes_in_a_bounded_number_and_the_next_one_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST", 5)
    shelf, seen = place.inbound(place.a), set[ShelfName]()
    for number in range(12):
        (shelf / f"{number:032x}.request").touch()
        (shelf / f"{number:032x}.request.part").touch()
    while names_there := inbox.look(shelf).requests:
        assert len(names_there) <= 5
        for name in names_there:
            (shelf / str(name)).unlink()
        seen |= set(names_there)
    assert len(seen) == 12
