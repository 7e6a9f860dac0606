"""Measure stores that replicate: a first copy beside other tools, a lost folder of packs, and catching up.

    scripts/bench/peers                       1 GiB of slices; logs of 1,000, 10,000 and 100,000 batches
    scripts/bench/peers --mib 256             less
    scripts/bench/peers --update-docs         and write the tables into docs/performance.md

Two stores serve on one disk, over loopback, with the embedded server. A terminal uploads, then `fstore
replicate` brings everything to the other store; `rclone sync` and `restic copy` bring the same files of the
first store (packs and manifests) to OpenSSH's server with the same cipher. Then the first store's folder of
packs is deleted and fetched back.

Catching up is measured without processes: two stores that talk through a folder, ten batches that one of
them lacks, and logs that are filled up with entries whose batches are settled on both sides. Processor time
counts.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import secrets
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import campaign
import measure
import ours
import peers
import sshd
import table

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
MISSING = 10
"""Batches that one side lacks."""


def fstore(root: Path, *words: str | Path) -> list[str | Path]:
    """A command line."""
    return [ours.BIN / "fstore", "--root", root, *words]


@contextmanager
def two_stores(work: Path) -> Iterator[tuple[Path, Path]]:
    """Two stores that are each other's peers, and a facility at the first."""
    os.umask(0o077)
    south, north, home = work / "south", work / "north", work / "home"
    for root in (south, north):
        port = str(sshd.free_port())
        ours.do("fstore", "--root", root, "init", "--name", root.name, "--host", "127.0.0.1", "--port", port)
        (work / f"{root.name}.card").write_text(ours.do("fstore", "--root", root, "card"))
    ours.do("fstore", "--root", south, "peer", "add", "north", work / "north.card")
    ours.do("fstore", "--root", north, "peer", "add", "south", work / "south.card", "--wait")
    ours.do("fsync", "--home", home, "init", "--facility", ours.FACILITY)
    ours.do("fstore", "--root", south, "enrol", home / f"{ours.FACILITY}.card")
    ours.do("fsync", "--home", home, "trust", work / "south.card")
    settings = home / "settings.toml"
    settings.write_text(ours.settings_text(settings.read_text(), over_sshd=False))
    yield south, north


def bytes_of(folder: Path) -> int:
    """Of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy(work: Path, source: Path) -> list[dict[str, Any]]:
    """Upload, replication, the other tools, the drill."""
    rows: list[dict[str, Any]] = []

    def note(what: str, cost: measure.Cost, size: int) -> None:
        campaign.say(f"  {what} {cost.seconds:.1f} s")
        rows.append({"what": what, "bytes": size, **{name: getattr(cost, name) for name in campaign.FIELDS}})

    with two_stores(work) as (south, north):
        ours.do("fsync", "--home", work / "home", "source", "add", source)
        with ExitStack() as stack:
            servers = [stack.enter_context(_serving(work / "logs" / "south", south))]
            sync = [ours.BIN / "fsync", "--home", work / "home", "sync", "--quiet"]
            cost = measure.run(sync, servers=servers, expect=(0, 3))
            size = bytes_of(south / "objects" / "packs")
            note("first upload: `fsync sync` to the first store", cost, size)
            servers.append(stack.enter_context(_serving(work / "logs" / "north", north)))
            cost = measure.run(fstore(south, "replicate", "north"), servers=servers)
            note("`fstore replicate` to the second store", cost, size)
        others(work, south, note)
        shutil.rmtree(south / "objects" / "packs")
        with _serving(work / "logs" / "north", north) as server:
            cost = measure.run(fstore(south, "repair", "--from", "north"), servers=[server])
            note("packs deleted: `fstore repair --from`", cost, size)
        cost = measure.run(fstore(south, "check", "--read-data"))
        note("`fstore check --read-data`", cost, size)
        if bytes_of(south / "objects" / "packs") != size:
            raise measure.CommandFailed("other packs came back")
    return rows


@contextmanager
def _serving(place: Path, root: Path) -> Iterator[int]:
    place.mkdir(parents=True, exist_ok=True)
    with ours.one_store(place, root) as process:
        yield process


def others(work: Path, south: Path, note: Any) -> None:
    """`rclone sync` and `restic copy` of what the first store has."""
    source = work / "to-copy"
    source.mkdir()
    for name in ("objects/packs", "manifests"):  # hard links: no further bytes
        shutil.copytree(south / name, source / name.replace("/", "-"), copy_function=os.link)
    size = bytes_of(source)
    if shutil.which("rclone") and sshd.SSHD:
        (work / "rclone").mkdir()
        with peers.road(work / "rclone") as where:
            server = where.server
            flags = [
                *("--sftp-host", "127.0.0.1", "--sftp-port", str(server.port), "--sftp-user", sshd.USER),
                *("--sftp-key-file", where.key, "--sftp-known-hosts-file", server.known_hosts),
                *("--sftp-shell-type", "none", "--sftp-disable-hashcheck", "--config", os.devnull),
            ]
            cost = measure.run(
                ["rclone", "-q", "sync", source, f":sftp:{where.place}/copy", *flags],
                servers=[where.server.pid],
            )
            note("`rclone sync` of packs and manifests, OpenSSH", cost, size)
    if shutil.which("restic") and sshd.SSHD:
        (work / "restic").mkdir()
        with peers.road(work / "restic") as where:
            word = secrets.token_urlsafe(16)
            secret = {"RESTIC_PASSWORD": word, "RESTIC_FROM_PASSWORD": word,
                      "RESTIC_CACHE_DIR": str(work / "cache")}  # fmt: skip
            local = work / "restic" / "local"
            far = ["restic", "-q", "-r", f"sftp:{sshd.USER}@127.0.0.1:{where.place}/repo", "-o",
                   f"sftp.command={peers.sftp_command(where)}"]  # fmt: skip
            measure.run(["restic", "-q", "-r", local, "init"], env=secret)
            measure.run(["restic", "-q", "-r", local, "backup", "."], env=secret, cwd=source)
            measure.run([*far, "init", "--from-repo", local, "--copy-chunker-params"], env=secret)
            cost = measure.run([*far, "copy", "--from-repo", local], env=secret, servers=[where.server.pid])
            note("`restic copy` of a repository of the same, OpenSSH", cost, size)
    shutil.rmtree(source)


# -- catching up ---------------------------------------------------------------------------------------


def catching_up(work: Path, sizes: list[int], repeat: int) -> list[dict[str, Any]]:
    """Ten batches among so many settled ones: processor seconds, messages, bytes of messages."""
    found = []
    for size in sizes:
        runs = [_catch_up(work / f"log-{size}-{number}", size) for number in range(repeat)]
        found.append(
            {"batches": size, **{key: statistics.median(run[key] for run in runs) for key in runs[0]}}
        )
        campaign.say(f"  {size:,} batches: {found[-1]['seconds']:.3f} s")
    return found


def _catch_up(folder: Path, size: int) -> dict[str, float]:
    from central_store.receipt_log import ReceiptLog
    from tests.central_store.test_peers_campaign import synthetic
    from tests.kit.batches import Facility, row
    from tests.kit.peering import Node, carry

    folder.mkdir()
    a, b, clinic = Node(folder / "a", "south"), Node(folder / "b", "north"), Facility("clinic-a")
    a.enrol(clinic)
    a.knows(b)
    b.knows(a)
    entries = synthetic(a, size)
    ReceiptLog(a.layout.log).append(entries)
    ReceiptLog(b.layout.peer(a.name) / "log").append(entries)
    for cursor in ("settled", "passed"):
        (b.layout.peer(a.name) / cursor).write_text(str(size))
    for number in range(MISSING):
        a.upload(clinic, clinic.batch([row(number)], a.store.card()))
    gc.collect()
    messages = said = 0
    started = time.process_time()
    while True:
        for node, other in ((a, b), (b, a)):
            node.step()
            there = [path for path in node.layout.outbound(other.name).iterdir() if path.suffix == ".request"]
            messages += len(there)
            said += sum(path.stat().st_size for path in there)
        if not carry(a, b):
            break
    seconds = time.process_time() - started
    if len(b.held()) != MISSING:
        raise SystemExit("not everything came")
    a.close()
    b.close()
    shutil.rmtree(folder)
    return {"seconds": seconds, "messages": messages, "said": said}


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """Slope of log(value) over log(batches), by least squares: 0 is no growth, 1 is growth with the size."""
    points = [(math.log(row["batches"]), math.log(row[key])) for row in rows]
    x, y = (statistics.mean(values) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


# -- report --------------------------------------------------------------------------------------------


def markdown(values: dict[str, Any]) -> str:
    """The tables."""
    machine = values["machine"]
    head = (
        f"Measured {machine['measured']} by `{values['command']}` on {machine['cores']} cores "
        f"({machine['processor']}), {machine['system']}; load before it began: {machine['load_before']}, "
        f"at its end: {values['load_after']}."
    )
    rate = {row["what"]: row["bytes"] / row["seconds"] / 1e6 for row in values["copy"]}
    first = next(iter(rate.values()), 0.0)
    lines = [
        "| what | MB | s | flush s | MB/s | CPU s | to the first upload |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in values["copy"]:
        lines.append(
            f"| {row['what']} | {row['bytes'] / 1e6:,.0f} | {row['seconds']:.1f} | {row['flush']:.1f} | "
            f"{rate[row['what']]:,.1f} | {row['client_cpu'] + row['server_cpu']:.1f} | "
            f"{rate[row['what']] / first:.2f} |"
        )
    parts = [head] + (["\n".join(lines)] if values["copy"] else [])
    if values["catching_up"]:
        lines = ["| batches in the log | of them missing | CPU s | messages | KB of messages |",
                 "|--:|--:|--:|--:|--:|"]  # fmt: skip
        for row in values["catching_up"]:
            lines.append(
                f"| {row['batches']:,} | {MISSING} | {row['seconds']:.3f} | {row['messages']:.0f} | "
                f"{row['said'] / 1e3:.1f} |"
            )
        slope = {key: exponent(values["catching_up"], key) for key in ("seconds", "said")}
        lines.append(f"\nGrowth exponents: {slope['seconds']:.2f} for time, {slope['said']:.2f} for bytes.")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024, help="of generated slices; 0: none (default 1024)")
    parser.add_argument("--logs", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="sizes of logs")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each log; the median counts")
    parser.add_argument("--work", type=Path, default=campaign.ROOT / ".bench", help="folder, emptied first")
    parser.add_argument(
        "--update-docs", action="store_true", help=f"write into {campaign.DOCS.relative_to(campaign.ROOT)}"
    )
    options = parser.parse_args()
    work: Path = options.work.absolute()
    if work.exists() and not (work / campaign.MARK).exists() and any(work.iterdir()):
        parser.error("--work names a folder that holds something else")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / campaign.MARK).touch()
    (work / ".gitignore").write_text("*\n")
    values: dict[str, Any] = {"machine": campaign.machine(), "copy": [], "catching_up": []}
    values["command"] = " ".join(["scripts/bench/peers", *sys.argv[1:]])
    try:
        if options.logs:
            values["catching_up"] = catching_up(work, options.logs, options.repeat)
        if options.mib:
            slices = max(1, options.mib * 2 // 10)  # of 512 KiB
            words = ("--studies", "10", "--slices", f"{slices}", "--seed", "1")
            values["copy"] = copy(work, campaign.generate(work / "images", *words))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    values["load_after"] = round(os.getloadavg()[0], 2)
    text = markdown(values)
    if options.update_docs:
        campaign.DOCS.write_text(table.update(campaign.DOCS.read_text(), text, BEGIN, END))
    print(text)
