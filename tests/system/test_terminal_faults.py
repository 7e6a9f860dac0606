"""The n-th operation on a terminal's disk fails, n = 1, 2, 3, …; the next round finishes the job."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from central_store.settings import open_store
from facility_sync.home import Home
from facility_sync.rounds import Round
from schemas.errors import SettingsError, SyncError
from tests.kit import images, invariants
from tests.kit.faults import Disk, failing, shortening
from tests.kit.site import Site

KINDS = ("create", "write", "fsync", "rename", "unlink", "mkdir")
FAULTS = [
    *((kind, number) for kind in KINDS for number in (errno.EIO, errno.ENOSPC)),
    ("short", errno.ENOSPC),
]


class Quiet:
    """Nobody looks."""

    def step(self, what: str, amount: int) -> None:
        pass


@pytest.mark.campaign("faults", small=5, large=100_000)
def test_the_nth_operation_of_a_round_fails(
    site: Site, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    source = tmp_path / "images"
    source.mkdir()
    terminal = site.terminal("clinic-a", source)
    terminal.settings(workers=1, receipt_wait_seconds=20)
    rng, store = random.Random(campaign_seed), open_store(site.root)

    def new_image(number: int) -> Home:
        images.write(source, 1, 1, 1, number, pixels=rng.randbytes(2048))
        return Home(terminal.home)

    with site.serving():
        ops: list[str] = []
        home = new_image(0)
        with Disk(home.root, after=lambda op: ops.append(op.kind)) as disk:
            assert Round(home, Quiet()).run().complete
        assert disk.count > len(ops) > 10, "the workers, or this process, were not seen"
        tried = completed = 0
        every = [
            (kind, number, at)
            for kind, number in FAULTS
            for at in range(1, disk.kinds["write" if kind == "short" else kind] + 1)
        ]
        for kind, number, at in rng.sample(every, len(every)):
            if tried == campaign_size:
                break
            home = new_image(completed + tried + 1)
            fault = (
                shortening(at) if kind == "short" else failing(at, OSError(number, os.strerror(number)), kind)
            )
            current = Round(home, Quiet())
            try:
                with Disk(home.root, before=fault):
                    current.run()
                completed += 1
                continue  # it has fewer operations of this kind
            except SyncError as error:
                tried += 1
                assert isinstance(error, SettingsError), f"{kind} {at}: {error!r}"
                assert "disk of this terminal" in str(error)
            listed = {line.path for line in current.report.waiting + current.report.refused}
            assert invariants.terminal(home, [source], store, listed) == [], f"{kind} {number} {at}"
            assert Round(Home(home.root), Quiet()).run().complete, f"{kind} {number} {at}"
            assert invariants.terminal(home, [source], store, set()) == [], f"{kind} {number} {at}"
            assert list(home.outbox.iterdir()) == []
    print(f"{tried} faults in rounds, {completed} rounds had fewer operations; {len(every)} possible")
    signers = {"clinic-a": home.card().ssh_key}
    assert invariants.at_rest(store, signers, {}) == []
