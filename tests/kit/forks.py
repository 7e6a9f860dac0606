"""`fsync` and `fstore` as processes of their own that need not import anything: a start costs milliseconds.

    status, out, err = run(["fsync", "--home", home, "sync"], cwd=folder, stdin="", environment={}, seconds=9)

What runs is the command's own main, forked from a process that has everything imported; arguments, streams,
folder and environment are its own. Most of the time of a short command is its imports, and tests start very
many. That the installed commands start, and how fast, other tests look at (`tests.system.test_docs`).
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
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
    with tempfile.TemporaryDirectory(prefix="fork-") as folder, socket.socket(socket.AF_UNIX) as line:
        files = {name: f"{folder}/{name}" for name in ("in", "out", "err")}
        Path(files["in"]).write_text(stdin)
        order = {"words": [*words], "cwd": str(cwd or Path.cwd()), "environment": {**environment}, **files}
        line.connect(_server())
        with line.makefile("rw") as talk:
            talk.write(json.dumps(order) + "\n")
            talk.flush()
            pid = int(talk.readline())
            line.settimeout(seconds)
            try:
                status = int(talk.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([*words], seconds) from None
        return status, *(Path(files[name]).read_text("utf-8") for name in ("out", "err"))


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
