"""Real processes of `fsync` and `fstore`, quick to start, that die when they are told to.

    with Nursery() as nursery:
        store = nursery.start("fstore", "--root", root, "serve", "--no-sftp", log=log)
        sync = nursery.start("fsync", "--home", home, "sync", log=log, kill_at=17, below=home)

A process with everything imported forks each of them: no second is lost to imports, and what runs is the
command's own main in a process group of its own. `kill_at` ends that group with SIGKILL instead of its n-th
operation on the disk below a folder (`tests.kit.faults`): no clean-up, no flush, no `finally`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.kit import forks

PRELOADED = (*forks.PRELOADED, "tests.kit.faults")
ROOT = Path(__file__).parents[2]


class Process:
    """One forked command."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid, self.status = nursery, pid, None

    def kill(self) -> bool:
        """SIGKILL to its group; whether it was still there."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            return True
        return False

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        if self.status is None:
            _, self.status = self._nursery.ask(wait=self.pid)
        return int(self.status)  # type: ignore[arg-type]


class Nursery:
    """The process that forks; a context manager."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.killing"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def ask(self, **words: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *words: str | Path, log: Path, kill_at: int = 0, below: Path | None = None) -> Process:
        """Fork a command.

        Args:
            words: the command line.
            log: gets what it prints.
            kill_at: the operation it dies before; 0: none.
            below: where operations count.
        """
        pid = self.ask(words=[*map(str, words)], log=str(log), kill_at=kill_at, below=str(below))
        return Process(self, int(pid))

    def ended(self) -> tuple[int, int]:
        """Wait for whichever command ends next: its process id and its exit status."""
        pid, status = self.ask(wait=-1)
        return int(pid), int(status)


def _main() -> None:
    from central_store import crew

    for name in PRELOADED:
        import_module(name)
    crew._context.set_forkserver_preload(["central_store.crew"])
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], 0)
            print(json.dumps([pid, os.waitstatus_to_exitcode(status)]), flush=True)
            continue
        # One for all stores: its workers end when the pipe of theirs does. A client that is killed between
        # its two words ends it, and another one begins.
        forkserver.ensure_running()
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        try:
            _run(order)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)


def _run(order: dict[str, Any]) -> None:
    from central_store.cli import common as store_common
    from central_store.cli import root as store_root
    from facility_sync.cli import common as sync_common
    from facility_sync.cli import root as sync_root
    from tests.kit.faults import Disk, Op

    os.setpgid(0, 0)
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # our parent's
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    name, *words = order["words"]

    def before(op: Op) -> None:
        if disk.count >= order["kill_at"]:
            os.killpg(0, signal.SIGKILL)

    command = sync_root.fsync if name == "fsync" else store_root.fstore
    run = sync_common.run if name == "fsync" else store_common.run
    if order["kill_at"]:
        disk = Disk(Path(order["below"]), before=before)
        disk.__enter__()
    run(command, words)


if __name__ == "__main__":
    _main()
