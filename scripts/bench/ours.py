"""The project's own commands: a fresh store and terminal for each run, then sync and fetch measured.

`sync` is measured up to verified receipts; setting up, enrolling and starting the store are not. The road
is the store's embedded server, or OpenSSH's with the store's service behind it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import measure
import sshd

BIN = Path(sys.executable).parent
FACILITY = "clinic"


class Outcome(NamedTuple):
    """Costs of sync and fetch, how many files the store took, and where they came back."""

    sync: measure.Cost
    fetch: measure.Cost
    stored: int
    fetched: Path


def run(work: Path, source: Path, *, over_sshd: bool) -> Outcome:
    """One sync and one fetch of everything.

    Args:
        work: an empty folder for store, terminal and what is fetched.
        source: the files.
        over_sshd: OpenSSH's server instead of the embedded one.
    """
    root, home = made(work, source, over_sshd=over_sshd)
    fetched = work / "fetched"
    fetch = ("fetch", "--facility", FACILITY, "--to", fetched, "--user", "reader",
             "--password-file", work / "password", "--json")  # fmt: skip
    with serving(work, root, home, over_sshd=over_sshd) as servers:
        put = measure.run(
            [BIN / "fsync", "--home", home, "sync", "--json"], servers=servers, expect=(0, 3), cwd=work
        )
        report = json.loads(put.output)
        if report["waiting"] or report["trouble"] or report["stored"] + report["held"] == 0:
            raise measure.CommandFailed(f"the round did not finish: {put.output[-2000:]}")
        got = measure.run([BIN / "fsync", "--home", home, *fetch], servers=servers, cwd=work)
    return Outcome(put, got, json.loads(got.output)["restored"], fetched)


def made(work: Path, source: Path, *, over_sshd: bool) -> tuple[Path, Path]:
    """A store with an account `reader`, and an enrolled terminal; its password is in `work`."""
    os.umask(0o077)
    root, home = work / "store", work / "home"
    do("fstore", "--root", root, "init", "--host", "127.0.0.1", "--port", str(sshd.free_port()))
    (work / "store.card").write_text(do("fstore", "--root", root, "card"))
    do("fsync", "--home", home, "init", "--facility", FACILITY)
    do("fsync", "--home", home, "source", "add", source)
    do("fstore", "--root", root, "enrol", home / f"{FACILITY}.card")
    (work / "password").write_text(secrets.token_urlsafe(16) + "\n")
    do("fstore", "--root", root, "account", "add", "reader", "--facility", FACILITY,
        "--password-file", work / "password")  # fmt: skip
    settings = home / "settings.toml"
    settings.write_text(settings_text(settings.read_text(), over_sshd=over_sshd))
    return root, home


def settings_text(text: str, *, over_sshd: bool) -> str:
    """Files are taken at once, however young; OpenSSH knows Unix accounts only."""
    kept = [
        line for line in text.splitlines() if line.split(" = ")[0] not in ("settle_seconds", "store_user")
    ]
    user = [f'store_user = "{sshd.USER}"'] if over_sshd else []
    return "\n".join(["settle_seconds = 0", *user, *kept]) + "\n"


@contextmanager
def serving(work: Path, root: Path, home: Path, *, over_sshd: bool) -> Iterator[list[int]]:
    """The store's processes, and the terminal told where to go."""
    if not over_sshd:
        with one_store(work, root) as store:
            do("fsync", "--home", home, "trust", work / "store.card")
            yield [store]
        return
    public = json.loads((home / f"{FACILITY}.card").read_text())["ssh_key"]
    shelf = {public: root / "shelves" / FACILITY}
    with sshd.serve(work / "sshd", root / "keys" / "host_key", shelf) as server:
        do(
            "fsync",
            "--home",
            home,
            "trust",
            work / "store.card",
            "--host",
            "127.0.0.1",
            "--port",
            server.port,
        )
        with one_store(work, root, "--no-sftp") as store:
            yield [store, server.pid]


@contextmanager
def one_store(work: Path, root: Path, *more: str) -> Iterator[int]:
    log = work / "serve.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [BIN / "fstore", "--root", root, "serve", *more], stdout=sink, stderr=subprocess.STDOUT, cwd=work
        )
    try:
        until = time.monotonic() + 30
        while "is ready" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise measure.CommandFailed(f"the store did not start\n{log.read_text()}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def do(*words: str | Path | int) -> str:
    """Run one of our commands; what it printed."""
    command = [str(BIN / str(words[0])), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise measure.CommandFailed(f"{' '.join(map(str, words[:4]))}: {done.stderr}")
    return done.stdout
