"""Three stores as real processes, each on a host of its own, whose links are cut and joined again.

`--campaign networks --size N` plays N rounds; a round is replayed by `--seed`.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import pytest

from central_store import batches, ingest, settings
from central_store.batches import Batch
from tests.kit.batches import Facility, send
from tests.kit.networks import Network, NoNetworks, network
from tests.kit.site import Serving, Site

NAMES = ("south", "north", "west")
PORT = 2222


class Host:
    """A store on a host of its own, and the facility at home there."""

    def __init__(self, folder: Path, name: str, net: Network, number: int) -> None:
        folder.mkdir()
        self.name, self.number = name, number
        self.site = Site(folder, through=net.hosts[number].through)
        self.process: Serving | None = None
        self.do("init", "--name", name, "--host", net.hosts[number].address, "--port", str(PORT))
        (folder / "store.card").write_text(self.site.store("card").out)
        self.home = Facility(f"clinic-{name}")
        (folder / "clinic.card").write_bytes(self.home.card.to_bytes())
        self.do("enrol", folder / "clinic.card")

    def do(self, *words: str | Path) -> None:
        done = self.site.store(*words)
        assert done.status == 0, done.err

    def start(self) -> None:
        self.process = self.site.start()

    def stop(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None

    def upload(self) -> Batch:
        """A batch of its facility on its shelf."""
        return send(settings.open_store(self.site.root), self.home)

    def held(self) -> set[Batch]:
        store = settings.open_store(self.site.root)
        return {one for one in batches.listing(store.layout) if ingest.accepted(store, one)}


@pytest.fixture
def net() -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network(len(NAMES)))
        except NoNetworks as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture
def hosts(net: Network, tmp_path: Path) -> Iterator[list[Host]]:
    made = [Host(tmp_path / name, name, net, number) for number, name in enumerate(NAMES)]
    for one in made:
        path = one.site.root / "store.toml"
        path.write_text(path.read_text().replace("replicate_seconds = 60", "replicate_seconds = 1"))
    for a, b in combinations(made, 2):  # the first dials: the other is behind a firewall, say
        a.do("peer", "add", b.name, b.site.folder / "store.card")
        b.do("peer", "add", a.name, a.site.folder / "store.card", "--wait")
    try:
        yield made
    finally:
        for one in made:
            one.stop(signal.SIGKILL)


def until_all_hold(hosts: list[Host], promised: set[Batch], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while any(one.held() != promised for one in hosts):
        lacking = {one.name: len(promised - one.held()) for one in hosts}
        logs = "".join((one.site.folder / "serve.log").read_text()[-1500:] for one in hosts)
        assert time.monotonic() < until, f"{lacking}\n{logs}"
        time.sleep(0.1)


@pytest.mark.campaign("networks", small=1, large=50)
def test_stores_whose_links_are_cut_are_the_same_when_these_are_whole_again(
    net: Network, hosts: list[Host], campaign_size: int, campaign_seed: int
) -> None:
    rng, promised = random.Random(campaign_seed), set[Batch]()
    for one in hosts:
        one.start()
        promised.add(one.upload())
    until_all_hold(hosts, promised)
    for _ in range(campaign_size):
        pairs = list(combinations(range(len(hosts)), 2))
        cut = rng.sample(pairs, rng.randint(1, len(pairs)))
        for pair in cut:
            net.cut(*pair)
        added = {one.name: one.upload() for one in hosts}
        promised |= {*added.values()}
        killed = rng.choice(hosts)
        time.sleep(rng.uniform(0, 2))  # in the midst of taking in, or of telling the others
        killed.stop(signal.SIGKILL)
        for one in hosts:  # no store waits for another to take its own facility's batch in
            if one is not killed:
                until = time.monotonic() + 60
                while added[one.name] not in one.held():
                    assert time.monotonic() < until, (one.site.folder / "serve.log").read_text()[-3000:]
                    time.sleep(0.1)
        if len(cut) == len(pairs):
            assert all(len(one.held() & {*added.values()}) == 1 for one in hosts if one is not killed)
        for pair in cut:
            net.join(*pair)
        killed.start()
        until_all_hold(hosts, promised)
    for one in hosts:
        one.stop(signal.SIGTERM)
        done = one.site.store("check", "--read-data", "--json")
        assert done.status == 0, done.err
        for other in one.site.store("peer", "list", "--json").json:
            assert other["alarms"] == [], other
