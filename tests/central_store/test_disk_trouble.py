"""A disk that is full, read-only or failing, a clock that jumps: the store says so and goes on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from central_store import ingest, service
from central_store.catalog import Catalog
from central_store.catalog_file import CatalogError
from central_store.service import Clock, Service
from central_store.settings import open_store
from schemas import messages
from tests.central_store.conftest import Place
from tests.central_store.test_crash import take_in
from tests.central_store.test_faults import after, copy
from tests.kit import invariants
from tests.kit.batches import NOW, Made, row
from tests.kit.faults import Disk, failing


@contextmanager
def serving(place: Place) -> Iterator[Service]:
    """The service in a thread; what ends it comes out."""
    ended: list[BaseException] = []
    running = Service(place.store, Clock(lambda: NOW, time.monotonic))
    ready = threading.Event()

    def run() -> None:
        try:
            running.run(ready.set)
        except BaseException as error:
            ended.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        yield running
    finally:
        running.stop()
        thread.join(30)
        assert ended == []


def until(condition: object, what: str) -> None:
    limit = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(service, "CATALOG_SECONDS", 0.2)


@pytest.mark.parametrize(("kind", "number"), [("fsync", errno.EIO), ("rename", errno.ENOSPC)])
def test_one_failure_costs_a_pause(
    place: Place, caplog: pytest.LogCaptureFixture, kind: str, number: int
) -> None:
    fault = failing(2, OSError(number, os.strerror(number)), kind)
    with caplog.at_level(logging.ERROR), Disk(place.root, before=fault), serving(place):
        made = place.put(place.a, place.a.batch([row(0)], place.card))
        receipt = place.outbound(place.a) / f"{made.batch}.receipt"
        until(receipt.exists, "no receipt came")
        until(lambda: not list(place.store.layout.journal.iterdir()), "it was not finished")
    after(place, [made])
    assert "disk trouble: " + os.strerror(number) in caplog.text
    assert str(place.root) not in caplog.text


def test_a_catalog_that_failed_is_opened_again_while_the_store_serves(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = Catalog._follow, [2]

    def follow(self: Catalog, batch: object) -> None:
        if failures[0]:
            failures[0] -= 1
            raise CatalogError("the catalog failed")
        real(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Catalog, "_follow", follow)
    with serving(place):
        made = place.put(place.a, place.a.batch([row(0)], place.card))
        until((place.outbound(place.a) / f"{made.batch}.receipt").exists, "no receipt came")
        other = place.put(place.b, place.b.batch([row(1)], place.card))  # something to wake up for
        until((place.outbound(place.b) / f"{other.batch}.receipt").exists, "no receipt came")
        until(lambda: not list(place.store.layout.journal.iterdir()), "the catalog did not follow")
    assert failures == [0]
    with Catalog(place.store.layout, place.store.settings, rebuild=False) as catalog:
        assert len(catalog.rows_of_batches()) == 2


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A real file system of its own."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False)
    if made.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def moved(place: Place, folder: Path) -> Place:
    shutil.copytree(place.root, folder / "store")
    return Place(open_store(folder / "store"), place.a, place.b)


def big(place: Place) -> Made:
    objects = [os.urandom(1_500_000) for _ in range(2)]
    return place.a.batch([row(0), row(1)], place.card, objects)


def test_a_full_disk_is_waited_for(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "16m"), caplog.at_level(logging.ERROR):
        here = moved(place, tmp_path / "disk")
        ballast = tmp_path / "disk" / "ballast"
        with serving(here):
            made = big(here)
            here.put(here.a, made)
            until((here.outbound(here.a) / f"{made.batch}.receipt").exists, "no receipt came")
            again = big(here)
            arriving = here.inbound(here.a) / "arriving.part"
            arriving.write_bytes(again.sealed)
            # unbuffered: what was refused must not be tried again when the file is closed
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(bytes(65536))
            arriving.rename(here.inbound(here.a) / again.file)
            until(lambda: "No space left" in caplog.text, "nothing was said")
            assert not (here.outbound(here.a) / f"{again.batch}.receipt").exists()
            ballast.unlink()
            until((here.outbound(here.a) / f"{again.batch}.receipt").exists, "it did not go on")
            until(lambda: not list(here.store.layout.journal.iterdir()), "it was not finished")
        after(here, [made, again])


def test_a_read_only_disk_is_waited_for(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "16m"), caplog.at_level(logging.ERROR):
        here = moved(place, disk)
        made = here.put(here.a, here.a.batch([row(0)], here.card))
        read_only = ["mount", "-o", "remount,ro", disk]
        ingest_again = ["mount", "-o", "remount,rw", disk]
        subprocess.run(read_only, check=True)
        running = Service(here.store, Clock(lambda: NOW, time.monotonic))
        thread = threading.Thread(target=running.run)
        thread.start()
        until(lambda: "Read-only" in caplog.text, "nothing was said")
        subprocess.run(ingest_again, check=True)
        until((here.outbound(here.a) / f"{made.batch}.receipt").exists, "it did not go on")
        until(lambda: not list(here.store.layout.journal.iterdir()), "it was not finished")
        running.stop()
        thread.join(30)
        after(here, [made])


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_jumps_by_years_loses_nothing(place: Place, tmp_path: Path, years: int) -> None:
    """Receipts carry the clock's time, right or wrong; only what is swept by age follows from it."""
    first = place.put(place.a, place.a.batch([row(0)], place.card))
    take_in(place)
    there = copy(place, tmp_path / "there")
    jumped = NOW + timedelta(days=365 * years)
    second = there.put(there.a, there.a.batch([row(1)], there.card))
    counts = Service(there.store, Clock(lambda: jumped, time.monotonic)).one_pass()
    assert (counts.stored, counts.refused) == (1, 0)
    receipt = there.reply(there.a, f"{second.batch}.receipt") if years < 0 else None
    if receipt is not None:
        assert isinstance(receipt, messages.Receipt)
        assert receipt.stored.startswith(str(jumped.year))
    assert {folder.name for _, folder in invariants.accepted(there.store)} == {first.batch, second.batch}
    for made in (first, second):  # a receipt that was swept comes again with the batch, the same
        there.put(there.a, made)
    Service(there.store, Clock(lambda: NOW, time.monotonic)).one_pass()
    after(there, [first, second])


def test_a_start_looks_at_what_was_in_flight_and_not_at_what_is_stored(place: Place) -> None:
    made = [place.put(place.a, place.a.batch([row(number)], place.card)) for number in range(2)]
    take_in(place)
    layout = place.store.layout
    looked: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
            looked.append(arguments[0])

    def start() -> list[str]:
        looked.clear()
        with Catalog(layout, place.store.settings) as catalog:
            ingest.wipe(layout)
            ingest.recover(place.store, catalog)
        return [path for path in looked if path.startswith((str(layout.manifests), str(layout.packs)))]

    sys.addaudithook(hook)
    try:
        assert start() == []
        assert looked, "nothing was seen"
        (layout.journal / made[0].batch).write_text("clinic-a")
        assert {Path(path).parent.name for path in start()} & {made[0].batch}
        assert not any(made[1].batch in path for path in looked)
    finally:
        watching.clear()
