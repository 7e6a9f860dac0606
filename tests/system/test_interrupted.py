"""Rounds and stores stopped at any moment: the next one finishes the job, nothing twice, nothing missing."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit import images
from tests.kit.servers import OPENSSH_USER, SSHD, openssh_server
from tests.kit.site import BIN, Site


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(site: Site, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for instance in range(30):
        images.write(folder, 1, 1, 1, instance, pixels=random.Random(instance).randbytes(40_000))
    terminal = site.terminal("clinic-a", folder)
    terminal.settings(batch_mib=1)
    return folder


def all_is_well(site: Site, source: Path, out: Path) -> None:
    """Every file stored once, with a receipt that holds, restored bit for bit; the store checks clean."""
    a = site.terminals["clinic-a"]
    done = a("sync", "--json")
    assert done.status == 0, done.err + done.out
    again = a("sync", "--json")
    assert (again.json["known"], again.json["taken"]) == (len(list(source.iterdir())), 0)
    back = a.ask("fetch", "--facility", "clinic-a", "--to", out, "--json")
    assert back.status == 0, back.err
    assert digests(out) == digests(source)
    counted = a.ask("query", "--count", "--json").json
    assert counted["instances"] == len(list(source.iterdir()))
    assert list(a.home.joinpath("outbox").iterdir()) == []
    check = site.store("check", "--read-data", "--json")
    assert check.status == 0, check.out
    for receipt in a.home.joinpath("receipts").glob("*.json"):
        assert receipt.with_name(receipt.name + ".sig").exists()


@pytest.mark.campaign("faults", large=100, only=True)
def test_a_round_killed_at_any_moment_is_finished_by_the_next(
    site, source, tmp_path, campaign_size, campaign_seed
):
    """As a user starts it, imports included; more moments, and those of the default run: `test_killed.py`."""
    a = site.terminals["clinic-a"]
    rng = random.Random(campaign_seed)
    with site.serving():
        started = time.monotonic()
        subprocess.run(
            [str(BIN / "fsync"), "--home", str(a.home), "status"], capture_output=True, check=False
        )
        startup = time.monotonic() - started
        for number in range(campaign_size):
            images.write(source, 1, 1, 2, number, pixels=rng.randbytes(20_000))
            with subprocess.Popen(
                [str(BIN / "fsync"), "--home", str(a.home), "sync"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as process:
                time.sleep(rng.uniform(0.5 * startup, 2.5 * startup))
                process.kill()
        all_is_well(site, source, tmp_path / "out")


@pytest.mark.campaign("faults", large=50, only=True)
def test_a_store_killed_at_any_moment_loses_nothing_it_gave_a_receipt_for(
    site, source, tmp_path, campaign_size, campaign_seed
):
    a = site.terminals["clinic-a"]
    a.settings(receipt_wait_seconds=1)
    rng = random.Random(campaign_seed)
    for number in range(campaign_size):
        images.write(source, 1, 1, 3, number, pixels=rng.randbytes(20_000))
        store = site.start()
        with subprocess.Popen(
            [str(BIN / "fsync"), "--home", str(a.home), "sync"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(rng.uniform(0.3, 1.6))
            store.kill()
            store.wait()
            process.wait(60)
    a.settings(receipt_wait_seconds=20)
    with site.serving():
        all_is_well(site, source, tmp_path / "out")


@pytest.fixture
def hears_ctrl_c():
    """A shell that runs the tests in the background lets them ignore it, and all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_with_a_word(site, source, tmp_path, number):
    a = site.terminals["clinic-a"]
    a.settings(settle_seconds=60)  # the round waits for files to settle: a moment that lasts
    images.write(source, 9)
    with site.serving():
        process = subprocess.Popen(
            [str(BIN / "fsync"), "--home", str(a.home), "sync"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 20
        while not list(a.home.glob("staging/*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        assert "next run" in err
        a.settings(settle_seconds=0)
        all_is_well(site, source, tmp_path / "out")


def test_a_second_round_at_the_same_time_leaves_with_a_word(site, source):
    a = site.terminals["clinic-a"]
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held', flush=True); input()"
    )
    with (
        site.serving(),
        subprocess.Popen(
            [sys.executable, "-c", code, str(a.home / "round.lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        done = a("sync", "--json")
        assert done.status == 4
        assert "another round" in done.err
        holder.communicate("\n", timeout=10)
        assert a("sync").status == 0


def test_a_second_store_on_the_same_root_leaves_with_a_word(site):
    with site.serving():
        done = site.store("serve", "--port", "0")
        assert done.status == 4


def test_without_the_service_batches_wait_and_ingest_takes_them(site, source, tmp_path):
    """OpenSSH in front, `fstore ingest` from cron behind it."""
    if SSHD is None:
        pytest.skip("no sshd on this machine")
    from schemas import keys

    a = site.terminals["clinic-a"]
    a.settings(receipt_wait_seconds=1, store_user=OPENSSH_USER)
    key = a.home.joinpath("clinic-a.card").read_text().split('"ssh_key":"')[1].split('"')[0]
    shelf = site.root / "shelves" / "clinic-a"
    with openssh_server({"clinic-a": shelf}, {"clinic-a": key}) as (_, port, host_key):
        card = site.folder / "store.card"
        pinned = card.read_text().split('"host_key":"')[1].split('"')[0]
        card.write_text(card.read_text().replace(pinned, keys.ssh_key(host_key)))
        assert a("trust", card, "--port", str(port)).status == 0
        a.settings(settle_seconds=0, receipt_wait_seconds=1, store_user=OPENSSH_USER)
        first = a("sync", "--json")
        assert first.status == 12, first.err  # nobody answers what is held: it looks again next time
        ingest = site.store("ingest", "--json")
        assert ingest.status == 0, ingest.err
        process = site.start("--no-sftp")
        try:
            all_is_well(site, source, tmp_path / "out")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
