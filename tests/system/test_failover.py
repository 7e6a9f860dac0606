"""Two real stores and a terminal that trusts both: one goes away, comes back, is another one, is killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import settings as store_settings
from facility_sync import pack
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import container, envelope, keys, messages
from schemas.errors import SealError
from tests.kit import images
from tests.kit.site import BIN, Site, Terminal, make_site
from tests.system.conftest import free_port


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores `north` and `south`, and a terminal that trusts them in this order; nobody serves."""
    folder = tmp_path_factory.mktemp("stores")
    north, south = (make_site(folder / name, free_port(), name) for name in ("north", "south"))
    north.terminal("clinic-a").join(south)
    return folder


@pytest.fixture
def stores(template: Path, tmp_path: Path) -> tuple[Site, Site]:
    """Both stores."""
    shutil.copytree(template, tmp_path / "stores")
    return Site(tmp_path / "stores" / "north"), Site(tmp_path / "stores" / "south")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def terminal(stores: tuple[Site, Site], source: Path) -> Terminal:
    """Trusts north first, then south."""
    made = Terminal(stores[0], "clinic-a")
    made.settings(sources=[str(source)])
    return made


def batches(site: Site) -> set[str]:
    """The batches a store has committed."""
    return {path.name for path in (site.root / "manifests").glob("clinic-a/*")}


def receipted(terminal: Terminal) -> dict[str, list[str]]:
    """Holders of each batch, as the ledger knows them."""
    with closing(Ledger(terminal.home / "ledger.sqlite3")) as ledger:
        return {entry.batch: ledger.holders(entry.batch) for entry in ledger.batches("stored")}


def test_away_the_next_one_is_used_and_back_it_is_the_first_again(
    stores: tuple[Site, Site], terminal: Terminal, source: Path, tmp_path: Path
) -> None:
    north, south = stores
    images.write(source, 1, 1, 1, 1)
    with south.serving():
        done = terminal("sync", "--json")
        assert (done.status, done.json["store"], list(done.json["away"])) == (0, "south", ["north"]), done.err
        (batch,) = batches(south)
        assert receipted(terminal) == {batch: ["south"]}

        said = terminal.ask("query", "--facility", "clinic-a")
        assert (said.status, "1 study" in said.err) == (0, True)
        assert "north is away: no connection" in said.err
        assert "Answered by south." in said.err
        counted = terminal.ask("query", "--count", "--json").json
        assert (counted["instances"], counted["store"], counted["behind"]) == (1, "south", 0)
        got = terminal.ask("fetch", "--facility", "clinic-a", "--to", tmp_path / "back", "--json")
        assert (got.status, got.json["restored"], got.json["store"]) == (0, 1, "south"), got.err
        assert terminal("sync", "--store", "north", "--json").status == 11
        with north.serving():
            images.write(source, 1, 1, 1, 2)
            done = terminal("sync", "--json")
            assert (done.status, done.json["store"], done.json["away"]) == (0, "north", {})
            assert (done.json["known"], done.json["taken"], done.json["sent_batches"]) == (1, 1, 1)
            said = terminal.ask("query", "--facility", "clinic-a", "--json")
            assert json.loads(said.err.splitlines()[0]) == {"store": "north", "away": {}, "behind": 1}
            other = terminal.ask("query", "--facility", "clinic-a", "--store", "south")
            assert "Answered by south; 1 of your batches is not there yet." in other.err
    assert batches(north).isdisjoint(batches(south))
    assert sorted(receipted(terminal).values()) == [["north"], ["south"]]
    assert [path.read_bytes() for path in (tmp_path / "back").rglob("*.dcm")] == [
        path.read_bytes() for path in source.iterdir() if path.name.endswith("1.dcm")
    ]


def test_a_store_killed_during_a_round_is_replaced_within_it_and_keeps_the_same_batches(
    stores: tuple[Site, Site], terminal: Terminal, source: Path
) -> None:
    north, south = stores
    rng = random.Random(6)
    for instance in range(60):
        images.write(source, 1, 1, 1, instance, pixels=rng.randbytes(60_000))
    terminal.settings(batch_mib=1, receipt_wait_seconds=4)
    first = north.start()
    with south.serving():
        round_ = subprocess.Popen(
            [str(BIN / "fsync"), "--home", str(terminal.home), "sync", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_outbox(terminal)
        first.kill()
        first.wait()
        out, err = round_.communicate(timeout=100)
        report = json.loads(out)
        assert (round_.returncode, report["store"], report["taken"]) == (0, "south", 60), err
        assert list(report["away"]) == ["north"]
        assert list((terminal.home / "outbox").iterdir()) == []
        counts = terminal.ask("query", "--count", "--json").json
        with north.serving():  # takes in what was on its shelf
            again = terminal("sync", "--json")
            assert (again.status, again.json["known"], again.json["sent_batches"]) == (0, 60, 0)
            counts_north = terminal.ask("query", "--count", "--json").json
    made = set(receipted(terminal))
    assert batches(north) | batches(south) == made  # the same ids, no second batch of the same images
    for site in stores:
        assert site.store("check", "--read-data").status == 0
    assert counts["store"] == "south"
    assert counts["instances"] + counts_north["instances"] >= 60


def wait_for_outbox(terminal: Terminal) -> None:
    """Until a sealed batch lies there."""
    until = time.monotonic() + 60
    while not list((terminal.home / "outbox").glob("*.batch")):
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_batch_that_waits_is_sealed_anew_for_a_store_that_was_trusted_later(
    stores: tuple[Site, Site], terminal: Terminal, source: Path
) -> None:
    north, south = stores
    rng = random.Random(7)
    for instance in range(40):
        images.write(source, 1, 1, 1, instance, pixels=rng.randbytes(60_000))
    assert terminal("store", "forget", "south").status == 0
    terminal.settings(batch_mib=1)
    first = north.start()
    round_ = subprocess.Popen(
        [str(BIN / "fsync"), "--home", str(terminal.home), "sync"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_outbox(terminal)
    first.send_signal(signal.SIGSTOP)  # no more receipts
    time.sleep(0.3)
    round_.kill()
    round_.wait()
    first.kill()
    first.wait()
    with closing(Ledger(terminal.home / "ledger.sqlite3")) as ledger:
        waiting = [entry.batch for entry in ledger.batches("ready", "sent")]
    assert terminal("trust", south.folder / "store.card").status == 0

    home = Home(terminal.home)
    place = store_settings.open_store(south.root)
    recipients = [keys.recipient_of(home.age_identity), place.card().age_recipient]
    for batch in waiting[:1]:  # killed after this, and before the ledger knows it
        path = terminal.home / "outbox" / f"{batch}.batch"
        before = envelope.open_bytes(path.read_bytes(), [home.age_identity], limit=10**8)
        with pytest.raises(SealError):
            envelope.open_bytes(path.read_bytes(), [place.keys.age_identity], limit=10**8)
        pack.reseal(path, home.age_identity, recipients)
        assert envelope.open_bytes(path.read_bytes(), [place.keys.age_identity], limit=10**8) == before

    with south.serving():
        done = terminal("sync", "--json")
        assert (done.status, done.json["store"], done.json["waiting"]) == (0, "south", []), done.err
    assert waiting, "the round was over before it could be stopped"
    assert set(waiting) <= batches(south)
    assert {tuple(holders) for batch, holders in receipted(terminal).items() if batch in waiting} == {
        ("south",)
    }


def test_another_host_key_and_a_refusal_are_loud_and_nobody_else_is_asked(
    stores: tuple[Site, Site], terminal: Terminal, source: Path, tmp_path: Path
) -> None:
    north, south = stores
    images.write(source, 1, 1, 1, 1)
    card = json.loads((south.folder / "store.card").read_text())
    with south.serving():
        terminal.settings(store_port=card["port"])  # where north was, somebody else answers
        words: tuple[tuple[str, ...], ...] = (
            ("sync",),
            ("query", "--facility", "clinic-a"),
            ("fetch", "--facility", "clinic-a", "--to", str(tmp_path / "out")),
        )
        for command in words:
            done = terminal(*command) if command == ("sync",) else terminal.ask(*command)
            assert done.status == 13, done.err
        assert batches(south) == set()
        terminal.settings(store_port=0)
        wrong = tmp_path / "wrong"
        wrong.write_text("guess\n")
        wrong.chmod(0o600)
        with north.serving():
            done = terminal("query", "--count", "--user", "kimura", "--password-file", wrong)
            assert (done.status, "south" in done.err) == (14, False)
        home = terminal.home / "keys" / "ssh"
        home.write_bytes(keys.private_pem(Ed25519PrivateKey.generate()))
        with north.serving():
            assert terminal("sync").status == 14


def put_replica(at: Site, signer: Site, terminal: Terminal, batch: str, *, damaged: bool = False) -> None:
    """What replication leaves on the facility's shelf: the other store's own receipt, or notice."""
    found = json.loads((terminal.home / "receipts" / f"{batch}.receipt.json").read_text())
    place = store_settings.open_store(signer.root)
    told: messages.Message = messages.Receipt(
        store=place.name, facility="clinic-a", batch=batch, sequence=found["sequence"], bytes=found["bytes"],  # type: ignore[arg-type]
        objects=found["objects"], stored=messages.rfc3339(datetime.now(UTC)),
    )  # fmt: skip
    if damaged:
        told = messages.Notice(
            store=place.name, facility="clinic-a", batch=batch, reason="pack-bytes",  # type: ignore[arg-type]
            found=messages.rfc3339(datetime.now(UTC)),
        )  # fmt: skip
    signed = container.sign(told, place.keys.signing)
    recipient = keys.recipient_of(Home(terminal.home).age_identity)
    sealed = envelope.seal_bytes(container.whole(signed), [recipient])
    (at.root / "shelves" / "clinic-a" / "out" / f"{batch}.{place.name}.replica").write_bytes(sealed)


def test_replicas_are_counted_when_their_store_is_trusted(
    stores: tuple[Site, Site], terminal: Terminal, source: Path, tmp_path: Path
) -> None:
    north, south = stores
    images.write(source, 1, 1, 1, 1)
    assert terminal("store", "forget", "south").status == 0
    with north.serving():
        assert terminal("sync").status == 0
        (batch,) = batches(north)
        put_replica(north, south, terminal, batch)
        assert terminal("sync").status == 0
        assert list((north.root / "shelves" / "clinic-a" / "out").iterdir()) == []
    listed = terminal("receipts")
    assert (listed.status, "south (its store is not trusted here)" in listed.out) == (0, True), listed.out
    assert receipted(terminal) == {batch: ["north"]}
    prune = ("prune", "--older-than", "0", "--require-replicas", "1", "--json")
    assert terminal(*prune).json["kept"] == {"replicas": 1}

    assert terminal("trust", south.folder / "store.card").status == 0
    assert receipted(terminal) == {batch: ["north", "south"]}
    assert "stored, 1 replica: 1" in terminal("status").out
    assert "stored, 1 replica  " in terminal("status", "--files").out
    (shown,) = terminal("status", "--files", "--json").json["sources"]
    assert (shown["replicas"], shown["files"][0]["replicas"]) == ({"1": 1}, 1)

    for damaged, holders in ((True, ["north"]), (False, ["north", "south"])):  # and whole again
        put_replica(north, south, terminal, batch, damaged=damaged)
        with north.serving():
            assert terminal("sync").status == 0
        assert receipted(terminal) == {batch: holders}
    assert terminal("receipts").out.count("north, south") == 1
    (item,) = terminal("receipts", "--json").json["receipts"]
    assert [(one["store"], one["verified"]) for one in item["replicas"]] == [("south", True)]
    assert terminal("receipts", "--export", tmp_path / "proof").status == 0
    checked = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "south", "-n", "receipt@facility-sync",
         "-s", f"{batch}.south.receipt.json.sig"],
        cwd=tmp_path / "proof", stdin=(tmp_path / "proof" / f"{batch}.south.receipt.json").open("rb"),
        capture_output=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr

    (terminal.home / "ledger.sqlite3").unlink()
    with north.serving():  # the ledger is an index of the receipts
        assert terminal("sync", "--json").json["held"] == 1
    with closing(Ledger(terminal.home / "ledger.sqlite3")) as ledger:
        assert (ledger.holders(batch), ledger.head()) == (["north", "south"], (1, batch))
    assert terminal("store", "first", "south").status == 0
    assert terminal("store", "forget", "north").status == 0
    (item,) = terminal("receipts", "--json").json["receipts"]
    assert (item["store"], item["verified"], item["replicas"][0]["verified"]) == ("south", True, False)
    assert terminal(*prune).json["kept"] == {"replicas": 1}
