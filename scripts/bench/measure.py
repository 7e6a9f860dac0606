"""Run a command and say what it cost: wall time, processor time and peak memory of whole process trees.

Guarantees: the watched trees are the command's and those of the servers it talks to; a process counts
from the first look that sees it (looks are 1/20 s apart) with the processor time of the last look before
its end, for the command's own tree also as the kernel sums it, whichever is more; and with its peak
resident memory as the kernel keeps it (`VmHWM`; the largest value seen where there is no such figure).
The processes of servers that live on count what they spent meanwhile; their peak is that of their whole
life.

Leaves to others: what is run (`ours`, `peers`), putting it into a table (`table`).
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_LOOK = 0.05


@dataclass
class Tree:
    """A process and everything below it."""

    root: int
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    before: dict[tuple[int, float], float] = field(default_factory=dict)
    peak: dict[tuple[int, float], int] = field(default_factory=dict)
    names: dict[tuple[int, float], str] = field(default_factory=dict)

    def look(self) -> None:
        """Note what every process of the tree has used so far."""
        try:
            root = psutil.Process(self.root)
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in processes:
            try:
                with process.oneshot():
                    key = (process.pid, process.create_time())
                    times = process.cpu_times()
                    self.cpu[key] = times.user + times.system
                    self.peak[key] = max(self.peak.get(key, 0), _peak(process))
                    self.names[key] = process.name()  # may become another one: fork, then exec
            except (psutil.Error, OSError):  # it ended while we looked
                continue

    def begin(self) -> None:
        """Everything used until now does not count."""
        self.look()
        self.before = dict(self.cpu)

    @property
    def seconds(self) -> float:
        """Processor time since `begin`."""
        return sum(used - self.before.get(key, 0.0) for key, used in self.cpu.items())

    @property
    def largest(self) -> int:
        """Peak resident bytes of the largest process."""
        return max(self.peak.values(), default=0)


def _reaped() -> float:
    """Processor time of all children that ended, and of theirs: short-lived ones escape the looks."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak(process: psutil.Process) -> int:
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    return int(process.memory_info().rss)


@dataclass
class Cost:
    """What one or several commands cost together."""

    seconds: float = 0.0
    flush: float = 0.0
    client_cpu: float = 0.0
    server_cpu: float = 0.0
    client_peak: int = 0
    server_peak: int = 0
    output: str = ""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.flush + other.flush,
            self.client_cpu + other.client_cpu,
            self.server_cpu + other.server_cpu,
            max(self.client_peak, other.client_peak),
            max(self.server_peak, other.server_peak),
            self.output + other.output,
        )


class CommandFailed(Exception):
    """A command left with a status that was not expected."""


def run(
    command: Sequence[str | Path],
    *,
    servers: Sequence[int] = (),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    expect: Sequence[int] = (0,),
    stdin: str = "",
) -> Cost:
    """Run a command to its end and measure it and the servers.

    Args:
        command: program and arguments.
        servers: process ids of the servers it talks to.
        env: added to the environment.
        cwd: where it runs.
        expect: statuses that mean it worked.
        stdin: written to its standard input.

    Raises:
        CommandFailed: another status; the text has its last lines.
    """
    os.sync()  # nobody pays for what was written before
    watched = [Tree(pid) for pid in servers]
    for tree in watched:
        tree.begin()
    stop = threading.Event()
    spent = _reaped()
    started = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = Tree(process.pid)

    def look() -> None:
        while not stop.is_set():
            for tree in (client, *watched):
                tree.look()
            stop.wait(_LOOK)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    out, err = process.communicate(stdin)
    seconds = time.monotonic() - started
    stop.set()
    looking.join()
    spent = _reaped() - spent
    if process.returncode not in expect:
        raise CommandFailed(f"{command[0]} left with {process.returncode}\n{out[-2000:]}\n{err[-2000:]}")
    started = time.monotonic()
    os.sync()
    flush = time.monotonic() - started
    for tree in watched:
        tree.look()
    return Cost(
        seconds,
        flush,
        max(client.seconds, spent),
        sum(tree.seconds for tree in watched),
        client.largest,
        max((tree.largest for tree in watched), default=0),
        out,
    )
