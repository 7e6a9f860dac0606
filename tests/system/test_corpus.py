"""The whole corpus: every file stored and restored bit for bit, or reported with a reason; no identity out.

Without the corpus the same is done with pydicom's bundled files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.kit.corpus import CORPUS, FACILITIES, bundled, corpus
from tests.kit.site import Site, make_site
from tests.system.conftest import free_port


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of real files for each facility."""
    if corpus():
        return {name: CORPUS / name for name in FACILITIES}
    folder = tmp_path_factory.mktemp("bundled")
    made = {name: folder / name for name in FACILITIES}
    for number, path in enumerate(bundled()):
        target = list(made.values())[number % len(made)] / f"{number:03}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(path, target)
    return made


@pytest.fixture(scope="module")
def synced(sources, tmp_path_factory) -> Iterator[tuple[Site, dict[str, dict]]]:
    """Every facility after its first round, and the reports."""
    site = make_site(tmp_path_factory.mktemp("corpus") / "site", free_port())
    reports = {}
    for name, folder in sources.items():
        site.terminal(name, folder)
    with site.serving():
        for name, terminal in site.terminals.items():
            done = terminal("sync", "--json")
            assert done.status in (0, 3), done.err
            reports[name] = done.json
        yield site, reports


def files(folder: Path) -> dict[str, str]:
    """Path below the folder to SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_file_is_stored_or_reported_and_none_is_missing(synced, sources):
    _, reports = synced
    for name, folder in sources.items():
        report, found = reports[name], files(folder)
        assert report["found"] == len(found)
        assert report["waiting"] == []
        refused = {line["path"]: line["reason"] for line in report["refused"]}
        assert set(refused) <= set(found)
        assert set(refused.values()) <= {"not-dicom", "dicomdir", "empty", "no-sop-instance-uid"}
        assert report["taken"] + report["held"] + len(refused) == len(found)
        assert report["stored"] == report["taken"]
        if name != "odd":
            assert set(refused.values()) <= {"dicomdir"} or not corpus()


def test_every_stored_file_comes_back_bit_for_bit(synced, sources, tmp_path):
    site, reports = synced
    for name, terminal in site.terminals.items():
        done = terminal.ask("fetch", "--facility", name, "--to", tmp_path / name, "--json")
        assert done.status == 0, done.err
        found = files(sources[name])
        refused = {line["path"] for line in reports[name]["refused"]}
        stored = {digest for path, digest in found.items() if path not in refused}
        assert set(files(tmp_path / name).values()) == stored
        assert done.json["restored"] == reports[name]["taken"] == len(stored)


def test_the_store_checks_clean(synced):
    site, reports = synced
    done = site.store("check", "--read-data", "--json")
    assert done.status == 0, done.err
    assert site.store("status").status == 0
    assert sum(report["taken"] for report in reports.values()) > 100
    assert json.loads(done.out)


IDENTIFYING = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber")
KEPT = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "InstitutionName", "StationName",
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate",
    "PerformedProcedureStepStartDate",
)  # fmt: skip


def values(folder: Path, keywords: tuple[str, ...]) -> Iterator[bytes]:
    """The values of these attributes in every file, as the bytes they stand there."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            found = [header.get_item(keyword) for keyword in keywords]
        except Exception:  # what pydicom cannot read, the scan cannot list
            continue
        for item in found:
            value = item.value if item is not None else b""
            yield (value if isinstance(value, bytes) else str(value).encode()).strip(b"\0 ")


def found_in(folders: list[Path], needles: set[bytes], scratch: Path) -> list[bytes]:
    """Every place a needle stands in any file below these folders, by `grep`, as an auditor would look.

    Digests are taken out first: their digits are random, and some run of five stands in one of them. So are
    long UIDs: they are kept by design, also where they refer to other instances.
    """
    (scratch / "needles").write_bytes(b"\n".join(sorted(needles)))
    with (scratch / "haystack").open("wb") as sink:
        for name in sorted(grep(scratch, "-r", "-l", *folders)):  # only there is anything to take out
            data = Path(os.fsdecode(name)).read_bytes()
            sink.write(re.sub(rb"[0-9a-f]{32,}|(?:\d+\.){5,}\d+", b"", data) + b"\n")
    return grep(scratch, "-o", "haystack")


def grep(scratch: Path, *words: str | Path) -> list[bytes]:
    """The lines that grep prints about the needles."""
    command = ["grep", "-a", "-F", "-f", "needles", *words]
    done = subprocess.run(
        command, cwd=scratch, capture_output=True, check=False, env={"LC_ALL": "C", "PATH": os.defpath}
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of odd files, which are here on purpose
@pytest.mark.skipif(not shutil.which("grep"), reason="no grep on this machine")
def test_no_identity_of_the_corpus_is_at_the_store(synced, sources, tmp_path):
    """By bytes, over everything under the root, and the protected files as they are without compression.

    Left out: what is too short or too plain to say anything (`000000`; `26210`, which is also a size), and
    what is part of a UID, the institution's name or a date of photographing, which are kept by design (on the
    day somebody was born somebody else was photographed).
    """
    site, _ = synced
    kept = b"\n".join(value for folder in sources.values() for value in values(folder, KEPT))
    needles = {
        value
        for folder in sources.values()
        for value in values(folder, IDENTIFYING)
        if len(value) >= (8 if value.isdigit() else 5)
        and len(set(value)) > 2
        and value not in kept
        and b"\n" not in value
    }
    assert len(needles) > 50
    assert len(found_in(list(sources.values()), needles, tmp_path)) > 300
    shown = 0
    for name, terminal in site.terminals.items():
        to = tmp_path / "shown"
        done = terminal.ask("fetch", "--facility", name, "--protected", "--to", to, "--json")
        assert {line["reason"] for line in done.json["failed"]} <= {"sealed-whole"}
        shown += done.json["restored"]
    assert shown == len(files(tmp_path / "shown")) > (200 if corpus() else 20)
    assert found_in([site.root, tmp_path / "shown"], needles, tmp_path) == []


def test_a_lost_ledger_costs_one_round_and_no_duplicate(synced, sources):
    site, reports = synced
    terminal = site.terminals["clinic-a"]
    for path in terminal.home.glob("ledger.sqlite3*"):
        path.unlink()
    done = terminal("sync", "--json")
    assert done.status in (0, 3), done.err
    assert (done.json["taken"], done.json["sent_batches"]) == (0, 0)
    assert done.json["held"] == reports["clinic-a"]["taken"] + reports["clinic-a"]["held"]
    again = terminal("sync", "--json")
    assert again.json["known"] == done.json["held"]
