"""A whole site on loopback: a store that serves, and terminals, driven by the installed commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit import forks

BIN = Path(sys.executable).parent
Serving = forks.Process | subprocess.Popen[str]
PASSWORD = "correct horse battery"


@dataclass
class Done:
    """What a command left: its status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


def call(
    *words: str | Path,
    cwd: Path | None = None,
    stdin: str = "",
    through: tuple[str, ...] = (),
    **environment: str,
) -> Done:
    """Run a command to its end; through another one that starts it if need be."""
    if through:
        command = [*through, str(BIN / words[0]), *map(str, words[1:])]
        done = subprocess.run(
            command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False, timeout=110,
            env=os.environ | environment,
        )  # fmt: skip
        found = Done(done.returncode, done.stdout, done.stderr)
    else:
        found = Done(*forks.run(
            [*map(str, words)], cwd=cwd, stdin=stdin, environment=os.environ | environment, seconds=110
        ))  # fmt: skip
    assert "Traceback" not in found.err, found.err
    return found


@dataclass
class Terminal:
    """One facility's terminal."""

    site: Site
    name: str

    @property
    def home(self) -> Path:
        """Its home."""
        return self.site.folder / "homes" / self.name

    def __call__(self, *words: str | Path, stdin: str = "") -> Done:
        """Run `fsync` with this home."""
        return call("fsync", "--home", self.home, *words, stdin=stdin, cwd=self.site.folder)

    def ask(self, *words: str | Path, user: str = "kimura") -> Done:
        """Run `fsync query` or `fetch` as a person of this facility."""
        return self(*words, "--user", user, "--password-file", self.site.password)

    def join(self, other: Site) -> None:
        """Be enrolled at another store too, with the same account, and trust it behind those that are."""
        for done in (
            self("trust", other.folder / "store.card"),
            other.store("enrol", self.home / f"{self.name}.card"),
            other.store(
                "account", "add", "kimura", "--facility", self.name, "--password-file", other.password
            ),
        ):
            assert done.status == 0, done.err

    def settings(self, **values: object) -> None:
        """Write settings over."""
        path = self.home / "settings.toml"
        lines = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in values]
        top = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join(top + lines) + "\n")


@dataclass
class Site:
    """A store and its terminals under one folder."""

    folder: Path
    terminals: dict[str, Terminal] = field(default_factory=dict)
    through: tuple[str, ...] = ()
    """What starts `fstore`: `ip netns exec …`."""

    @property
    def root(self) -> Path:
        """The store's root."""
        return self.folder / "store"

    @property
    def password(self) -> Path:
        """A file with everybody's password."""
        return self.folder / "password"

    def store(self, *words: str | Path) -> Done:
        """Run `fstore` with this root."""
        return call("fstore", "--root", self.root, *words, cwd=self.folder, through=self.through)

    def terminal(self, name: str, *sources: Path, offline: bool = False) -> Terminal:
        """Make a terminal, enrol it, and give it sources and an account; without rows for offline questions.

        They cost each round an eighth of a second of processor time.
        """
        made = self.terminals[name] = Terminal(self, name)
        for done in (
            made("init", "--facility", name),
            made("trust", self.folder / "store.card"),
            *(made("source", "add", source) for source in sources),
            self.store("enrol", made.home / f"{name}.card"),
            self.store("account", "add", "kimura", "--facility", name, "--password-file", self.password),
        ):
            assert done.status == 0, done.err
        made.settings(settle_seconds=0, receipt_wait_seconds=20, offline=offline)
        return made

    @contextmanager
    def serving(self, *words: str) -> Iterator[Serving]:
        """`fstore serve` until the block ends; it must stop cleanly."""
        process = self.start(*words)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (self.folder / "serve.log").read_text()

    def start(self, *words: str) -> Serving:
        """`fstore serve`, ready."""
        log = self.folder / "serve.log"
        log.write_text("")
        command = ["--root", str(self.root), "serve", *words]
        process: Serving
        if self.through:
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [*self.through, str(BIN / "fstore"), *command],
                    stdout=sink, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
                )  # fmt: skip
        else:
            process = forks.start(["fstore", *command], cwd=self.folder, log=log)
        until = time.monotonic() + 30
        while "is ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        return process


def make_site(folder: Path, port: int, name: str = "central") -> Site:
    """A store of this name that is ready to serve at this port."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(folder)
    site.password.write_text(PASSWORD + "\n")
    site.password.chmod(0o600)
    assert site.store("init", "--name", name, "--host", "127.0.0.1", "--port", str(port)).status == 0
    (folder / "store.card").write_text(site.store("card").out)
    return site
