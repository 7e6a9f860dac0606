"""The courier on a bad road: what was sent is stored once, and nothing counts that was not receipted."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import courier as courier_module
from facility_sync.courier import mark_path, outbox_path
from facility_sync.patience import Patience
from schemas import keys
from schemas.errors import AccessDenied, Damaged, HostKeyError, OutcomeUnknown, SyncError, TransitError
from schemas.transit import pump
from schemas.transit.shelf import ShelfFull
from tests.kit.road import QUICK, Ends, make_ends, open_ends
from tests.kit.servers import OPENSSH_USER, SSHD, Endpoint, openssh_server
from tests.kit.wire import wire


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ends(tmp_path_factory.mktemp("made"))


@pytest.fixture
def ends(made: Path, tmp_path: Path) -> Iterator[Ends]:
    opened = open_ends(shutil.copytree(made, tmp_path / "ends"))
    yield opened
    opened.ledger.close()


@contextmanager
def road(kind: str, ends: Ends) -> Iterator[Endpoint]:
    """The store behind one of the two servers."""
    if kind == "embedded":
        with ends.served() as server:
            yield server
    else:
        if SSHD is None:
            pytest.skip("sshd is not installed")
        authorized = {"clinic-a": ends.facility.card.ssh_key}
        key = keys.load_private(ends.store.keys.host)
        with openssh_server({"clinic-a": ends.shelf}, authorized, host_key=key) as server:
            ends.dial(server, OPENSSH_USER)
            yield server


def send(ends: Ends, *batches: str, patience: Patience = QUICK) -> list[str]:
    with ends.courier(patience) as courier:
        futures = [courier.send(batch) for batch in batches]
        done = [future.result(60) for future in futures]
    for batch in done:
        ends.ledger.mark_sent(batch)
    return done


def finish(ends: Ends, stored: int) -> None:
    """The store takes in what lies there, the terminal its receipts."""
    ends.work()
    ends.take_news()
    ends.check()
    assert len(ends.ledger.batches("stored")) == stored
    assert list(ends.home.outbox.iterdir()) == []


@pytest.mark.parametrize("kind", ["embedded", "openssh"])
def test_a_broken_upload_goes_on_within_the_round(
    kind: str, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "CHECKPOINT", 512 * 1024)
    monkeypatch.setattr(pump, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(pump, "IN_FLIGHT", 512 * 1024)
    batch = ends.batch(3_000_000)
    size = outbox_path(ends.home, batch).stat().st_size
    with road(kind, ends) as server, wire(server) as broken:
        ends.dial(broken.endpoint, ends.home.settings.store_user)
        broken.break_after(2_000_000, unit="bytes")
        assert send(ends, batch) == [batch]
        assert broken.broken == 1
        travelled = broken.bytes["up"]
        ends.dial(server, ends.home.settings.store_user)
        finish(ends, 1)
    assert size < travelled < 1.6 * size  # a step and what was under way a second time, not all of it


@pytest.mark.parametrize("kind", ["embedded", "openssh"])
def test_what_is_at_the_store_already_is_not_sent_again(kind: str, ends: Ends) -> None:
    on_shelf, receipted = ends.batch(400_000), ends.batch(400_000)
    with road(kind, ends) as server, wire(server) as counting:
        ends.dial(counting.endpoint, ends.home.settings.store_user)
        send(ends, receipted)
        ends.work()
        send(ends, on_shelf)
        counting.break_after(0)
        send(ends, on_shelf, receipted)
        assert counting.bytes["up"] < 20_000  # a login and some questions: no 400 kB
        finish(ends, 2)


def test_one_bad_batch_never_blocks_the_queue(ends: Ends) -> None:
    bad, *good = [ends.batch() for _ in range(5)]
    with ends.served(fault=f"refuse:{bad}"), ends.courier() as courier:
        futures = [courier.send(batch) for batch in (bad, *good)]
        assert [future.result(20) for future in futures[1:]] == good
        assert not futures[0].done()  # it is tried again behind the others
        with pytest.raises(TransitError):
            futures[0].result(20)
        assert courier.broken is None
    with ends.served():
        assert send(ends, bad) == [bad]
        finish(ends, 5)


def test_a_batch_that_cannot_be_read_is_its_own_trouble(ends: Ends) -> None:
    gone, good = ends.batch(), ends.batch()
    outbox_path(ends.home, gone).unlink()
    with ends.served(), ends.courier() as courier:
        futures = [courier.send(batch) for batch in (gone, good)]
        assert futures[1].result(20) == good
        with pytest.raises(Damaged):
            futures[0].result(20)


def test_a_store_that_comes_back_gets_everything(ends: Ends) -> None:
    batches = [ends.batch() for _ in range(3)]
    with ends.served() as server:
        where = server
    with ends.courier() as courier:  # nobody is there yet
        futures = [courier.send(batch) for batch in batches]
        assert not any(future.done() for future in futures)
        with ends.served() as server, wire(server) as late:
            ends.dial(late.endpoint)  # the courier reads the settings for each call
            assert [future.result(30) for future in futures] == batches
        assert where.port != server.port
    with ends.served():
        finish(ends, 3)


def test_a_store_that_stays_away_is_given_up_in_bounded_time(ends: Ends) -> None:
    batches = [ends.batch() for _ in range(3)]
    with ends.served():
        pass
    patience = Patience(seconds=0.5, jitter=lambda: 0.5, first=0.01, most=0.1)
    with ends.courier(patience) as courier:
        for future in [courier.send(batch) for batch in batches]:
            with pytest.raises(TransitError):
                future.result(20)
        assert isinstance(courier.broken, TransitError)
        with pytest.raises(TransitError):
            courier.send(batches[0]).result(1)
    assert all(outbox_path(ends.home, batch).exists() for batch in batches)


@pytest.mark.parametrize("case", ["another host key", "not enrolled"])
def test_another_server_and_a_refusal_are_never_tried_again(ends: Ends, case: str) -> None:
    batches = [ends.batch() for _ in range(2)]
    with ends.served() as server, wire(server) as counting:
        ends.dial(counting.endpoint)
        if case == "another host key":
            other = keys.ssh_line(Ed25519PrivateKey.generate().public_key())
            card = ends.store.card()
            ends.home.trust(card.to_bytes().replace(card.host_key.encode(), other.encode()))
            ends.dial(counting.endpoint)
            expected: type[SyncError] = HostKeyError
        else:
            (ends.home.root / "keys" / "ssh").write_bytes(keys.private_pem(Ed25519PrivateKey.generate()))
            ends.home.__dict__.pop("ssh_key", None)
            expected = AccessDenied
        with ends.courier() as courier:
            for future in [courier.send(batch) for batch in batches]:
                with pytest.raises(expected):
                    future.result(20)
        assert counting.packets["up"] < 12  # one connection's worth
    assert list((ends.shelf / "in").iterdir()) == []


def test_an_unknown_outcome_is_looked_up_before_anything_is_repeated(ends: Ends) -> None:
    batch = ends.batch()
    patience = Patience(seconds=1, jitter=lambda: 0.5, attempts=1, first=0.01, most=0.1)
    with (
        ends.served(fault="vanish-after-rename"),
        ends.courier(patience) as courier,
        pytest.raises(OutcomeUnknown),
    ):
        courier.send(batch).result(20)
    inode = (ends.shelf / "in" / f"{batch}.batch").stat().st_ino
    with ends.served():
        assert send(ends, batch) == [batch]
        assert (ends.shelf / "in" / f"{batch}.batch").stat().st_ino == inode  # not sent again
        finish(ends, 1)


def test_a_full_shelf_says_so_and_is_tried_later(ends: Ends) -> None:
    first, second = ends.batch(200_000), ends.batch(200_000)
    with ends.served(shelf_bytes=300_000) as server:
        send(ends, first)
        with ends.courier() as courier, pytest.raises(ShelfFull, match="shelf is full"):
            courier.send(second).result(20)
        assert [path.name for path in (ends.shelf / "in").iterdir()] == [f"{first}.batch"]
        assert outbox_path(ends.home, second).exists()
        with ends.courier() as courier:
            future = courier.send(second)
            ends.work()  # there is room again
            ends.dial(server)
            with suppress(ShelfFull):
                future.result(20)
        send(ends, second)
        finish(ends, 2)


def test_a_stopped_round_leaves_a_mark_that_the_next_one_uses(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "CHECKPOINT", 256 * 1024)
    monkeypatch.setattr(pump, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(pump, "IN_FLIGHT", 256 * 1024)
    batch = ends.batch(2_000_000)
    once = Patience(seconds=1, jitter=lambda: 0.5, attempts=1)
    with ends.served() as server, wire(server) as broken:
        ends.dial(broken.endpoint)
        broken.break_after(1_200_000, unit="bytes")
        with ends.courier(once) as courier, pytest.raises(TransitError):
            courier.send(batch).result(20)
        mark = int(mark_path(ends.home, batch, "central").read_bytes())
        assert 256 * 1024 <= mark < 2_000_000
        moved: list[int] = []
        with ends.courier() as courier:
            courier._progress = moved.append
            courier.send(batch).result(20)
        assert sum(moved) == outbox_path(ends.home, batch).stat().st_size - mark
        assert not mark_path(ends.home, batch, "central").exists()
        ends.ledger.mark_sent(batch)
        finish(ends, 1)


def test_closing_does_not_wait_for_what_is_left(ends: Ends) -> None:
    batches = [ends.batch() for _ in range(3)]
    with ends.served():
        pass
    slow = Patience(seconds=1000, jitter=lambda: 0.5, first=500, most=500)
    with ends.courier(slow) as courier:
        futures = [courier.send(batch) for batch in batches]
    assert all(future.cancelled() for future in futures)
    assert threading.active_count() < 20


def test_closing_does_not_wait_for_a_store_that_does_not_answer(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "_CLOSING", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ends.dial(Endpoint("127.0.0.1", mute.getsockname()[1], ""))
        with ends.courier(replace(QUICK, timeout=20)) as courier:
            future = courier.send(ends.batch())
            theirs, _ = mute.accept()  # it waits for a word from here on
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        assert not future.done()
        theirs.close()
