"""Two stores that replicate over SFTP, either killed with SIGKILL: the next round finishes the job.

Killed instead of the k-th operation on the disk, or by time; the command that dials, or the service at the
other end. The SFTP server between them lives on.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from central_store import batches, facilities, ingest, peers, settings
from central_store.batches import Batch
from central_store.peers import Peer
from central_store.receipt_log import ReceiptLog, batch_of
from schemas import keys
from tests.kit.batches import Facility, send
from tests.kit.killing import Nursery, Process
from tests.kit.servers import embedded_server

STEPS = 90


class Pair:
    """South dials north; what was uploaded at either is promised."""

    def __init__(self, folder: Path, nursery: Nursery, rng: random.Random) -> None:
        self.folder, self.nursery, self.rng = folder, nursery, rng
        self.log = folder / "killed.log"
        self.south, self.north = (
            settings.init(folder / name, name=name, host="127.0.0.1", port=1) for name in ("south", "north")
        )
        self.homes = {store.name: Facility(f"clinic-{store.name}") for store in (self.south, self.north)}
        self.promised: set[Batch] = set()
        self.kills: Counter[str] = Counter()

    def join(self, port: int) -> None:
        for store, other in ((self.south, self.north), (self.north, self.south)):
            facilities.enrol(store.layout, self.homes[store.name].card)
            dial = store is self.south
            peers.add(store.layout, Peer(card=other.card(), host="127.0.0.1", port=port, dial=dial))

    def upload(self) -> None:
        """A batch on the shelf of each store; whoever runs there takes it in."""
        for store in (self.south, self.north):
            self.promised.add(send(store, self.homes[store.name]))

    def serve(self, kill_at: int = 0) -> Process:
        words = ("fstore", "--root", self.north.layout.root, "serve", "--no-sftp")
        return self.nursery.start(*words, log=self.log, kill_at=kill_at, below=self.north.layout.root)

    def replicate(self, kill_at: int = 0, patience: int = 2) -> Process:
        words = (
            "fstore",
            "--root",
            self.south.layout.root,
            "replicate",
            "north",
            "--patience",
            f"{patience}",
        )
        return self.nursery.start(*words, log=self.log, kill_at=kill_at, below=self.south.layout.root)

    def kill_once(self) -> None:
        self.upload()
        self.log.write_text("")
        way = self.rng.choice(("south by step", "north by step", "south by time", "north by time"))
        step = self.rng.randint(1, STEPS) if way.endswith("step") else 0
        north = self.serve(step if way == "north by step" else 0)
        south = self.replicate(step if way == "south by step" else 0)
        if way.endswith("time"):
            time.sleep(self.rng.uniform(0.0, 3.0))
            self.kills[way] += (south if way == "south by time" else north).kill()
        status = south.wait()
        self.kills[way] += way == "south by step" and status == -signal.SIGKILL
        died = "\nState:\tZ" in Path(f"/proc/{north.pid}/status").read_text()  # and is not waited for yet
        north.kill()
        north.wait()
        self.kills[way] += way == "north by step" and died
        said = self.log.read_text()
        # Both share one server of workers here, which ends when either is killed between its two words to it.
        assert status in (0, 3, -signal.SIGKILL) or "in connect_to_new_process" in said, said[-3000:]

    def hold(self) -> None:
        """One round that nobody kills: the same at both, nothing missing, nothing twice."""
        self.log.write_text("")
        north = self.serve()
        shelf = self.north.layout.inbound(self.homes[self.north.name].card.facility)
        until = time.monotonic() + 100
        while list(shelf.glob("*.batch")):  # only what it took in is promised
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.05)
        status = self.replicate(patience=60).wait()
        north.kill()
        north.wait()
        assert status == 0, self.log.read_text()[-3000:]
        for store in (self.south, self.north):
            held = {one for one in batches.listing(store.layout) if ingest.accepted(store, one)}
            assert held == self.promised
            log = ReceiptLog(store.layout.log)
            entries = [batch_of(entry) for entry in log.entries(0, log.range().size)]
            assert sorted(entries) == sorted(one.batch for one in self.promised), "each once"
            assert not list(store.layout.outbound(self.homes[store.name].card.facility).glob("*.refusal"))
        assert peers.alarms(self.south.layout, self.north.name) == []
        assert peers.alarms(self.north.layout, self.south.name) == []


@pytest.mark.campaign("peer-kills", large=300, only=True)
def test_killed_anywhere_the_next_round_finishes(
    tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    with Nursery() as nursery:
        pair = Pair(tmp_path, nursery, random.Random(campaign_seed))
        roots = {pair.south.name: pair.north.layout.shelves / pair.south.name}
        authorized = {pair.south.name: pair.south.card().signing_key}
        host_key = keys.load_private(pair.north.keys.host)
        with embedded_server(roots, authorized, host_key=host_key) as (_, port, _):
            pair.join(port)
            looked = 0
            while pair.kills.total() < campaign_size:
                pair.kill_once()
                if pair.kills.total() >= looked + 10:
                    looked = pair.kills.total()
                    pair.hold()
                    print(f"{pair.kills.total()} kills: {dict(pair.kills)}", flush=True)
            pair.hold()
