"""Three to five stores under seeded schedules of everything that happens to stores; then they are the same.

`--campaign peers` runs many; `--size N` how many, `--seed N` from which. A schedule is replayed by its seed.
In every other schedule logs are told and compared a few entries at a time. What a schedule draws from:

    upload       a batch that is new, was taken elsewhere, or forks its facility's chain, at any store
    step, carry  what lies on the shelves is heard, taken, answered; moved: late, twice, shuffled, lost
    partition    a link goes, or comes back
    crash        a store dies at one of its next steps on the disk, and starts again
    copy         a store is copied; later it is put back from that
    damage       a pack is found damaged
    erase        a facility erases a batch of its own, at any store, whether that has it or not
    hostile      a peer sends rubbish, batches under false names, forged batches, old messages again; it signs
                 for what it does not have; its log is cut off, forks, or holds another store's receipt; it
                 tells of tombstones that no facility signed

Over 400 lines: what may happen, and what must hold whatever happened, are read together.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from central_store import (
    damage,
    facilities,
    missing,
    peer_answers,
    peers,
    plain_reader,
    receipt_log,
    replicas,
    tombstones,
)
from central_store.batches import Batch
from central_store.receipt_log import ReceiptLog
from central_store.talk import STUCK
from schemas import container, envelope, keys, manifest, messages, names
from schemas.erasure_messages import Tombstone
from schemas.messages import Receipt
from tests.central_store.test_crash import Dead, dying
from tests.kit.batches import NOW, Facility, Made, row
from tests.kit.peering import Node, carry, rounds

NAMES = ("south", "north", "west", "east", "islands")
BATCHES = 8
"""Of each chain."""


class Templates:
    """Stores without peers, and batches, made once: copies of them begin every schedule."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.homes = [Facility(f"clinic-{name}") for name in NAMES]
        for name, home in zip(NAMES, self.homes, strict=True):
            node = Node(folder / name, name)
            node.enrol(home)
            if home is not self.homes[0]:
                node.enrol(self.homes[0])  # this one is at home everywhere
            text = (node.root / "store.toml").read_text()
            text = text.replace("replicate_seconds = 60", "replicate_seconds = 10000")
            (node.root / "store.toml").write_text(text)
            self.card = node.store.card()
            node.close()
        self.chains: list[tuple[Facility, list[Made]]] = []
        for home in self.homes:
            forks = [Facility(home.name, home.key, home.identity)] if home is self.homes[0] else []
            for writer in (home, *forks):
                made = [writer.batch([row(number)], self.card) for number in range(BATCHES)]
                self.chains.append((home, made))
        forger = Facility(self.homes[0].name)
        self.forged = [forger.batch([row(number)], self.card) for number in range(BATCHES)]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Made once."""
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows from bytes alone is computed once: manifests, messages and cards come again often."""
    checked: set[bytes] = set()
    check = plain_reader.check

    def once(path: Path, read: object) -> None:
        data = path.read_bytes()
        if data not in checked:
            check(path, read)  # type: ignore[arg-type]
            checked.add(data)

    monkeypatch.setattr(plain_reader, "check", once)
    monkeypatch.setattr(manifest, "from_parquet", functools.cache(manifest.from_parquet))
    monkeypatch.setattr(messages, "parse", functools.lru_cache(50_000)(messages.parse))
    monkeypatch.setattr(receipt_log, "parse", messages.parse)
    monkeypatch.setattr(keys, "ssh_key", functools.cache(keys.ssh_key))


class World:
    """Stores, facilities, and what these were promised. The last store may be hostile."""

    def __init__(self, folder: Path, templates: Templates, choice: random.Random) -> None:
        self.folder, self.templates, self.choice = folder, templates, choice
        self.nodes = []
        self.moment = 0
        for name in NAMES[: choice.choice((3, 3, 4, 5))]:
            shutil.copytree(templates.folder / name, folder / name)
            self.nodes.append(Node(folder / name, name, now=lambda: NOW + timedelta(seconds=self.moment)))
        self.evil = self.nodes[-1] if choice.random() < 0.4 else None
        pairs = [(i, j) for j in range(len(self.nodes)) for i in range(j)]
        if self.evil is None and choice.random() < 0.5:  # a tree, and perhaps some more
            tree = {(choice.randrange(j), j) for j in range(1, len(self.nodes))}
            pairs = [pair for pair in pairs if pair in tree or choice.random() < 0.3]
        self.links = pairs
        for i, j in pairs:
            self.nodes[i].knows(self.nodes[j])
            self.nodes[j].knows(self.nodes[i])
        self.honest = [node for node in self.nodes if node is not self.evil]
        self.promised: set[Batch] = set()
        self.erased: set[Batch] = set()
        self.cut: set[tuple[int, int]] = set()
        self.copies: dict[int, tuple[Path, int, set[tuple[str, str]]]] = {}
        self.noticed: set[tuple[str, str]] = set()
        self.suspects: set[str] = set() if self.evil is None else {self.evil.name}
        self.malice = choice.choice((self.fork, self.cut_off, self.foreign))
        self.heard: list[tuple[str, bytes]] = []
        chains = templates.chains[: 1 + len(self.nodes)]
        self.pool = [
            (home, one) for number in range(BATCHES) for home, made in chains for one in [made[number]]
        ]

    # -- what happens ----------------------------------------------------------------------------

    def upload(self) -> None:
        node = self.choice.choice(self.nodes)
        home, made = self.choice.choice(self.pool)
        if facilities.load(node.layout, names.facility_name(home.name)) is None:
            return
        sealed = envelope.seal_bytes(made.plain, [node.store.card().age_recipient])
        node.upload(home, made._replace(sealed=sealed))
        batch = Batch(names.facility_name(home.name), made.batch)
        if node is not self.evil and batch in node.held() - self.erased:  # a store may not know of it yet
            self.promised.add(batch)

    def erase(self) -> None:
        """Of those that were promised, if there are any; else one that never came."""
        node = self.choice.choice(self.honest)
        home, made = self.choice.choice(self.pool)
        chosen = Batch(names.facility_name(home.name), made.batch)
        if self.promised:
            chosen = self.choice.choice(sorted(self.promised))
            home = next(one for one in self.templates.homes if one.name == chosen.facility)
        if facilities.load(node.layout, chosen.facility) is None:
            return
        node.bury(home, tombstone(home, chosen.batch))
        self.promised.discard(chosen)
        self.erased.add(chosen)

    def carry(self) -> None:
        for i, j in self.links:
            if (i, j) not in self.cut:
                carry(self.nodes[i], self.nodes[j], self.choice)

    def step(self) -> None:
        for node in self.choice.sample(self.nodes, len(self.nodes)):
            node.step()

    def partition(self) -> None:
        self.cut ^= {self.choice.choice(self.links)}

    def crash(self) -> None:
        node = self.choice.choice(self.nodes)
        try:
            with dying(self.choice.randrange(1, 60)):
                node.step()
        except Dead:
            pass
        node.close()
        node.open()

    def copy(self) -> None:
        which = self.choice.randrange(len(self.nodes))
        node, folder = self.nodes[which], self.folder / f"copy-{which}"
        node.close()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(node.root, folder)
        node.open()
        noticed = {pair for pair in self.noticed if pair[1] == node.name}
        self.copies[which] = folder, ReceiptLog(node.layout.log).range().size, noticed

    def put_back(self) -> None:
        """Back to an old copy: what only this store held is gone, and its peers notice if they knew more."""
        if not self.copies:
            return
        which = self.choice.choice(sorted(self.copies))
        folder, size, noticed = self.copies.pop(which)
        node = self.nodes[which]
        # What it lied since is as if it had never been said, unless somebody looked meanwhile.
        self.noticed = {pair for pair in self.noticed if pair[1] != node.name or pair in noticed}
        self.moment += 1  # what it takes again has another receipt: else its log might become what it was
        self.expect(node, size)
        self.noticed = {(observer, other) for observer, other in self.noticed if observer != node.name}
        node.close()
        shutil.rmtree(node.root)
        folder.rename(node.root)
        node.open()
        everywhere = set[Batch]().union(*(one.held() for one in self.honest))
        self.promised &= everywhere
        self.erased &= set[Batch]().union(*map(buried, self.honest))

    def expect(self, node: Node, size: int) -> None:
        """Of the node's log only the first entries stay: who knew more of it must notice."""
        self.suspects.add(node.name)
        for other in self.honest:
            if other is not node and known(other, node) > size:
                self.noticed.add((other.name, node.name))

    def damage(self) -> None:
        node = self.choice.choice(self.honest)
        held = sorted(node.held())
        if held:
            batch = self.choice.choice(held)
            if any(batch in other.held() for other in self.honest if other is not node):
                at = damage.seen(node.layout.pack(batch.batch).stat())
                damage.found(node.store, batch, "pack-bytes", NOW, at)

    # -- a hostile peer --------------------------------------------------------------------------

    def hostile(self) -> None:
        if self.evil is not None:
            self.choice.choice(
                (self.rubbish, self.false_name, self.forge, self.replay, self.ghost, self.once, self.murder)
            )()

    def put(self, name: str, data: bytes) -> None:
        assert self.evil is not None
        (self.evil.layout.outbound(self.choice.choice(self.honest).name) / name).write_bytes(data)

    def rubbish(self) -> None:
        name = f"{self.choice.getrandbits(128):032x}.request"
        name = self.choice.choice((name, f"{self.choice.getrandbits(256):064x}.batch"))
        self.put(name, self.choice.randbytes(self.choice.choice((0, 10, 1000))))

    def sealed(self, plain: bytes) -> bytes:
        return envelope.seal_bytes(plain, [node.store.card().age_recipient for node in self.honest])

    def false_name(self) -> None:
        one, other = self.choice.sample(self.pool, 2)
        self.put(other[1].file, self.sealed(one[1].plain))

    def forge(self) -> None:
        made = self.choice.choice(self.templates.forged)
        self.put(made.file, self.sealed(made.plain))

    def replay(self) -> None:
        assert self.evil is not None
        for path in self.evil.layout.shelves.glob("*/out/*.request"):
            self.heard.append((f"{path.parent.parent.name}/out/{path.name}", path.read_bytes()))
        if self.heard:
            name, data = self.choice.choice(self.heard)
            (self.evil.layout.shelves / name).write_bytes(data)

    def ghost(self) -> None:
        """It signs for a batch that nobody has."""
        assert self.evil is not None
        batch = names.batch_id(f"{self.choice.getrandbits(256):064x}")
        log = ReceiptLog(self.evil.layout.log)
        log.append(list(entries_of(self.evil, self.templates.homes[0].name, [batch])))

    def murder(self) -> None:
        """It says that a facility erased what it did not."""
        assert self.evil is not None
        home, made = self.choice.choice(self.pool)
        forged = tombstone(Facility(home.name), made.batch)
        tombstones.record(self.evil.layout, Batch(names.facility_name(home.name), made.batch), forged)

    def once(self) -> None:
        """Its own kind of lie about its log, one time."""
        malice, self.malice = self.malice, lambda: None
        malice()

    def rewrite(self, entries: list[bytes]) -> None:
        assert self.evil is not None
        shutil.rmtree(self.evil.layout.log)
        ReceiptLog(self.evil.layout.log).append(entries)

    def fork(self) -> None:
        assert self.evil is not None
        entries = list(ReceiptLog(self.evil.layout.log).entries(0, 1000))
        if len(entries) > 1:
            self.expect(self.evil, 0)
            self.rewrite(entries[::-1])

    def cut_off(self) -> None:
        assert self.evil is not None
        entries = list(ReceiptLog(self.evil.layout.log).entries(0, 1000))
        if entries:
            size = self.choice.randrange(len(entries))
            self.expect(self.evil, size)
            self.rewrite(entries[:size])

    def foreign(self) -> None:
        assert self.evil is not None
        ReceiptLog(self.evil.layout.log).append(
            list(entries_of(self.honest[0], self.templates.homes[0].name, [names.batch_id("ab" * 32)]))
        )

    # -- afterwards ------------------------------------------------------------------------------

    def check(self, what: str) -> None:
        """All that must hold when everything healed."""
        assert len({node.set_hash() for node in self.honest}) == 1, what
        assert self.promised <= self.honest[0].held(), what
        for node in self.honest:
            assert self.erased <= buried(node), f"erased everywhere; {what}"
            assert not buried(node) & self.promised, f"nobody else erases; {what}"
            assert not buried(node) & node.held(), what
            waiting = [batch for batch in buried(node) if not node.layout.erasure(*batch).exists()]
            assert waiting == [], what
        for observer in self.honest:
            for observed in self.nodes:
                alarms = peers.alarms(observer.layout, observed.name)
                if (observer.name, observed.name) in self.noticed:
                    assert alarms, f"{observer.name} must notice {observed.name}; {what}"
                if observed.name not in self.suspects:
                    assert not alarms, f"a false alarm; {what}"


def tombstone(who: Facility, batch: names.BatchId) -> container.Signed:
    """A facility erases a batch."""
    said = Tombstone(
        facility=names.facility_name(who.name),
        batches=(batch,),
        reason="asked",
        created=messages.rfc3339(NOW),
    )
    return container.sign(said, who.key)


def buried(node: Node) -> set[Batch]:
    """What a store knows to be erased."""
    return set(tombstones.everything(node.layout))


def known(observer: Node, observed: Node) -> int:
    """How much of its log a store followed."""
    return ReceiptLog(observer.layout.peer(observed.name) / "log").range().size


def settled(nodes: list[Node]) -> None:
    """One round after everything healed; lost questions are asked again first."""
    for node in nodes:
        node.seconds += STUCK
        node.ask()
    rounds(nodes, 200)


OPS = ["upload"] * 4 + ["carry"] * 6 + ["step"] * 6 + ["hostile"] * 3
OPS += ["partition", "partition", "crash", "crash", "copy", "put_back", "damage", "erase", "erase"]


def schedule(folder: Path, templates: Templates, seed: str, length: int) -> None:
    """One of them, from its beginning to the check."""
    choice = random.Random(seed)
    world = World(folder, templates, choice)
    done = []
    for _ in range(length):
        done.append(choice.choice(OPS))
        getattr(world, done[-1])()
    settled(world.nodes)
    world.check(f"schedule {seed}: {' '.join(done)}")
    for node in world.nodes:
        node.close()


@pytest.mark.campaign("peers", small=1, large=10_000)
def test_whatever_happened_after_one_round_all_hold_the_same(
    tmp_path: Path,
    templates: Templates,
    campaign_size: int,
    campaign_seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = peer_answers.MOST_ENTRIES, missing.SLICE, replicas.SLICE
    for number in range(campaign_size):
        few = number % 2 == 0  # a log of a few entries is followed in many pieces, or in one
        monkeypatch.setattr(peer_answers, "MOST_ENTRIES", 3 if few else whole[0])
        monkeypatch.setattr(missing, "SLICE", 4 if few else whole[1])
        monkeypatch.setattr(replicas, "SLICE", 4 if few else whole[2])
        folder = tmp_path / "world"
        folder.mkdir()
        schedule(folder, templates, f"{campaign_seed}.{number}", 50)
        shutil.rmtree(folder)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} schedules", flush=True)


def entries_of(node: Node, facility: str, batches: list[names.BatchId]) -> Iterator[bytes]:
    """Entries of a log: receipts this store signed for these batches."""
    for batch in batches:
        receipt = Receipt(
            store=node.name, facility=names.facility_name(facility), batch=batch,
            sequence=9, objects=1, bytes=1, stored="2026-11-24T08:30:00Z",
        )  # fmt: skip
        signed = container.sign(receipt, node.store.keys.signing)
        yield receipt_log.encode(signed.data, signed.armor)


def test_catching_up_costs_what_differs(tmp_path: Path) -> None:
    """Ten new batches among so many known ones: the bytes that are read and said do not grow with these."""
    said = {}
    for size in (300, 3_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        a, b, clinic = Node(folder / "a", "south"), Node(folder / "b", "north"), Facility("clinic-a")
        a.enrol(clinic)
        a.knows(b)
        b.knows(a)
        known_entries = list(synthetic(a, size))
        ReceiptLog(a.layout.log).append(known_entries)
        ReceiptLog(b.layout.peer(a.name) / "log").append(known_entries)
        for cursor in ("settled", "passed"):
            (b.layout.peer(a.name) / cursor).write_text(str(size))
        for number in range(10):
            a.upload(clinic, clinic.batch([row(number)], a.store.card()))
        sent = [0]
        for _ in range(60):
            for node, other in ((a, b), (b, a)):
                node.step()
                sent[0] += sum(
                    path.stat().st_size
                    for path in node.layout.outbound(other.name).iterdir()
                    if path.suffix == ".request"
                )
            if not carry(a, b):
                break
        assert len(b.held()) == 10
        said[size] = sent[0]
        a.close()
        b.close()
    assert max(said.values()) < 1.1 * min(said.values())


def synthetic(node: Node, count: int) -> list[bytes]:
    """Entries as they stand in a log, of batches that are not there; one signature, as none is read again."""
    receipt = Receipt(
        store=node.name, facility=names.facility_name("clinic-a"), batch=names.batch_id("0" * 64),
        sequence=1, objects=1, bytes=1, stored="2026-11-24T08:30:00Z",
    )  # fmt: skip
    signed = container.sign(receipt, node.store.keys.signing)
    data = signed.data.decode()
    return [
        receipt_log.encode(data.replace("0" * 64, f"{number:064x}").encode(), signed.armor)
        for number in range(count)
    ]
