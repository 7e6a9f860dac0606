"""Many terminals at once against one store, again and again: nothing lost, memory flat, fair.

The store is the installed `fstore serve` with its embedded server; the terminals are real `fsync` commands,
all open at the same time: as soon as one's round ends it gains a few images and begins the next. After each
round some look for what they stored, and others bring the last image back.

The size is the seconds of the run: up to 50 terminals, one for each two seconds. `nice -n 10` leaves the
machine usable.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from central_store.settings import open_store
from facility_sync.home import Home
from tests.kit import images, invariants
from tests.kit.killing import Nursery
from tests.kit.site import Site

AGAIN = (11, 12)
"""Statuses that mean: run it again. No other may come."""
TRIES = 5
"""So often in a row."""
PIXELS = 64 * 1024

Words = tuple[str | Path, ...]


@dataclass
class Facility:
    """A terminal, and what it did."""

    site: Site
    number: int
    rng: random.Random
    rounds: int = 0
    images: int = 0
    asked: int = 0
    again: int = 0

    def __post_init__(self) -> None:
        self.name = f"clinic-{self.number}"
        self.home = self.site.folder / "homes" / self.name
        self.source = self.site.folder / "images" / self.name
        self.log = self.site.folder / f"{self.name}.log"

    def make(self, nursery: Nursery) -> None:
        """Make the home, enrol it, and give it a source and an account."""
        self.source.mkdir(parents=True)
        store = ("fstore", "--root", self.site.root)
        for words in (
            (*self.fsync, "init", "--facility", self.name),
            (*self.fsync, "trust", self.site.folder / "store.card"),
            (*self.fsync, "source", "add", self.source),
            (*store, "enrol", self.home / f"{self.name}.card"),
            (*store, "account", "add", "kimura", "--facility", self.name,
             "--password-file", self.site.password),
        ):  # fmt: skip
            assert nursery.start(*words, log=self.log).wait() == 0, self.log.read_text()
        settings = self.home / "settings.toml"
        settings.write_text("settle_seconds = 0\nworkers = 1\n" + "".join(
            line for line in settings.read_text().splitlines(keepends=True)
            if line.split(" = ")[0] not in ("settle_seconds", "workers")
        ))  # fmt: skip

    @property
    def fsync(self) -> Words:
        """The beginning of every command line."""
        return "fsync", "--home", self.home

    def grow(self) -> Path:
        """A few images more; the last of them."""
        for _ in range(self.rng.randint(1, 3)):
            self.images += 1
            last = images.write(
                self.source, self.number, 1, 1, self.images, pixels=self.rng.randbytes(PIXELS)
            )
        return last

    def work(self, until: float) -> Generator[Words, int, None]:
        """The commands it runs, two rounds at least; each is answered with its status."""
        account = ("--user", "kimura", "--password-file", self.site.password)
        study = f"{images.ROOT}.{self.number}.1"
        while self.rounds < 2 or time.monotonic() < until:
            last = self.grow()
            yield from self._until_done("sync", "--quiet")
            self.rounds += 1
            if self.number % 5 == 0:
                yield from self._until_done(
                    "query", "--study", study, "--level", "instance", "--count", *account
                )
                assert self.log.read_text().split() == [str(self.images)]
                self.asked += 1
            elif self.number % 5 == 1:
                back = self.site.folder / "back" / self.name / str(self.images)
                instance = f"{study}.1.{self.images}"
                yield from self._until_done(
                    "fetch", "--instance", instance, "--quiet", "--to", back, *account
                )
                (found,) = back.rglob("*.dcm")
                assert found.read_bytes() == last.read_bytes()
                self.asked += 1

    def _until_done(self, *words: str | Path) -> Generator[Words, int, None]:
        for _ in range(TRIES):
            status = yield (*self.fsync, *words)
            if status == 0:
                return
            self.again += 1
            if status not in AGAIN:
                break
        raise AssertionError(f"{self.name}: status {status}: {self.log.read_text()[-3000:]}")


@dataclass
class Watch:
    """Looks at the memory of the processes a store keeps; those of its sessions come and go."""

    store: psutil.Process
    every: float
    started: float = field(default_factory=time.monotonic)
    looks: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    sessions: int = 0

    def look(self) -> None:
        """Look, if it is time."""
        now = time.monotonic() - self.started
        if self.looks and now < self.looks[-1][0] + self.every:
            return
        found = {}
        for process in (self.store, *self.store.children(recursive=True)):
            try:
                found[process.pid] = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.looks.append((now, found))
        self.sessions = max(self.sessions, len(found) - len(self.looks[0][1]))

    def megabytes(self, begin: float, end: float) -> float:
        """Median, over a part of the run, of what the processes hold that were there from first to last."""
        kept = set.intersection(*(set(found) for _, found in self.looks))
        count = len(self.looks)
        part = self.looks[int(begin * count) : int(end * count) + 1]
        sums = [sum(found[pid] for pid in kept) for _, found in part]
        return statistics.median(sums) / 1e6


@pytest.mark.campaign("load", small=0, large=600, only=True)
def test_many_terminals_at_once(site: Site, campaign_size: int, campaign_seed: int) -> None:
    many = [
        Facility(site, number, random.Random(campaign_seed + number))
        for number in range(min(50, max(3, campaign_size // 2)))
    ]
    with Nursery() as nursery:
        for one in many:
            one.make(nursery)
        with site.serving() as serving:
            watch = Watch(psutil.Process(serving.pid), every=campaign_size / 100)
            watch.look()
            _work(nursery, many, watch, campaign_size)
    rounds = sorted(one.rounds for one in many)
    first, last = watch.megabytes(0.1, 0.3), watch.megabytes(0.8, 1.0)
    total = sum(one.images for one in many)
    print(
        f"{len(many)} terminals, {watch.looks[-1][0]:.0f} s: {sum(rounds)} rounds "
        f"({rounds[0]} to {rounds[-1]} a terminal, median {statistics.median(rounds)}), {total} images, "
        f"{sum(one.asked for one in many)} searches and fetches, {sum(one.again for one in many)} run again, "
        f"up to {watch.sessions} sessions, {first:.0f} MB, {last:.0f} MB at the end"
    )
    _nothing_is_lost(site, many)
    if campaign_size >= 60:  # before, nothing is warm, and everybody has the same two rounds
        assert rounds[0] >= statistics.median(rounds) / 2, rounds
        assert last <= 1.1 * first, [(round(now), sum(found.values()) // 10**6) for now, found in watch.looks]


def _work(nursery: Nursery, many: list[Facility], watch: Watch, seconds: float) -> None:
    """All at once, until time is up and everybody had two rounds."""
    until = time.monotonic() + seconds
    running: dict[int, tuple[Facility, Generator[Words, int, None]]] = {}

    def begin(one: Facility, work: Generator[Words, int, None], words: Words) -> None:
        one.log.unlink(missing_ok=True)
        running[nursery.start(*words, log=one.log).pid] = one, work

    for one in many:
        work = one.work(until)
        begin(one, work, next(work))
    while running:
        pid, status = nursery.ended()
        one, work = running.pop(pid)
        watch.look()
        with suppress(StopIteration):
            begin(one, work, work.send(status))


def _nothing_is_lost(site: Site, many: list[Facility]) -> None:
    store = open_store(site.root)
    homes = {one.name: Home(one.home) for one in many}
    signers = {name: home.card().ssh_key for name, home in homes.items()}
    openers = {name: invariants.opener(home) for name, home in homes.items()}
    assert invariants.at_rest(store, signers, openers) == []
    for one in many:
        assert invariants.terminal(homes[one.name], [one.source], store, set()) == []
    assert invariants.instances(store) == sum(one.images for one in many)
