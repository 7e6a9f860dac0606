"""How long a person waits for rows: a question on an open connection, and a whole `fsync query` process.

    scripts/bench/ask                      the embedded server and OpenSSH; prints the table
    scripts/bench/ask --update-docs        and writes it into docs/performance.md
    scripts/bench/ask --fsync PATH         processes of that installation: pyarrow loads numpy where it is
                                           there, as among the test dependencies, and that takes its time

A store with one facility and a few hundred images, on loopback. On the open connection: from the line typed
into `fsync shell` until its rows are printed. The process: from its start to its end, connect and login
included, with the page cache warm. The machine's own speed at the same moment stands beside: what an empty
Python process needs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import ours

from facility_sync import ask, exchange
from facility_sync.cli import shell
from facility_sync.home import Home
from facility_sync.identity import domain_files

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- ask:begin -->", "<!-- ask:end -->"
ROADS = {"embedded server": False, "OpenSSH": True}
LINES = ("--modality CT", "--since 3650d --limit 20", "--count", "--level series --limit 10")


def typed(home: Path, password: str, times: int) -> list[float]:
    """Milliseconds from a line until its rows are printed, on one connection."""
    at = Home(home)
    keyring = domain_files.load(at.domains)
    waits = []
    with exchange.connect(at) as desk:
        session = shell.Shell(at, desk, ask.Account(user="reader", password=password), keyring)
        for number in range(times + 5):
            lines = iter([LINES[number % len(LINES)]])
            printed = io.TextIOWrapper(io.BytesIO(), write_through=True)
            began = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                session.run(lambda lines=lines: next(lines, None), lambda _: None)  # type: ignore[misc]
            waits.append((time.perf_counter() - began) * 1e3)
            if not printed.buffer.getvalue().strip():  # type: ignore[attr-defined]
                raise SystemExit("a question had no answer")
    return waits[5:]


def processes(command: list[str | Path], times: int) -> list[float]:
    """Milliseconds of whole processes."""
    waits = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        waits.append((time.perf_counter() - began) * 1e3)
    return waits[1:]


def measured(times: int, cold: int, fsync: Path) -> Iterator[tuple[str, list[float]]]:
    """Rows of the table."""
    for road, over_sshd in ROADS.items():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            make = [sys.executable, ROOT / "scripts" / "make_images.py", work / "images"]
            subprocess.run([*make, "--studies", "5", "--slices", "8"], check=True, capture_output=True)
            root, home = ours.made(work, work / "images", over_sshd=over_sshd)
            password = (work / "password").read_text().strip()
            with ours.serving(work, root, home, over_sshd=over_sshd):
                ours.do("fsync", "--home", home, "sync")
                yield f"a question on an open connection, {road}", typed(home, password, times)
                query = [fsync, "--home", home, "query", "--modality", "CT", "--user", "reader",
                         "--password-file", work / "password"]  # fmt: skip
                yield f"`fsync query`, {road}", processes(query, cold)
    yield "an empty Python process", processes([fsync.with_name("python"), "-c", ""], cold)


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="questions on the open connection")
    parser.add_argument("--cold", type=int, default=15, help="processes")
    parser.add_argument("--fsync", type=Path, default=ours.BIN / "fsync", help="whose processes are timed")
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    machine += (
        ""
        if given.fsync == ours.BIN / "fsync"
        else ", processes of an installation without test dependencies"
    )
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine}; load before: {os.getloadavg()[1]:.1f}.",
        "", "| ms | least | p50 | p95 | asked for |", "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, waits in measured(given.times, given.cold, given.fsync):
        waits.sort()
        target = "50" if "open" in name else "600" if "fsync" in name else ""
        late = waits[min(len(waits) - 1, int(len(waits) * 0.95))]
        lines.append(f"| {name} | {waits[0]:.0f} | {statistics.median(waits):.0f} | {late:.0f} | {target} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if given.update_docs:
        page = PAGE.read_text("utf-8")
        front, rest = page.split(BEGIN)
        PAGE.write_text(f"{front}{BEGIN}\n{text}{END}{rest.split(END)[1]}", "utf-8")
