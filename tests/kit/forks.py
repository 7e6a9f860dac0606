"""`fsync` and `fstore` as processes of their own that need not import anything: a start costs milliseconds.

    status, out, err = run(["fsync", "--home", home, "sync"], cwd=folder, stdin="", environment={}, seconds=9)
    process = start(["fstore", "--root", root, "serve"], cwd=folder, log=folder / "serve.log")

What runs is the command's own main, forked from a process that has everything imported; arguments, streams,
folder and environment are its own. Most of the time of a short command is its imports, and tests start very
many. That the installed commands start, and how fast, other tests look at (`tests.system.test_docs`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).parents[2]
PRELOADED = (
    "central_store.cli.root",
    "central_store.serving",
    "facility_sync.cli.root",
    "facility_sync.rounds",
)


def run(
    words: Sequence[str], *, cwd: Path | None, stdin: str, environment: Mapping[str, str], seconds: float
) -> tuple[int, str, str]:
    """Run a command to its end: its status, and what it wrote.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
    """
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        files = {name: Path(folder, name) for name in ("in", "out", "err")}
        files["in"].write_text(stdin)
        process = Process(words, cwd or Path.cwd(), environment, files)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        return status, *(files[name].read_text("utf-8") for name in ("out", "err"))


def start(words: Sequence[str], *, cwd: Path, log: Path) -> Process:
    """Start a command that goes on; what it writes is in the log."""
    return Process(words, cwd, os.environ, {"in": Path(os.devnull), "out": log, "err": log})


class Process:
    """A command that was started, with what tests need of `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], files: Mapping[str, Path]
    ) -> None:
        self.words = [*words]
        order = {"words": self.words, "cwd": str(cwd), "environment": {**environment}}
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_server())
        order |= {name: str(path) for name, path in files.items()}
        self._line.sendall(json.dumps(order).encode() + b"\n")
        self._heard = b""
        self._status: int | None = None
        self.pid = self._said(None)

    def poll(self) -> int | None:
        """Its status, if it has ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, seconds: float | None = None) -> int:
        """Its status when it ends; raises `subprocess.TimeoutExpired`."""
        if self._status is None:
            self._status = self._said(seconds)
            self._line.close()
        return self._status

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _said(self, seconds: float | None) -> int:
        """The next number from who minds it."""
        while b"\n" not in self._heard:
            if not select.select([self._line], [], [], seconds)[0]:
                assert seconds is not None
                raise subprocess.TimeoutExpired(self.words, seconds)
            self._heard += self._line.recv(64) or b"1\n"
        number, _, self._heard = self._heard.partition(b"\n")
        return int(number)


@cache
def _server() -> str:
    """Where the process listens that forks; it ends with this one."""
    address = str(Path(tempfile.mkdtemp(prefix="forks-")) / "socket")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.forks", address], cwd=_ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "ready\n"

    def end() -> None:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(20)

    atexit.register(end)
    return address


# -- the process that forks ------------------------------------------------------------------------


def _main(address: str) -> None:
    for name in PRELOADED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who minds a command is not waited for
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen(64)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while sys.stdin not in {key.fileobj for key, _ in selector.select()}:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _mind(line)
            line.close()
    Path(address).unlink()  # here, as who started it may have no time left for it
    Path(address).parent.rmdir()


def _mind(line: socket.socket) -> NoReturn:
    """Fork the command and tell what became of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with line.makefile("rw") as talk:
        order = json.loads(talk.readline())
        pid = os.fork()
        if pid == 0:
            line.close()
            _command(order)
        talk.write(f"{pid}\n")
        talk.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        talk.write(f"{status}\n")
        talk.flush()
    os._exit(0)


def _command(order: Mapping[str, Any]) -> NoReturn:
    status = 1
    try:
        os.dup2(os.open(order["in"], os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        os.closerange(3, 256)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as it lives
        sys.argv = order["words"]
        import_module("facility_sync.cli" if sys.argv[0] == "fsync" else "central_store.cli").main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:  # what the interpreter does at its end
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _main(sys.argv[1])
