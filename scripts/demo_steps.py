"""The demo's steps: what a person would type, run and explained, with the proof at the end.

Every `fsync` and `fstore` below is the installed command, called as a person calls it. Nothing here knows
the insides of either side, except the proof, which reads every byte the store wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pydicom
import pydicom.data

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".demo"
CORPUS = ROOT.parent / "shared" / "corpus"
BOLD, DIM, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    print(textwrap.fill(" ".join(text.split()), 100))


def step(title: str) -> None:
    step.number = getattr(step, "number", 0) + 1  # type: ignore[attr-defined]
    print(f"\n{BOLD}{step.number}. {title}{PLAIN}")  # type: ignore[attr-defined]


def fail(text: str) -> NoReturn:
    raise SystemExit(f"\nThe demo failed: {text}\nEverything is left in {PLACE} for a look.")


def run(*words: str, expect: tuple[int, ...] = (0,), show: bool = True) -> str:
    """Type a command, show it and what it prints, and return its standard output."""
    if show:
        print(f"{DIM}$ {shlex.join(words)}{PLAIN}")
    done = subprocess.run(
        words, cwd=PLACE, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if show:
        lines = (done.stdout + done.stderr).rstrip().splitlines()
        for line in lines[:14]:
            print(f"    {line[:132]}")
        if len(lines) > 14:
            print(f"    ... {len(lines) - 14} more lines")
    if done.returncode not in expect:
        fail(f"`{' '.join(words)}` left with status {done.returncode}\n{done.stderr}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sources() -> dict[str, Path]:
    """Two facilities' folders of real DICOM files."""
    if CORPUS.is_dir():
        return {"clinic-a": CORPUS / "clinic-a", "hospital-b": CORPUS / "hospital-b"}
    made = {name: PLACE / f"images-of-{name}" for name in ("clinic-a", "hospital-b")}
    for folder in made.values():
        folder.mkdir()
    bundled = Path(pydicom.data.__file__).parent  # pydicom's own finder would download what is not bundled
    for number, path in enumerate(sorted(bundled.rglob("*.dcm"))):
        shutil.copy2(path, list(made.values())[number % 2] / f"{number:03}-{path.name}")
    return made


def identities(folder: Path) -> Iterator[bytes]:
    """Every name, ID, birth date and accession number in the originals, as the bytes they stand there."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # what is no DICOM file holds no DICOM identity
            continue
        for keyword in ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber"):
            raw = header.get_item(keyword)
            value = getattr(raw, "value", None)
            value = value if isinstance(value, bytes) else str(value or "").encode()
            value = value.strip(b"\0 ")
            # Shorter ones, and numbers like 000000 or 12345678, stand in any bytes, or tables of all bytes.
            told = len(set(value)) > 2 and value not in b"0123456789"
            if told and len(value) >= (8 if value.isdigit() else 6):
                yield value


def count_hits(needles: set[bytes], folder: Path) -> int:
    return sum(
        path.read_bytes().count(needle) for path in folder.rglob("*") if path.is_file() for needle in needles
    )


class Store:
    """`fstore serve` in the background."""

    def __init__(self, root: str, port: int) -> None:
        log = PLACE / f"{root}.log"
        words = ["fstore", "--root", root, "serve"]
        print(f"{DIM}$ {' '.join(words)} &{PLAIN}")
        with log.open("w") as sink:
            self.process = subprocess.Popen(words, cwd=PLACE, stdout=sink, stderr=subprocess.STDOUT)
        until = time.monotonic() + 30
        while f":{port}" not in log.read_text():
            if time.monotonic() > until or self.process.poll() is not None:
                fail("the store did not start\n" + log.read_text())
            time.sleep(0.05)
        print("    " + next(line for line in log.read_text().splitlines() if f":{port}" in line))

    def kill(self) -> None:
        """End it as a power cut would."""
        print(f"{DIM}$ kill -9 {self.process.pid}{PLAIN}")
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop, and wait."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def main() -> None:
    started = time.monotonic()
    warnings.filterwarnings("ignore", module="pydicom")  # of odd files, which are here on purpose
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    os.umask(0o077)
    port = free_port()
    folders = sources()
    first, second = folders

    step("A store, and its public card")
    run("fstore", "--root", "store", "init", "--name", "central", "--host", "127.0.0.1", "--port", str(port))
    (PLACE / "store.card").write_text(run("fstore", "--root", "store", "card"))

    step("Two facilities make their terminals, and the operator enrols them")
    say("The keys to identity are made here and never leave. The store gets a public card only.")
    for name, folder in folders.items():
        run("fsync", "--home", name, "init", "--facility", name, show=name == first)
        run("fsync", "--home", name, "trust", "store.card", show=name == first)
        run("fsync", "--home", name, "source", "add", str(folder), show=name == first)
        run("fstore", "--root", "store", "enrol", f"{name}/{name}.card")
        (PLACE / f"{name}.password").write_text(secrets.token_urlsafe(12) + "\n")
        run("fstore", "--root", "store", "account", "add", f"reader-{name}", "--facility", name,
            "--password-file", f"{name}.password")  # fmt: skip
    mapped = site_map(first, folders[first])

    step("The store serves")
    store = Store("store", port)
    try:
        summary = rounds_and_searches(folders, first, second, mapped)
        summary += replicated(store, folders)
    finally:
        store.process.kill()
    step("Proof: no store ever saw an identity")
    needles = {needle for folder in folders.values() for needle in identities(folder)}
    control = sum(count_hits(needles, folder) for folder in folders.values())
    hits = sum(count_hits(needles, PLACE / root) for root in ("store", "north"))
    say(f"""{len(needles)} names, IDs, birth dates and accession numbers of the originals were looked for in
        every byte both stores wrote: {hits} found. The same search over the originals finds {control}.""")
    if hits or not control:
        fail("an identity is at a store, or the search finds nothing at all")

    print(f"\n{BOLD}Summary{PLAIN}")
    for line in (*summary, f"{hits} of {len(needles)} identities at the stores; {control} in the originals"):
        print(f"  {line}")
    print(f"  {time.monotonic() - started:.1f} seconds")
    if "--keep" not in sys.argv:
        shutil.rmtree(PLACE)


def site_map(name: str, folder: Path) -> str:
    """Map one description this facility's devices write to a photographing menu, as its technician would."""
    for path in sorted(folder.rglob("*.dcm")):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # not a DICOM file: the round will say so
            continue
        text = str(header.get("SeriesDescription", "") or header.get("StudyDescription", "")).strip()
        if text and header.get("StudyDate") and header.get("Modality") and header.get("PatientID"):
            menu = f"{header.Modality} DEMO EXAM"
            with (PLACE / name / "settings.toml").open("a") as file:
                file.write(f'\n[menu.{json.dumps(text)}]\ncode = "D1"\nmeaning = {json.dumps(menu)}\n')
            say(f"""The technician of {name} maps one description of a device to a menu in settings.toml: free
                text never leaves, a mapped menu can be searched.""")
            return menu
    fail("no image has a description")


def ask(home: str, *words: str) -> tuple[str, ...]:
    """A question of a person at this facility."""
    who = ("--user", f"reader-{home}", "--password-file", f"{home}.password")
    return ("fsync", "--home", home, *words, *who)


def rounds_and_searches(folders: dict[str, Path], first: str, second: str, menu: str) -> list[str]:
    step("The nightly round of each facility")
    say("Status 3 says: finished, but some files are no images. Each of them is named.")
    reports = {}
    for name in folders:
        run("fsync", "--home", name, "sync", "--quiet", expect=(0, 3))
        reports[name] = json.loads(run("fsync", "--home", name, "sync", "--json", expect=(0, 3), show=False))
        if reports[name]["waiting"] or reports[name]["taken"]:
            fail("a second round found something left to do")
    stored = sum(report["known"] for report in reports.values())
    refused = sum(len(report["refused"]) for report in reports.values())

    step("Search by patient")
    rows: list[dict[str, Any]] = json.loads(
        run(*ask(first, "query", "--level", "instance", "--json"), show=False)
    )
    row = next(row for row in rows if row["menu"] == menu and row["patient_id"])
    found = run(*ask(first, "query", "--patient-id", row["patient_id"]))
    if row["study_uid"] not in found:
        fail("the patient was not found")

    step("Search by facility + patient + date + modality + menu")
    combined = ("--facility", first, "--patient-id", row["patient_id"], "--date", row["study_date"],
                "--modality", row["modality"], "--menu", menu)  # fmt: skip
    if row["study_uid"] not in run(*ask(first, "query", *combined)):
        fail("the combination did not find the study")

    step("A wrong password is refused, and so is another facility's patient")
    (PLACE / "wrong.password").write_text("guess\n")
    run("fsync", "--home", first, "query", *combined, "--user", f"reader-{first}", "--password-file",
        "wrong.password", expect=(14,))  # fmt: skip
    nothing = json.loads(run(*ask(second, "query", "--facility", first, "--count", "--json")))
    if nothing["matches"]:
        fail("a facility saw another's rows without a grant")

    step("Fetch: the images come back, bit for bit")
    run(*ask(first, "fetch", *combined, "--to", "one-exam"))
    run(*ask(first, "fetch", "--facility", first, "--to", "everything", "--quiet"))
    originals = {digest(path) for path in folders[first].rglob("*") if path.is_file()}
    fetched = [digest(path) for path in (PLACE / "everything").rglob("*.dcm")]
    wrong = sum(item not in originals for item in fetched)
    say(f"{len(fetched)} files fetched, {wrong} differ from what the facility read.")
    if wrong or len(fetched) != reports[first]["known"]:
        fail("a file did not come back as it was")

    step("A partner with the domain and a grant may read too")
    run("fsync", "--home", first, "domain", "export", "--to", f"{second}/{second}.card", "shared.domain")
    run("fsync", "--home", second, "domain", "import", "shared.domain")
    run("fstore", "--root", "store", "grant", first, "--to", second)
    patient = ("--patient-id", row["patient_id"], "--facility", first)
    granted = json.loads(run(*ask(second, "query", *patient, "--json"), show=False))
    if not granted or granted[0]["patient_id"] != row["patient_id"]:
        fail("the partner cannot read")
    say(f"{second} now finds and reads {len(granted)} study of this patient at {first}.")

    step("The store checks itself")
    run("fstore", "--root", "store", "check", "--read-data")
    return [
        f"{stored} images stored with verified receipts, {refused} files refused with a reason, 0 waiting",
        f"{len(fetched)} images fetched, {len(fetched) - wrong} byte-identical",
        "a wrong password and a missing grant were refused",
    ]


def replicated(store: Store, folders: dict[str, Path]) -> list[str]:
    """A second store gets everything, the first one is killed, and nobody has to do anything."""
    step("A second store: each is the other's peer")
    port, home = free_port(), next(iter(folders))
    run("fstore", "--root", "north", "init", "--name", "north", "--host", "127.0.0.1", "--port", str(port))
    (PLACE / "north.card").write_text(run("fstore", "--root", "north", "card", show=False))
    run("fstore", "--root", "store", "peer", "add", "north", "north.card")
    run("fstore", "--root", "north", "peer", "add", "central", "store.card", "--wait")
    north = Store("north", port)
    try:
        run("fstore", "--root", "store", "replicate", "north", "--patience", "30")
        say("Facilities, accounts and grants went along. The terminals trust it behind the first.")
        for name in folders:
            run("fsync", "--home", name, "trust", "north.card", show=name == home)
            run("fsync", "--home", name, "sync", "--quiet", expect=(0, 3), show=False)
        if "1 replica:" not in run("fsync", "--home", home, "status", expect=(0, 3)):
            fail("the terminal does not know of the replicas")

        step("The first store is killed: the second answers")
        store.kill()
        run(*ask(home, "query", "--facility", home, "--count"))
        run(*ask(home, "fetch", "--facility", home, "--to", "from-north"))
        other = sorted(digest(path) for path in (PLACE / "from-north").rglob("*.dcm"))
        if other != sorted(digest(path) for path in (PLACE / "everything").rglob("*.dcm")):
            fail("the second store did not give the same images back")
        say(f"{len(other)} files fetched from north, each the same as before.")
        run("fstore", "--root", "north", "check", "--read-data")
    finally:
        status = north.stop()
    if status:
        fail("the second store did not stop cleanly")
    return [f"the first store was killed; {len(other)} images came back from the second, byte-identical"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
