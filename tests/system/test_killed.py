"""Stores and rounds killed with SIGKILL at random points; what was promised holds after every one.

Killed by time, anywhere (in SQLite and DuckDB too), or instead of the k-th operation on the disk; the whole
process group, or the main process alone. The SFTP server lives on: its deaths are those of the road.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from central_store.settings import open_store
from facility_sync import intake
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import keys
from tests.kit import images, invariants
from tests.kit.killing import Nursery, Process
from tests.kit.servers import embedded_server
from tests.kit.site import Site, Terminal

WAYS = ("round by time", "round by step", "store by time", "store by step", "both by time")
STEPS = {"round by step": 45, "store by step": 50}


class Ward:
    """A site whose processes are killed."""

    def __init__(
        self, site: Site, terminal: Terminal, source: Path, nursery: Nursery, rng: random.Random
    ) -> None:
        self.site, self.source, self.nursery, self.rng = site, source, nursery, rng
        self.home, self.store = Home(terminal.home), open_store(site.root)
        self.log = site.folder / "killed.log"
        self.serving: Process | None = None
        self.kills: Counter[str] = Counter()
        self.images = 0

    def serve(self, kill_at: int = 0) -> None:
        if self.serving is None:
            self.serving = self.nursery.start(
                "fstore", "--root", self.site.root, "serve", "--no-sftp",
                log=self.log, kill_at=kill_at, below=self.site.root,
            )  # fmt: skip

    def stop(self, number: int) -> int:
        assert self.serving is not None
        with suppress(ProcessLookupError):
            os.kill(self.serving.pid, number)
        status, self.serving = self.serving.wait(), None
        return status

    def sync(self, kill_at: int = 0) -> Process:
        words = ("fsync", "--home", self.home.root, "sync", "--quiet", "--json")
        return self.nursery.start(*words, log=self.log, kill_at=kill_at, below=self.home.root)

    def new_image(self) -> None:
        self.images += 1
        folder = self.source / str(self.images % 7)
        images.write(folder, 1, 1, 1, self.images, pixels=self.rng.randbytes(2048))

    def kill_once(self) -> None:
        """One kill in one of the ways, somewhere."""
        way = self.rng.choice(WAYS)
        self.new_image()
        if way == "store by step" and self.serving is not None:
            self.stop(signal.SIGKILL)
        self.serve(self.rng.randint(1, STEPS[way]) if way == "store by step" else 0)
        started = time.monotonic()
        sync = self.sync(self.rng.randint(1, STEPS[way]) if way == "round by step" else 0)
        if way.endswith("time"):
            time.sleep(self.rng.uniform(0.0, 1.3 * self.usual))
        if way in ("round by time", "both by time"):
            sync.kill() if self.rng.random() < 0.7 else os.kill(sync.pid, signal.SIGKILL)
        if way in ("store by time", "both by time"):
            assert self.serving is not None
            self.serving.kill() if self.rng.random() < 0.7 else os.kill(self.serving.pid, signal.SIGKILL)
            self.serving.wait()
            self.serving = None
            if way == "store by time":
                self.serve()
        status = sync.wait()
        if status == 0:
            self.usual = 0.8 * self.usual + 0.2 * (time.monotonic() - started)
        if way == "store by step":
            assert self.serving is not None
            died = self.stop(signal.SIGKILL)
            self.kills[way] += died == -signal.SIGKILL
        else:
            self.kills[way] += status == -signal.SIGKILL or way == "store by time"
        assert status in (0, 3, 4, 11, 12, -signal.SIGKILL), self.log.read_text()[-3000:]

    usual = 1.0
    """Seconds a round takes that nobody kills."""

    def hold(self) -> None:
        """Everything stopped with SIGKILL: the promises; then everything goes on: nothing is missing."""
        if self.serving is not None:
            self.stop(signal.SIGKILL)
        facility = self.home.settings.facility
        signers, openers = {facility: self.home.card().ssh_key}, {facility: invariants.opener(self.home)}
        assert invariants.promises(self.store, signers, openers) == []
        assert invariants.terminal(self.home, [self.source], self.store, self._listed()) == []
        self.serve()
        limit = time.monotonic() + 60
        while self.sync().wait() != 0:  # a receipt may need a second round
            assert time.monotonic() < limit, self.log.read_text()[-3000:]
        assert self.stop(signal.SIGTERM) == 0, self.log.read_text()[-3000:]
        assert invariants.at_rest(self.store, signers, openers) == []
        assert invariants.terminal(self.home, [self.source], self.store, set()) == []
        assert invariants.instances(self.store) == self.images

    def _listed(self) -> set[str]:
        ledger = Ledger(self.home.ledger_path)
        try:
            report = intake.survey(self.home.settings, ledger)
        finally:
            ledger.close()
        return {line.path for line in report.waiting + report.refused}


@contextmanager
def ward(site: Site, tmp_path: Path, seed: int) -> Iterator[Ward]:
    source = tmp_path / "images"
    source.mkdir()
    terminal = site.terminal("clinic-a", source)
    store = open_store(site.root)
    roots = {"clinic-a": site.root / "shelves" / "clinic-a"}
    card = Home(terminal.home).card()
    host_key = keys.load_private(store.keys.host)
    with embedded_server(roots, {"clinic-a": card.ssh_key}, host_key=host_key) as (_, port, _):
        terminal.settings(store_port=port, receipt_wait_seconds=1, settle_seconds=0, workers=1)
        with Nursery() as nursery:
            it = Ward(site, terminal, source, nursery, random.Random(seed))
            try:
                yield it
            finally:
                if it.serving is not None:
                    it.serving.kill()


@pytest.mark.campaign("faults", small=3, large=300)
def test_killed_anywhere_nothing_promised_is_missing(
    site: Site, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    with ward(site, tmp_path, campaign_seed) as it:
        it.new_image()
        it.hold()
        next_look = 25
        while it.kills.total() < campaign_size:
            it.kill_once()
            if it.kills.total() >= next_look:
                it.hold()
                print(f"{it.kills.total()} kills: {dict(it.kills)}, {it.images} images", flush=True)
                next_look = it.kills.total() + max(25, it.kills.total() // 4)
        it.hold()
        print(f"{it.kills.total()} kills: {dict(it.kills)}, {it.images} images", flush=True)
