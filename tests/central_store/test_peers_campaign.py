"""Three stores under seeded schedules of everything that happens to stores; afterwards they are the same.

`--campaign peers` runs many; `--size N` how many, `--seed N` from which. A schedule is replayed by its seed.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from central_store import damage, peers, receipt_log
from central_store.batches import Batch
from central_store.receipt_log import ReceiptLog
from central_store.talk import STUCK
from schemas import container, names
from schemas.messages import Receipt
from tests.kit.batches import NOW, Facility, row
from tests.kit.peering import Node, carry, rounds

NAMES = ("south", "north", "west")


class World:
    """Three stores, a facility at each, and what it was promised."""

    def __init__(self, folder: Path, choice: random.Random) -> None:
        self.folder, self.choice = folder, choice
        self.nodes = [Node(folder / name, name) for name in NAMES]
        self.homes = [Facility(f"clinic-{name}") for name in NAMES]
        for node, home in zip(self.nodes, self.homes, strict=True):
            node.enrol(home)
            for other in self.nodes:
                if other is not node:
                    node.knows(other)
        self.promised: set[Batch] = set()
        self.cut: set[tuple[int, int]] = set()
        self.copies: dict[int, tuple[Path, int]] = {}
        self.noticed: list[tuple[Node, Node]] = []
        self.count = 0

    def upload(self) -> None:
        which = self.choice.randrange(3)
        node, home = self.nodes[which], self.homes[which]
        self.count += 1
        made = home.batch([row(self.count)], node.store.card())
        node.upload(home, made)
        self.promised.add(Batch(names.facility_name(home.name), made.batch))

    def carry(self) -> None:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            if (i, j) not in self.cut:
                carry(self.nodes[i], self.nodes[j], self.choice)

    def step(self) -> None:
        for node in self.choice.sample(self.nodes, 3):
            node.step()

    def partition(self) -> None:
        self.cut ^= {self.choice.choice(((0, 1), (0, 2), (1, 2)))}

    def crash(self) -> None:
        node = self.choice.choice(self.nodes)
        node.close()
        node.open()

    def copy(self) -> None:
        which = self.choice.randrange(3)
        node, folder = self.nodes[which], self.folder / f"copy-{which}"
        node.close()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(node.root, folder)
        node.open()
        self.copies[which] = folder, ReceiptLog(node.layout.log).range().size

    def put_back(self) -> None:
        """Back to an old copy: what only this store held is gone, and its peers notice if they knew more."""
        if not self.copies:
            return
        which = self.choice.choice(sorted(self.copies))
        folder, size = self.copies.pop(which)
        node = self.nodes[which]
        others = [other for other in self.nodes if other is not node]
        self.noticed += [(other, node) for other in others if known(other, node) > size]
        node.close()
        shutil.rmtree(node.root)
        folder.rename(node.root)
        node.open()
        self.promised = {
            batch
            for batch in self.promised
            if any(batch in other.held() for other in others) or batch in node.held()
        }

    def damage(self) -> None:
        node = self.choice.choice(self.nodes)
        held = sorted(node.held())
        others = [other for other in self.nodes if other is not node]
        if held:
            batch = self.choice.choice(held)
            if any(batch in other.held() for other in others):
                at = damage.seen(node.layout.pack(batch.batch).stat())
                damage.found(node.store, batch, "pack-bytes", NOW, at)


def known(observer: Node, observed: Node) -> int:
    """How much of its log a store followed."""
    return ReceiptLog(observer.layout.peer(observed.name) / "log").range().size


def settled(nodes: list[Node]) -> None:
    """One round after everything healed; lost questions are asked again first."""
    for node in nodes:
        node.seconds += STUCK + 1
    rounds(nodes)


OPS = ["upload"] * 4 + ["carry"] * 6 + ["step"] * 6 + ["partition", "crash", "copy", "put_back", "damage"]


@pytest.mark.campaign("peers", small=1, large=10_000)
def test_whatever_happened_after_one_round_all_hold_the_same(
    tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    for number in range(campaign_size):
        choice = random.Random(f"{campaign_seed}.{number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, choice)
        done = []
        for _ in range(30 if campaign_size == 1 else 60):
            done.append(choice.choice(OPS))
            getattr(world, done[-1])()
        settled(world.nodes)
        what = f"schedule {campaign_seed}.{number}: {' '.join(done)}"
        assert len({node.set_hash() for node in world.nodes}) == 1, what
        assert world.promised <= world.nodes[0].held(), what
        for observer, observed in world.noticed:
            assert peers.alarms(observer.layout, observed.name), f"{observer.name} must notice; {what}"
        for node in world.nodes:
            for other in world.nodes:
                if not any(observed is other for _, observed in world.noticed):
                    assert other is node or not peers.alarms(node.layout, other.name), f"false alarm; {what}"
            node.close()
        shutil.rmtree(folder)


def test_a_forked_log_is_alarmed_and_holds_up_nobody(tmp_path: Path) -> None:
    """A peer that tells another story of the same length; one that signs for what is not there."""
    world = World(tmp_path, random.Random(1))
    south, north, west = world.nodes
    for _ in range(4):
        world.upload()
    settled(world.nodes)
    own = ReceiptLog(north.layout.log)
    entries = list(own.entries(0, 1000))
    shutil.rmtree(north.layout.log)
    ReceiptLog(north.layout.log).append(entries[::-1])
    for node in world.nodes:
        node.ask()
    settled(world.nodes)
    assert [kind for _, kind in peers.alarms(south.layout, north.name)] == ["fork"]
    assert [kind for _, kind in peers.alarms(west.layout, north.name)] == ["fork"]

    ghost = Receipt(
        store=north.name, facility=names.facility_name("clinic-west"), batch=names.batch_id("ab" * 32),
        sequence=9, objects=1, bytes=1, stored="2026-11-24T08:30:00Z",
    )  # fmt: skip
    signed = container.sign(ghost, north.store.keys.signing)
    ReceiptLog(north.layout.log).append([receipt_log.encode(signed.data, signed.armor)])
    world.upload()
    for node in world.nodes:
        node.ask()
    settled(world.nodes)
    assert len({node.set_hash() for node in world.nodes}) == 1
    assert world.promised <= south.held()
    for node in world.nodes:
        node.close()


@pytest.mark.campaign("peers", small=2, large=3)
def test_catching_up_costs_what_differs(tmp_path: Path, campaign_size: int) -> None:
    """Ten new batches among so many known ones: the bytes that are read and said do not grow with these."""
    said = {}
    for size in [1_000 * 10**power for power in range(campaign_size)]:
        folder = tmp_path / str(size)
        folder.mkdir()
        a, b, clinic = Node(folder / "a", "south"), Node(folder / "b", "north"), Facility("clinic-a")
        a.enrol(clinic)
        a.knows(b)
        b.knows(a)
        known_entries = list(synthetic(a, size))
        ReceiptLog(a.layout.log).append(known_entries)
        ReceiptLog(b.layout.peer(a.name) / "log").append(known_entries)
        (b.layout.peer(a.name) / "settled").write_text(str(size))
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
    print("bytes of messages by size of the log:", said)
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
