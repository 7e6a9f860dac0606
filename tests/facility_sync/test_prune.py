"""Receipts and pruning: only what is stored beyond doubt goes, and nobody can make anything else go."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import inventory, line_log, prune, receipts
from facility_sync.home import Home
from facility_sync.identity import domains, tokens
from facility_sync.identity.domains import Keyring
from facility_sync.ledger import Entry, Ledger
from schemas import container, keys, messages
from schemas.errors import SettingsError
from schemas.transit import durable

A, B = "0a" * 32, "0b" * 32
NOW = datetime(2026, 11, 24, 8, 30, tzinfo=UTC)
STORED = messages.rfc3339(NOW - timedelta(days=40))


@dataclass
class Terminal:
    """A home with a trusted store whose key is at hand, a source, and a ledger."""

    home: Home
    source: Path
    ledger: Ledger
    keyring: Keyring
    store_key: Ed25519PrivateKey

    def file(self, name: str, data: bytes = b"an image") -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def record(self, *paths: Path, batch: str = A, held: bool = False) -> None:
        entries = []
        for path in paths:
            status, below = path.stat(), path.relative_to(self.source)
            digest = tokens.keyed_digest(self.keyring.own, hashlib.sha256(path.read_bytes()).digest())
            folder = "" if str(below.parent) == "." else str(below.parent)
            entries.append(
                Entry(str(self.source), folder, path.name, status.st_size, status.st_mtime_ns,
                      batch=batch, digest=digest, instance="1.2", held=held)
            )  # fmt: skip
        statement = None
        if not held:
            sequence, previous = self.ledger.head()
            statement = messages.Statement(
                facility="clinic-a", sequence=sequence + 1, previous=previous, batch=batch,
                objects=len(paths), bytes=7, created=STORED,
            )  # fmt: skip
        self.ledger.record(entries, statement)

    def receipt(self, batch: str = A, objects: int = 1, key: Ed25519PrivateKey | None = None, **more: object):
        values = {"store": "central", "facility": "clinic-a", "batch": batch, "sequence": 1,
                  "objects": objects, "bytes": 7, "stored": STORED}  # fmt: skip
        signed = container.sign(messages.Receipt(**(values | more)), key or self.store_key)  # type: ignore[arg-type]
        path = receipts.path_of(self.home, batch)
        path.write_bytes(signed.data)
        path.with_name(path.name + ".sig").write_text(signed.armor)
        self.ledger.mark_stored(batch, STORED)

    def prune(self, *, delete: bool = True, days: int = 30, replicas: int = 0) -> tuple[prune.Pruned, dict]:
        told: dict[str, str] = {}
        rules = prune.Rules(older_than=timedelta(days=days), replicas=replicas, delete=delete, now=NOW)
        done = prune.prune(
            self.home, self.ledger, self.keyring, rules, lambda o: told.update({o.path: o.reason})
        )
        return done, told

    def log(self) -> list[dict]:
        path = self.home.root / prune.LOG
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    return Keyring((domains.make("clinic-a", "facility", domains.new_parts(STORED)),))


@pytest.fixture
def terminal(tmp_path: Path, keyring: Keyring):
    home = Home(tmp_path / "home")
    home.create("clinic-a")
    store_key = Ed25519PrivateKey.generate()
    line = keys.ssh_line(store_key.public_key())
    card = messages.StoreCard(
        store="central", host="h", port=1, host_key=line, signing_key=line,
        age_recipient=keys.recipient_of(keys.new_age_identity()),
    )  # fmt: skip
    home.trust(card.to_bytes())
    source = tmp_path / "source"
    source.mkdir()
    home.save(replace(home.settings, sources=(str(source),)))
    ledger = Ledger(home.ledger_path)
    yield Terminal(home, source, ledger, keyring, store_key)
    ledger.close()


def test_a_dry_run_changes_nothing_and_the_real_one_leaves_log_and_ledger(terminal: Terminal) -> None:
    files = [terminal.file("a.dcm"), terminal.file("ct/b.dcm", b"another")]
    new = terminal.file("new.dcm", b"not known")
    terminal.record(*files)
    terminal.receipt(objects=2)
    done, told = terminal.prune(delete=False)
    assert (done.files, done.bytes, told) == (2, 15, {"a.dcm": "", "ct/b.dcm": "", "new.dcm": "not-stored"})
    assert all(path.exists() for path in files)
    assert terminal.log() == []

    done, again = terminal.prune()
    assert again == told
    assert (done.files, done.bytes, done.kept) == (2, 15, {"not-stored": 1})
    assert not any(path.exists() for path in files)
    assert new.exists()
    assert (terminal.home.root / prune.LOG).stat().st_mode & 0o777 == 0o600
    assert [(line["what"], line["path"], line["batch"]) for line in terminal.log()] == [
        ("deleting", "a.dcm", A),
        ("deleting", "ct/b.dcm", A),
    ]
    listed = {f.path: (f.state, f.reason, f.stored) for f in
              inventory.files(terminal.home.settings, terminal.ledger, str(terminal.source))}  # fmt: skip
    assert listed == {
        "a.dcm": ("stored", "pruned", STORED),
        "ct/b.dcm": ("stored", "pruned", STORED),
        "new.dcm": ("waiting", "new", ""),
    }
    assert terminal.ledger.pruned(str(terminal.source)) == 2


def _same_size_and_time(terminal: Terminal) -> None:
    path = terminal.source / "a.dcm"
    status = path.stat()
    path.write_bytes(b"AN IMAGE")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _link_in_place(terminal: Terminal) -> None:
    path = terminal.source / "a.dcm"
    status = path.stat()
    elsewhere = path.rename(terminal.home.root / "elsewhere")
    path.symlink_to(elsewhere)
    assert path.stat().st_mtime_ns == status.st_mtime_ns


def _flip(path: Path, at: int = 60) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


REASONS: dict[str, tuple[str, Callable[[Terminal], object]]] = {
    "no receipt": ("no-receipt", lambda t: receipts.path_of(t.home, A).unlink()),
    "no signature": ("no-receipt", lambda t: receipts.path_of(t.home, A, ".receipt.json.sig").unlink()),
    "bad signature": ("no-receipt", lambda t: _flip(receipts.path_of(t.home, A, ".receipt.json.sig"))),
    "altered": (
        "no-receipt",
        lambda t: receipts.path_of(t.home, A).write_bytes(
            receipts.path_of(t.home, A).read_bytes().replace(b'"objects":1', b'"objects":2')
        ),
    ),
    "another store's": ("no-receipt", lambda t: t.receipt(key=Ed25519PrivateKey.generate())),
    "another facility's": ("no-receipt", lambda t: t.receipt(facility="clinic-b")),
    "other counts": ("no-receipt", lambda t: t.receipt(objects=2)),
    "young": ("too-young", lambda t: t.receipt(stored=messages.rfc3339(NOW - timedelta(days=29)))),
    "of the future": ("too-young", lambda t: t.receipt(stored="2036-01-01T00:00:00Z")),
    "changed": ("changed", lambda t: t.file("a.dcm", b"longer than before")),
    "other bytes": ("changed", _same_size_and_time),
    "a link": ("link", _link_in_place),
    "lost": ("not-stored", lambda t: t.ledger.mark_lost(A, STORED)),
}  # fmt: skip


@pytest.mark.parametrize("store", ["central", "second"])
def test_a_stop_while_a_receipt_is_kept_leaves_none_without_its_signature(
    terminal: Terminal, monkeypatch, store: str
) -> None:
    if store != "central":
        terminal.receipt()
    message = messages.Receipt(store=store, facility="clinic-a", batch=A, sequence=1, objects=1, bytes=7,
                               stored=STORED)  # fmt: skip
    signed = container.sign(message, terminal.store_key)
    real, left = durable.publish, iter([1])

    class Killed(BaseException):
        pass

    def once(*words: object, **more: object) -> None:
        if not next(left, 0):
            raise Killed
        real(*words, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(durable, "publish", once)
        with pytest.raises(Killed):
            receipts.keep(terminal.home, signed)
    for path in terminal.home.root.rglob("*.receipt.json"):
        assert path.with_name(path.name + ".sig").exists()
    receipts.keep(terminal.home, signed)
    place = "" if store == "central" else store
    assert receipts.path_of(terminal.home, A, store=place).read_bytes() == signed.data


@pytest.mark.parametrize("case", REASONS)
def test_what_is_in_doubt_stays(terminal: Terminal, case: str) -> None:
    path = terminal.file("a.dcm")
    terminal.record(path)
    terminal.receipt()
    reason, spoil = REASONS[case]
    spoil(terminal)
    done, told = terminal.prune()
    assert (done.files, told) == (0, {"a.dcm": reason})
    assert path.exists()
    assert terminal.log() == []


def test_a_batch_under_way_or_refused_stays(terminal: Terminal) -> None:
    path = terminal.file("a.dcm")
    terminal.record(path)
    assert terminal.prune()[1] == {"a.dcm": "not-stored"}
    terminal.ledger.mark_sent(A)
    assert terminal.prune()[1] == {"a.dcm": "not-stored"}
    terminal.ledger.mark_refused(A, "store:seal")
    assert terminal.prune()[1] == {"a.dcm": "not-stored"}
    assert path.exists()


def test_without_another_stores_receipt_there_is_no_replica(terminal: Terminal) -> None:
    terminal.record(terminal.file("a.dcm"))
    terminal.receipt()
    assert terminal.prune(replicas=1)[1] == {"a.dcm": "replicas"}
    assert terminal.prune(replicas=0)[1] == {"a.dcm": ""}


def test_a_held_file_goes_only_with_a_receipt_of_its_batch(terminal: Terminal) -> None:
    terminal.record(terminal.file("a.dcm"), batch=B, held=True)
    assert terminal.prune()[1] == {"a.dcm": "no-receipt"}
    terminal.receipt(B)
    assert terminal.prune()[1] == {"a.dcm": ""}


def test_a_folder_that_became_a_link_is_not_entered(terminal: Terminal, monkeypatch) -> None:
    """The walk sees a folder, and a moment later it is a link out of the source."""
    path = terminal.file("ct/a.dcm")
    terminal.record(path)
    terminal.receipt()
    found = list(prune.scan.walk(str(terminal.source)))
    outside = path.parent.rename(terminal.home.root / "outside")
    (terminal.source / "ct").symlink_to(outside)
    monkeypatch.setattr(prune.scan, "walk", lambda _: iter(found))
    assert terminal.prune()[1] == {"ct/a.dcm": "link"}
    assert (outside / "a.dcm").exists()


def test_a_file_replaced_after_it_was_read_stays(terminal: Terminal, monkeypatch) -> None:
    path = terminal.file("a.dcm")
    terminal.record(path)
    terminal.receipt()
    marked = terminal.ledger.mark_pruned

    def replace_it(source: str, folder: str, names: list[str], moment: str) -> None:
        if moment:  # between reading and deleting
            status = path.stat()
            path.rename(path.with_name("kept"))
            path.write_bytes(b"an image")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        marked(source, folder, names, moment)

    monkeypatch.setattr(terminal.ledger, "mark_pruned", replace_it)
    assert terminal.prune()[1]["a.dcm"] == "changed"
    assert path.exists()
    assert [line["what"] for line in terminal.log()] == ["deleting", "not deleted"]
    assert terminal.ledger.pruned(str(terminal.source)) == 0


@pytest.mark.parametrize("step", ["log", "ledger", "unlink"])
def test_a_stop_at_any_step_is_finished_by_the_next_run(terminal: Terminal, monkeypatch, step: str) -> None:
    paths = [terminal.file(f"{n}.dcm", b"%d" % n) for n in range(5)]
    terminal.record(*paths)
    terminal.receipt(objects=5)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "log":
            patch.setattr(line_log, "append", kill)
        elif step == "ledger":
            patch.setattr(terminal.ledger, "mark_pruned", kill)
        else:
            real, left = os.unlink, iter([1, 1])
            patch.setattr(prune.os, "unlink", lambda *a, **k: real(*a, **k) if next(left, 0) else kill())
        with pytest.raises(Killed):
            terminal.prune()
    gone = [path for path in paths if not path.exists()]
    assert len(gone) == (2 if step == "unlink" else 0)
    logged = {line["path"] for line in terminal.log()}
    assert {path.name for path in gone} <= logged
    (terminal.home.root / prune.LOG).open("a").write('{"cut')  # a line the crash cut short
    assert terminal.prune()[0].files == 5 - len(gone)
    assert not any(path.exists() for path in paths)
    files = list(inventory.files(terminal.home.settings, terminal.ledger, str(terminal.source)))
    assert [(f.state, f.reason) for f in files] == [("stored", "pruned")] * 5
    assert (terminal.home.root / prune.LOG).read_text().endswith("}\n")


def test_without_a_log_nothing_is_deleted(terminal: Terminal) -> None:
    path = terminal.file("a.dcm")
    terminal.record(path)
    terminal.receipt()
    (terminal.home.root / prune.LOG).mkdir()
    with pytest.raises(SettingsError):
        terminal.prune()
    assert path.exists()


def test_names_that_are_no_text_are_pruned_too(terminal: Terminal) -> None:
    path = terminal.file(os.fsdecode(b"\xff\xfe.dcm"))
    terminal.record(path)
    terminal.receipt()
    assert terminal.prune()[0].files == 1
    assert not path.exists()


def test_the_listing_says_what_holds_and_the_export_verifies_with_ssh_keygen(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.record(terminal.file("a.dcm"))
    terminal.receipt()
    terminal.receipt(B, key=Ed25519PrivateKey.generate())
    good, bad = receipts.listing(terminal.home)
    assert (good.batch, good.verified, good.receipt and good.receipt.objects) == (A, True, 1)
    assert (bad.batch, bad.verified, bad.problem) == (B, False, "its signature is not the trusted store's")
    out = tmp_path / "out"
    assert receipts.export(terminal.home, out) == 1
    assert receipts.export(terminal.home, out) == 1
    assert sorted(path.name for path in out.iterdir()) == [
        f"{A}.receipt.json", f"{A}.receipt.json.sig", "README.txt", "allowed_signers",
    ]  # fmt: skip
    blocks = (out / "README.txt").read_text().split("\n\n")
    commands = [block for block in blocks if block.startswith("    ")]
    assert len(commands) == 2
    script = "set -e\n" + "\n".join(commands).replace("BATCH", A).replace("STORE", "central")
    done = subprocess.run(["sh", "-c", script], cwd=out, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("Good "), "WRONG" in done.stdout) == (0, 2, False), done.stderr
    _flip(out / f"{A}.receipt.json", 20)
    done = subprocess.run(["sh", "-c", commands[1]], cwd=out, capture_output=True, text=True, check=False)
    assert "WRONG" in done.stdout
