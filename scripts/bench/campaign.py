"""Measure the whole campaign in one run: every tool on the same files, taking turns, on one disk.

    scripts/bench/run                                  2,000 slices, the corpus if it is there, one giant file
    scripts/bench/run --sets slices --repeat 1         the same files once
    scripts/bench/run --update-docs                    and write the table into docs/performance.md

Everything happens below `--work` on one disk, over loopback. Files are read into the page cache before
the first run. Each run has a fresh destination; between runs everything dirty is written to disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ours
import peers
import sshd
import table
from measure import Cost

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
DOCS = ROOT / "docs" / "performance.md"
EMBEDDED, OPENSSH = "fsync, embedded server", "fsync, OpenSSH"
MARK = ".benchmark"  # in a folder of our making: only such a one is emptied
FIELDS = ("seconds", "flush", "client_cpu", "server_cpu", "client_peak", "server_peak")


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


class Measured:
    """Costs of one work set, as they come in."""

    def __init__(self, name: str, source: Path) -> None:
        self.name, self.source = name, source
        files = [path for path in source.rglob("*") if path.is_file()]
        self.files, self.bytes = len(files), sum(path.stat().st_size for path in files)
        self.original = Counter(_digest(path) for path in files)  # and now they are in the page cache
        self.costs: dict[tuple[str, str], list[Cost]] = {}
        self.loads: list[float] = []
        self.stored, self.stored_bytes = self.files, self.bytes  # what fsync took

    def add(self, way: str, tool: str, cost: Cost) -> None:
        """Note one run."""
        self.costs.setdefault((way, tool), []).append(cost)
        self.loads.append(os.getloadavg()[0])
        say(f"  {self.name}: {tool} {way} {cost.seconds:.2f} s")

    def check(self, fetched: Path, expected: int, tool: str) -> None:
        """What came back must be what was sent."""
        back = Counter(_digest(path) for path in fetched.rglob("*") if path.is_file())
        if back - self.original or back.total() != expected:
            raise SystemExit(f"{tool} holds other files than it was given")

    def values(self) -> dict[str, Any]:
        """For programs: medians and every single time."""
        rows = []
        for (way, tool), costs in self.costs.items():
            middle = {field: statistics.median(getattr(cost, field) for cost in costs) for field in FIELDS}
            rows.append(
                {"way": way, "tool": tool, "runs": [round(cost.seconds, 3) for cost in costs], **middle}
            )
        return {
            "name": self.name,
            "files": self.files,
            "bytes": self.bytes,
            "load": round(statistics.mean(self.loads), 1),
            "stored": self.stored,
            "stored_bytes": self.stored_bytes,
            "rows": rows,
        }


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def measure_set(name: str, source: Path, work: Path, repeat: int, tools: list[str]) -> Measured:
    """All tools on one set, taking turns."""
    measured = Measured(name, source)
    for number in range(repeat):
        turn = tools[number % len(tools) :] + tools[: number % len(tools)]  # nobody is always first
        for tool in turn:
            place = work / "run"
            place.mkdir()
            try:
                _one(measured, tool, place, check=number == 0)
            finally:
                shutil.rmtree(place)
    return measured


def _one(measured: Measured, tool: str, place: Path, *, check: bool) -> None:
    if tool in (EMBEDDED, OPENSSH):
        done = ours.run(place, measured.source, over_sshd=tool == OPENSSH)
        measured.stored = done.stored
        measured.stored_bytes = sum(path.stat().st_size for path in done.fetched.rglob("*") if path.is_file())
        outcome, expected = peers.Outcome(done.sync, done.fetch, done.fetched), done.stored
    else:
        outcome, expected = peers.PEERS[tool][1](place, measured.source), measured.files
    put, get, fetched = outcome
    measured.add("put", tool, put)
    if get is not None:
        measured.add("get", tool, get)
    if check and fetched is not None:
        measured.check(fetched, expected, tool)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": model,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "Python": platform.python_version(),
            "OpenSSH": _first_line("ssh", "-V"),
            "restic": _first_line("restic", "version"),
            "rclone": _first_line("rclone", "version"),
        },
        "cipher": sshd.CIPHER,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].split(" compiled")[0].split(",")[0]


def generate(out: Path, *words: str) -> Path:
    """Make images with the generator."""
    say(f"making images: {' '.join(words)}")
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_images.py", out, *words], check=True, stdout=sys.stderr
    )
    return out


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; the values of a report."""
    work: Path = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / MARK).touch()
    (work / ".gitignore").write_text("*\n")
    mine = [EMBEDDED] + ([OPENSSH] if sshd.SSHD else [])
    found = machine()
    sets = []
    try:
        if "slices" in options.sets:
            words = ("--studies", f"{options.studies}", "--slices", f"{options.slices}",
                     "--seed", f"{options.seed}")  # fmt: skip
            source = generate(work / "slices", *words)
            sets.append(measure_set("slices", source, work, options.repeat, mine + peers.installed()))
            shutil.rmtree(source)
        if "corpus" in options.sets and CORPUS.is_dir():
            sets.append(measure_set("corpus", CORPUS, work, options.repeat, mine + peers.installed()))
        if "giant" in options.sets:
            source = generate(work / "giant", "--giant", f"{options.giant}", "--seed", f"{options.seed}")
            sets.append(measure_set("giant", source, work, 1, mine))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    command = " ".join(["scripts/bench/run", *(word for word in sys.argv[1:] if word != "--json")])
    return {"command": command, "machine": found, "sets": [item.values() for item in sets]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", nargs="+", choices=("slices", "corpus", "giant"), default=["slices", "corpus", "giant"]
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each tool; the median counts (default 3)"
    )
    parser.add_argument("--studies", type=int, default=10, help="of the generated slices (default 10)")
    parser.add_argument("--slices", type=int, default=200, help="in each study (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the generated slices (default 1)")
    parser.add_argument(
        "--giant", type=int, default=1024, metavar="MIB", help="size of the giant (default 1024)"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".bench", help="folder on the disk to measure, emptied first"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument(
        "--update-docs", action="store_true", help=f"write the tables into {DOCS.relative_to(ROOT)}"
    )
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat is at least 1")
    if options.work.exists() and not (options.work / MARK).exists() and any(options.work.iterdir()):
        parser.error("--work names a folder that holds something else")
    values = campaign(options)
    text = table.markdown(values)
    if options.update_docs:
        DOCS.write_text(table.update(DOCS.read_text(), text))
    print(json.dumps(values, indent=1) if options.json else text)
