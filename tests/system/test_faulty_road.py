"""A wire that breaks after any packet, a server that fails any request or lies: all noticed, nothing twice.

In the default run at a few places by a fixed seed, in the campaign `faults` at every one of them.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from facility_sync import courier, exchange
from facility_sync.patience import Patience, persist
from schemas.errors import SyncError, TransitError
from schemas.transit import pump, sftp
from tests.kit.road import Ends, make_ends, open_ends
from tests.kit.wire import Wire, wire

PATIENCE = Patience(seconds=30, jitter=lambda: 0.5, first=0.01, most=0.1, timeout=0.8)
BATCH = 600_000  # bytes: three WRITEs


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """Both ends, and the store's service at work; in the end its catalog is compared with what was sent."""
    tmp_path = tmp_path_factory.mktemp("faulty")
    opened = open_ends(make_ends(tmp_path / "ends"))
    command = [sys.executable, "-m", "central_store", "--root", str(opened.store.layout.root)]
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(
            [*command, "serve", "--no-sftp", "--json"], stdout=subprocess.PIPE, stderr=log
        )
    assert service.stdout is not None
    try:
        assert service.stdout.readline(), (tmp_path / "log").read_text()
        yield opened
    finally:
        service.terminate()
        assert service.wait(20) == 0
        service.stdout.close()
    opened.check()  # the catalog can be opened now
    opened.ledger.close()


@pytest.fixture(autouse=True)
def quick_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take five minutes for an fsync or a rename; here it has not."""
    monkeypatch.setattr(pump, "_SLOW", 1.0)
    monkeypatch.setattr(sftp, "_RENAMING", 1.0)


def deliver(ends: Ends, patience: Patience = PATIENCE, batch: str = "") -> str:
    """One batch, or this one again, to the store and its answer back, as a round does; what became of it."""
    again, batch = bool(batch), batch or ends.batch(BATCH)
    with ends.courier(patience) as carrier:
        try:
            carrier.send(batch, look=again).result(60)
        except SyncError:
            return "not sent"
    ends.ledger.mark_sent(batch)
    until, pause = time.monotonic() + 30, 0.02
    with exchange.connect(ends.home, timeout=patience.timeout, patience=patience) as desk:
        while time.monotonic() < until:
            try:
                persist(lambda: courier.take_news(ends.home, ends.ledger, desk), desk.call_again, patience)
            except TransitError:  # the store could not say: such a round ends here, and nothing is claimed
                return "unanswered"
            known = ends.ledger.batch(batch)
            assert known is not None
            if known.state != "sent":
                return known.state
            time.sleep(pause)
            pause = min(2 * pause, 0.3)
    return "sent"


def places(most: int, size: int, seed: int) -> list[int]:
    """Which of 1 to `most` to try: all of them if `size` allows."""
    every = range(1, most + 1)
    return list(every) if size >= most else sorted(random.Random(seed).sample(every, size))


def undisturbed(ends: Ends, through: Wire) -> dict[str, int]:
    """Packets of one delivery, by direction."""
    through.break_after(0)
    assert deliver(ends) == "stored"
    return dict(through.packets)


@pytest.mark.campaign("faults", small=5, large=1000)
@pytest.mark.parametrize("way", ["up", "down"])
def test_the_wire_breaks_after_any_packet(
    ends: Ends, way: Literal["up", "down"], campaign_size: int, campaign_seed: int
) -> None:
    with ends.served() as server, wire(server) as through:
        ends.dial(through.endpoint)
        most = undisturbed(ends, through)[way]
        chosen = places(most, campaign_size, campaign_seed)
        broke = 0
        for packets in chosen:
            through.break_after(packets, way)
            assert deliver(ends) == "stored", packets
            broke += through.broken
        assert broke >= len(chosen) // 2  # waiting takes some packets more or fewer each time


@pytest.mark.campaign("faults", small=1, large=1000)
@pytest.mark.parametrize("way", ["up", "down"])
def test_the_wire_falls_silent_after_any_packet(
    ends: Ends, way: Literal["up", "down"], campaign_size: int, campaign_seed: int
) -> None:
    """Nobody hangs up: only our own clocks can tell."""
    with ends.served(silent_seconds=1) as server, wire(server) as through:
        ends.dial(through.endpoint)
        most = undisturbed(ends, through)[way]
        for packets in places(most, campaign_size, campaign_seed):
            through.break_after(packets, way, stall=True)
            assert deliver(ends) == "stored", packets


@pytest.mark.campaign("faults", small=1, large=40)
@pytest.mark.parametrize("fault", ["fail-reply", "lose-reply", "double-reply", "late-reply", "silent"])
def test_the_server_goes_wrong_at_any_request(
    ends: Ends, fault: str, campaign_size: int, campaign_seed: int
) -> None:
    for number in places(24, campaign_size, campaign_seed + len(fault)):
        with ends.served(fault=f"{fault}:{number}"):
            outcome = deliver(ends)
        assert outcome in ("stored", "not sent", "unanswered"), number
    with ends.served():  # a healthy server again: whatever is left gets there
        left = [entry.batch for entry in ends.ledger.batches("ready", "sent")]
        with ends.courier() as carrier:
            for batch in left:
                ends.ledger.mark_sent(carrier.send(batch).result(60))
        assert deliver(ends) == "stored"
        until = time.monotonic() + 30
        while ends.ledger.batches("sent"):
            assert time.monotonic() < until
            ends.take_news()
    assert not ends.ledger.batches("ready")


@pytest.mark.campaign("faults", small=3, large=3)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_failed_write_is_noticed_and_made_good(ends: Ends, number: int, campaign_size: int) -> None:
    assert number <= campaign_size
    with ends.served(fault=f"fail-write:{number}"):  # once in each session
        assert deliver(ends) == "stored"


@pytest.mark.campaign("faults", small=3, large=3)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("fault", ["lie-write", "cut-tail"])
def test_a_write_that_was_not_done_never_gets_a_receipt(
    ends: Ends, fault: str, number: int, campaign_size: int
) -> None:
    """Success, the right size, zeros inside: over SFTP nobody could tell; the store's verification can."""
    assert number <= campaign_size
    with ends.served(fault=f"{fault}:{number}"):
        outcome = deliver(ends)
    if fault == "cut-tail" and number == 3:
        assert outcome == "stored"  # too short: noticed by us, and sent again
    else:
        batch = ends.sent[-1]
        assert outcome == "ready"  # damaged on its way: once more
        assert not list(ends.home.receipts.glob(f"{batch}*"))
        with ends.served(fault=f"{fault}:{number}"):
            assert deliver(ends, batch=batch) == "refused"
        entry = ends.ledger.batch(batch)
        assert entry is not None
        assert entry.reason == "store:seal"
        assert not list(ends.home.receipts.glob(f"{batch}*"))


def test_what_was_damaged_on_its_way_is_stored_by_the_next_round(ends: Ends) -> None:
    with ends.served(fault="lie-write:2"):
        assert deliver(ends) == "ready"
    with ends.served():
        assert deliver(ends, batch=ends.sent[-1]) == "stored"
