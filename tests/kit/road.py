"""A terminal's home and a store on one machine, and the road between them to be broken.

ends = make_ends(tmp_path)
with ends.served(fault="fail-write:2") as endpoint, cut_packets(endpoint, up=17) as wire:
    ends.dial(wire)
    batch = ends.batch()
    with ends.courier(patience) as courier: courier.send(batch).result()
ends.work(); ends.take_news(); ends.check()
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from central_store import facilities, settings
from central_store.service import Clock, Counts, Service
from facility_sync import courier, exchange
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from facility_sync.patience import Patience
from schemas import keys, names
from schemas.messages import Statement
from tests.kit.batches import NOW, Facility, row
from tests.kit.servers import Endpoint, embedded_server

QUICK = Patience(seconds=10, jitter=lambda: 0.5, first=0.01, most=0.1, timeout=5)
"""Patience of tests: short pauses, always the same."""


@dataclass
class Ends:
    """Both ends."""

    store: settings.Store
    home: Home
    facility: Facility
    ledger: Ledger
    random: random.Random = field(default_factory=lambda: random.Random(4))
    sent: list[str] = field(default_factory=list)

    @property
    def shelf(self) -> Path:
        """The facility's folder at the store."""
        return self.store.layout.shelves / self.facility.name

    @contextmanager
    def served(self, **options: Any) -> Iterator[Endpoint]:
        """The embedded server; `options` of `embedded_server`."""
        authorized = {self.facility.name: self.facility.card.ssh_key}
        key = keys.load_private(self.store.keys.host)
        with embedded_server({self.facility.name: self.shelf}, authorized, host_key=key, **options) as server:
            self.dial(server)
            yield server

    def dial(self, endpoint: Endpoint, user: str = "") -> None:
        """Reach the store there from now on."""
        self.home.save(
            replace(self.home.settings, store_host=endpoint.host, store_port=endpoint.port, store_user=user)
        )

    def batch(self, size: int = 2000) -> str:
        """A sealed batch in the outbox, known to the ledger."""
        made = self.facility.batch([row(len(self.sent))], self.store.card(), [self.random.randbytes(size)])
        courier.outbox_path(self.home, made.batch).write_bytes(made.sealed)
        assert isinstance(made.statement.message, Statement)
        self.ledger.record([], made.statement.message)
        self.sent.append(made.batch)
        return made.batch

    @contextmanager
    def courier(self, patience: Patience = QUICK) -> Iterator[courier.Courier]:
        """A courier."""
        made = courier.Courier(self.home, lambda _: None, patience)
        try:
            yield made
        finally:
            made.close()

    def work(self) -> Counts:
        """One pass of the store's service."""
        return Service(self.store, Clock(lambda: NOW, time.monotonic)).one_pass()

    def take_news(self) -> tuple[int, int]:
        """Take receipts and refusals off the shelf."""
        with exchange.connect(self.home, timeout=10) as desk:
            return courier.take_news(self.home, self.ledger, desk)

    def check(self) -> None:
        """No receipt without a stored batch; no batch twice in the catalog; nothing sent is missing."""
        with duckdb.connect(str(self.store.layout.catalog), read_only=True) as catalog:
            rows = catalog.execute("SELECT batch_id, count(*) FROM instances GROUP BY batch_id").fetchall()
        counted = dict(rows)
        stored = {entry.batch for entry in self.ledger.batches("stored")}
        receipts = {path.name.split(".")[0] for path in self.home.receipts.glob("*.json")}
        assert stored == receipts
        assert stored <= counted.keys()
        assert set(counted.values()) <= {1}
        for batch in counted:
            manifest = self.store.layout.manifest(
                names.facility_name(self.facility.name), names.batch_id(batch)
            )
            assert (manifest / "receipt.json").exists()
        waiting = {entry.batch for entry in self.ledger.batches("ready", "sent", "refused")}
        assert stored | waiting == set(self.sent)


def make_ends(folder: Path) -> Path:
    """Make a store and an enrolled terminal that trusts it; `folder` may be copied."""
    store = settings.init(folder / "store", name="central", host="127.0.0.1", port=0)
    home = Home(folder / "home")
    home.create("clinic-a")
    facilities.enrol(store.layout, home.card())
    home.trust(store.card().to_bytes())
    return folder


def open_ends(folder: Path) -> Ends:
    """Both ends as `make_ends` left them."""
    store, home = settings.open_store(folder / "store"), Home(folder / "home")
    facility = Facility("clinic-a", home.ssh_key, home.age_identity)
    return Ends(store, home, facility, Ledger(home.ledger_path))
