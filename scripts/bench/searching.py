"""What searches and adding cost at several sizes of the archive; see `docs/performance.md`.

Server time: from a request to the bytes of its answer, as the service does it, without Argon2 and sealing.

Over 400 lines: the questions, who else is asked them, and the table of both belong to one run.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import queue
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import neighbours
import psutil
import rows as generator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import batches
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.layout import Layout
from central_store.search import search
from central_store.settings import Settings
from schemas import columns, container, manifest, messages, names

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- search:begin -->", "<!-- search:end -->"
NOW = datetime.now(UTC)
STORE = names.facility_name("central")
PERIOD = "facility, 30 days, modality, study list"
TARGETS = {
    "patient, study list": (3, 3, 4),
    PERIOD: (3, 3, 4),
    "the same, where at most 100 match": (3, 3, 4),
    "the same, newest 100 studies": None,
    "menu or body part, newest 100 studies": (5, 15, 30),
    "study UID to its instances": (10, 15, 25),
    "SOP UID to its instance": (10, 15, 25),
    "SHA-256 to where the object lies": (10, 15, 25),
    "full roll-up by facility, modality, month": (10, 20, 50),
    "held question of 1,000 digests": None,
    "facility, 30 days, modality, 1,000 images": None,
    "all series, 1,000 of them": None,
    "all images, 1,000 from the midst": None,
    "add a batch of 1,000 rows": (150, 150, 150),
}
_ROLLUP = """SELECT facility, modality, date_trunc('month', study_date) AS month, sum(n_instances)
FROM parts GROUP BY ALL"""


class Bench:
    """One filled catalog and the questions to it."""

    def __init__(self, catalog: Catalog, layout: Layout, rng: random.Random) -> None:
        self.catalog, self.layout, self.rng = catalog, layout, rng
        self.key = Ed25519PrivateKey.generate()
        sql = """SELECT facility, study_uid, study_date, modality, patient_id_tokens[1] AS token, body_part
            FROM parts USING SAMPLE 500 ROWS"""
        self.sample = catalog.table(sql, {}).to_pylist()
        totals = catalog.totals()
        self.facilities = list(totals)
        self.sequence = 10**6 + sum(count for count, _ in totals.values())
        self.images = sum(images for _, images in totals.values())
        sql = """SELECT object_sha256, sop_instance_uid, source_digest FROM objects
            WHERE part IN (SELECT part FROM parts USING SAMPLE 300 ROWS) LIMIT 3000"""
        self.objects = catalog.table(sql, {}).to_pylist()

    def ask(
        self,
        level: str,
        conditions: Mapping[str, Any],
        owners: Any = None,
        limit: int = 1000,
        offset: int = 0,
    ) -> int:
        """Ask it, and say how many rows came."""
        request = messages.SearchRequest(
            id="0" * 32, facility="facility-00", user="user", password="x", level=level,
            conditions=dict(conditions), count_only=False, limit=limit, offset=offset,
            created=messages.rfc3339(NOW),
        )  # fmt: skip
        answer, *_ = search(self.catalog, STORE, request, owners or self.facilities, NOW)
        return answer.returned

    def questions(self) -> dict[str, Callable[[], int]]:
        """Each with new values every time."""

        def period(limit: int = 1000, level: str = "study") -> int:
            one = self.rng.choice([each for each in self.sample if each["study_date"]])
            day: date = one["study_date"]
            span = f"{day - timedelta(15)}..{day + timedelta(15)}"
            conditions = {"study_date": [span], "modality": [one["modality"]]}
            return self.ask(level, conditions, [names.facility_name(one["facility"])], limit)

        def text() -> int:
            words = self.rng.choice(["*chest*", "*axial*", "*brain*", "*t2*", "*lung*"])
            named = self.rng.choice(["menu", "body_part"])
            return self.ask("study", {named: [words]}, limit=100)

        def placed(name: names.ObjectId) -> int:
            self.catalog.places([name], self.facilities)
            return 1

        def held() -> int:
            known = self.rng.sample(self.objects, min(500, len(self.objects)))
            others = [hashlib.sha256(self.rng.randbytes(9)).hexdigest() for _ in range(500)]
            asked = [*(each["source_digest"] for each in known), *others]
            return len(self.catalog.held(self.facilities[0], asked))

        return {
            "patient, study list": lambda: self.ask(
                "study", {"patient_id_tokens": [self.rng.choice(self.sample)["token"]]}
            ),
            PERIOD: period,
            "the same, newest 100 studies": lambda: period(100),
            "menu or body part, newest 100 studies": text,
            "study UID to its instances": lambda: self.ask(
                "instance", {"study_uid": [self.rng.choice(self.sample)["study_uid"]]}
            ),
            "SOP UID to its instance": lambda: self.ask(
                "instance", {"sop_instance_uid": [self.rng.choice(self.objects)["sop_instance_uid"]]}
            ),
            "SHA-256 to where the object lies": lambda: placed(
                names.object_id(self.rng.choice(self.objects)["object_sha256"])
            ),
            "full roll-up by facility, modality, month": lambda: self.catalog.table(_ROLLUP, {}).num_rows,
            "held question of 1,000 digests": held,
            "facility, 30 days, modality, 1,000 images": lambda: period(level="instance"),
            "all series, 1,000 of them": lambda: self.ask("series", {}),
            "all images, 1,000 from the midst": lambda: self.ask("instance", {}, offset=self.images // 2),
        }

    def new_batch(self) -> Batch:
        """A manifest of 1,000 rows in three studies, on the disk as a commit leaves it."""
        facility = self.rng.choice(self.facilities)
        self.sequence += 1
        one = self.rng.choice(self.sample)
        made = [self._row(facility, number, one) for number in range(1000)]
        table = manifest.to_parquet(made, facility=facility)
        batch = Batch(facility, names.batch_id(hashlib.sha256(table).hexdigest()))
        statement = messages.Statement(
            facility=facility, batch=batch.batch, sequence=self.sequence, previous="", objects=1000,
            bytes=1000 * 300_000, created=messages.rfc3339(NOW),
        )  # fmt: skip
        self.layout.manifest(*batch).parent.mkdir(exist_ok=True)
        batches.stage(self.layout.manifest(*batch), table, container.sign(statement, self.key))
        return batch

    def _row(self, facility: str, number: int, one: Mapping[str, Any]) -> dict[str, Any]:
        uid = f"1.2.3.{self.sequence}.{number // 400}"
        filled: dict[str, Any] = {column.name: None for column in columns.COLUMNS}
        seed = f"{self.sequence}.{number}.{self.rng.random()}"
        return filled | {
            "object_sha256": hashlib.sha256(seed.encode()).hexdigest(), "object_bytes": 300_000,
            "encoding": "dicom+zstd", "dicom_bytes": 500_000, "captured_at": NOW, "facility": facility,
            "source_digest": hashlib.sha256(b"d" + seed.encode()).hexdigest(), "study_uid": uid,
            "series_uid": f"{uid}.{number // 100}", "sop_instance_uid": f"{uid}.{number // 100}.{number}",
            "study_date": date(2026, 11, 1), "modality": one["modality"], "body_part": one["body_part"],
            "menu": "Thorax routine", "instance_number": number, "patient_id_tokens": ["1" + "A" * 26],
            "person_tokens": ["1" + "B" * 26], "accession_tokens": [], "domains": ["00" * 8],
            "sealed_identity": b"x" * 250, "flags": [],
        }  # fmt: skip


class Times:
    """Milliseconds of a question each time: of the wall clock, and of this process's work; and rows found."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.rows = list[float](), list[float](), list[int]()

    def add(self, question: Callable[[], int]) -> None:
        """Ask once more."""
        began = time.perf_counter(), time.process_time()
        self.rows.append(question())
        self.wall.append((time.perf_counter() - began[0]) * 1e3)
        self.cpu.append((time.process_time() - began[1]) * 1e3)

    def few(self, most: int) -> Times:
        """Only of the questions that found so many or fewer; of all, if none did."""
        found, at = Times(), [n for n, rows in enumerate(self.rows) if rows <= most]
        if not at:
            return self
        found.rows, found.wall, found.cpu = (
            [values[n] for n in at] for values in (self.rows, self.wall, self.cpu)
        )
        return found


def clocked(question: Callable[[], int], times: int, seconds: float = 20) -> Times:
    """Ask again and again; the first ones warm up and do not count."""
    for _ in range(3):
        question()
    found, end = Times(), time.perf_counter() + seconds
    while len(found.wall) < times and (len(found.wall) < 5 or time.perf_counter() < end):
        found.add(question)
    return found


def p(values: Sequence[float], part: float) -> float:
    """A percentile."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def adding(bench: Bench, times: int) -> Times:
    """From a committed batch until it is found by its study."""
    found = Times()
    for number in range(times + 2):
        batch = bench.new_batch()

        def add(batch: Batch = batch) -> int:
            bench.catalog.follow(batch)
            return bench.ask("study", {"study_uid": [f"1.2.3.{bench.sequence}.0"]})

        if number > 1:
            found.add(add)
        else:
            add()
    if {*found.rows} != {1}:
        raise SystemExit("a batch that was added is not found")
    return found


def crowd(bench: Bench, seconds: float, arriving: bool) -> list[float]:
    """16 searchers, each asking about once a second; one loop answers in turn, as the service does.

    Returns:
        Milliseconds from asking to answered, waiting in line included.
    """
    asking = list(bench.questions().values())[:7]
    line: queue.Queue[tuple[Callable[[], int], Future[None]]] = queue.Queue()
    end, waits, lock = time.perf_counter() + seconds, list[float](), threading.Lock()
    made = [bench.new_batch() for _ in range(int(seconds) if arriving else 0)]

    def searcher(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            time.sleep(rng.uniform(0.5, 1.5))
            done: Future[None] = Future()
            began = time.perf_counter()
            line.put((rng.choice(asking), done))
            done.result()
            with lock:
                waits.append((time.perf_counter() - began) * 1e3)

    def arrive(batch: Batch) -> Callable[[], None]:
        return lambda: bench.catalog.follow(batch)

    def sender() -> None:
        for batch in made:
            time.sleep(1)
            line.put((arrive(batch), Future()))

    threads = [threading.Thread(target=searcher, args=(n,), daemon=True) for n in range(16)]
    threads.append(threading.Thread(target=sender, daemon=True))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not line.empty():
        try:
            question, done = line.get(timeout=0.1)
        except queue.Empty:
            continue
        try:
            question()
        finally:
            done.set_result(None)
    return waits


def measure(objects: int, work: Path, times: int) -> dict[str, Any]:
    """Fill a store of that size, if it is not there, and measure it."""
    root = work / f"s{objects // 10**6}"
    layout = Layout(root)
    for folder in (*layout.folders(), layout.damaged):
        folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(name="central", host="localhost", port=0)
    with Catalog(layout, settings) as catalog:
        if not catalog.totals():
            generator.fill(catalog, objects, work, lambda done: print(f"{done:,}", file=sys.stderr))
    with Catalog(layout, settings) as catalog:
        held = sum(count for _, count in catalog.totals().values())
        parts = catalog.row("SELECT count(*), count(DISTINCT study) FROM parts", {})
        bench = Bench(catalog, layout, random.Random(7))
        found = {name: clocked(ask, times) for name, ask in bench.questions().items()}
        found["the same, where at most 100 match"] = found[PERIOD].few(100)
        found["add a batch of 1,000 rows"] = adding(bench, max(10, times // 3))
        quiet, busy = crowd(bench, 30, arriving=False), crowd(bench, 30, arriving=True)
        memory = psutil.Process().memory_info()
        mapped = memory.shared  # of mapped files, which the system takes back as it likes
    size = sum(path.stat().st_size for path in layout.catalog.parent.iterdir())
    for folder in layout.manifests.iterdir():
        shutil.rmtree(folder)
    return {
        "objects": held, "parts": parts[0], "studies": parts[1], "found": found, "quiet": p(quiet, 0.95),
        "busy": p(busy, 0.95), "busy_p50": p(busy, 0.5), "quiet_p50": p(quiet, 0.5), "searches": len(busy),
        "memory": (memory.rss - mapped) / 1e6, "rss": memory.rss / 1e6, "size": size,
    }  # fmt: skip


def alone(objects: int, work: Path, times: int) -> dict[str, Any]:
    """`measure` in a process of its own, which has no memory of other sizes."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
        return process.submit(measure, objects, work, times).result()


def growth(sizes: list[int], values: list[float]) -> float:
    """The exponent of a power law through the points."""
    xs, ys = [math.log(n) for n in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(xs, ys).slope


def beside(objects: int, work: Path, times: int, python: Path, asks: int) -> dict[str, Any]:
    """The same questions to us, Orthanc and idc-index."""
    root = work / "small"
    shutil.rmtree(root, ignore_errors=True)
    layout = Layout(root)
    for folder in (*layout.folders(), layout.damaged):
        folder.mkdir(parents=True, exist_ok=True)
    with Catalog(layout, Settings(name="central", host="localhost", port=0)) as catalog:
        held = generator.fill(catalog, objects, work)
        rows = neighbours.rows_of(catalog)
        bench = Bench(catalog, layout, random.Random(7))
        ours = {name: clocked(ask, times).wall for name, ask in bench.questions().items()}
        ours["add a batch of 1,000 rows"] = adding(bench, 5).wall
    found: dict[str, Any] = {"objects": held, "ours": ours, "orthanc": None}
    if neighbours.ORTHANC is not None:
        found["orthanc"] = neighbours.orthanc(
            rows, work, random.Random(7), lambda ask: clocked(ask, times).wall
        )
    return found | {"idc": neighbours.idc_index(python, asks)}


def compared(found: dict[str, Any]) -> list[str]:
    """The table of neighbours."""
    idc, orthanc = found["idc"], found["orthanc"] or {}
    size = "not there" if idc is None else f"{idc['series']:,} series of {idc['images']:,} images"
    rows = f"{found['objects']:,} objects"
    lines = [
        "", f"| p50, ms | ours, {rows} | Orthanc, the same | ratio | idc-index: {size} |",
        "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, walls in found["ours"].items():
        mine = p(walls, 0.5)
        theirs = p(orthanc[name], 0.5) if name in orthanc else None
        other = p([wall for wall, _ in idc["found"][name]], 0.5) if idc and name in idc["found"] else None
        if theirs is not None or other is not None:
            cells = ["", ""] if theirs is None else [f"{theirs:.1f}", f"{theirs / mine:.1f}"]
            cells.append("" if other is None else f"{other:.0f}")
            lines.append(f"| {name} | {mine:.1f} | {' | '.join(cells)} |")
    return lines


def markdown(measured: list[dict[str, Any]], neighbourhood: list[str], command: str) -> str:
    """The section of the page."""
    sizes = [each["objects"] for each in measured]
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, DuckDB {duckdb.__version__}"
    load = f"load of the machine at the end: {os.getloadavg()[1]:.1f}"
    head = " | ".join(f"{n:,} objects" for n in sizes)
    lines = [
        f"Measured {NOW:%Y-%m-%d} by `{command}` on {machine}; {load}.", "",
        "| p50 of server time, ms: wall / work (rows) | " + head + " | growth exponent of work | asked for |",
        "|---|" + "--:|" * (len(sizes) + 2),
    ]  # fmt: skip
    for name, target in TARGETS.items():
        times = [each["found"][name] for each in measured]
        work = [p(each.cpu, 0.5) for each in times]
        cells = [
            f"{p(each.wall, 0.5):.1f} / {p(each.cpu, 0.5):.1f} ({p(each.rows, 0.5):.0f})" for each in times
        ]
        slope = f"{growth(sizes, work):+.2f}" if len(sizes) > 1 else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {slope} | {' / '.join(map(str, target or ('',)))} |")
    lines += [
        "",
        "| | " + head + " |",
        "|---|" + "--:|" * len(sizes),
        "| parts / studies | " + " | ".join(f"{e['parts']:,} / {e['studies']:,}" for e in measured) + " |",
        "| 16 searchers, p95 in ms, quiet | " + " | ".join(f"{e['quiet']:.1f}" for e in measured) + " |",
        "| the same while a batch of 1,000 rows arrives each second | "
        + " | ".join(f"{e['busy']:.1f}" for e in measured) + " |",
        "| times the quiet p95 | " + " | ".join(f"{e['busy'] / e['quiet']:.1f}" for e in measured) + " |",
        "| memory of the process, MB, own (and with mapped files) | "
        + " | ".join(f"{e['memory']:.0f} ({e['rss']:.0f})" for e in measured) + " |",
        "| catalog on disk, bytes for each object | "
        + " | ".join(f"{e['size'] / e['objects']:.0f}" for e in measured) + " |",
        *neighbourhood,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--times", type=int, default=60, help="searches of each kind")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="kept: filling takes long")
    parser.add_argument("--beside", type=int, default=10_000, help="objects that Orthanc gets; 0: neither")
    parser.add_argument(
        "--idc-python", type=Path, default=Path(sys.executable), help="an interpreter that has idc-index"
    )
    parser.add_argument("--idc-times", type=int, default=3, help="questions of each kind to idc-index")
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    try:
        generator.index()
    except ImportError:
        sys.exit("The rows follow a published index: pip install -e '.[bench]'")
    measured = [alone(millions * 10**6, given.work, given.times) for millions in given.millions]
    sizes = " ".join(map(str, given.millions))
    neighbourhood = (
        compared(beside(given.beside, given.work, given.times, given.idc_python, given.idc_times))
        if given.beside
        else []
    )
    text = markdown(measured, neighbourhood, f"scripts/bench/search --millions {sizes} --times {given.times}")
    print(text)
    if given.update_docs:
        page = PAGE.read_text("utf-8")
        front, rest = page.split(BEGIN)
        PAGE.write_text(f"{front}{BEGIN}\n{text}{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
