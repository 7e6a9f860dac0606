"""The walk-through with standard tools, run as it stands in the docs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from facility_sync.identity import dictionary
from tests.kit import images
from tests.kit.site import Site

PAGE = Path(__file__).parents[2] / "docs" / "open-with-standard-tools.md"
TOOLS = ("age", "tar", "sha256sum", "ssh-keygen", "zstd", "openssl", "gdcmanon", "sh")


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
def test_a_batch_on_the_wire_opens_with_standard_tools_only(site: Site, tmp_path: Path) -> None:
    source, here = tmp_path / "images", tmp_path / "here"
    here.mkdir()
    wanted = {images.write(source, 1, 1, 1, n).read_bytes() for n in (1, 2)}
    a = site.terminal("clinic-a", source)
    inbox = site.root / "shelves" / "clinic-a" / "in"
    with site.serving():
        assert a("sync").status == 0  # from now on the terminal knows its place in the sequence
        receipt = next(a.home.joinpath("receipts").glob("*.receipt.json"))
        shutil.copy(receipt, here / "receipt.json")
        shutil.copy(str(receipt) + ".sig", here / "receipt.json.sig")
        wanted.add(images.write(source, 2, 1, 1, 1, BurnedInAnnotation="YES").read_bytes())
        protected = images.write(source, 3, 1, 1, 1).read_bytes()
        a.settings(receipt_wait_seconds=0)
        wire = _catch(a, inbox)
    (here / "batch.batch").write_bytes(wire)
    shutil.copy(site.root / "keys" / "age_identity", here / "store.age")
    shutil.copy(a.home / "clinic-a.card", here)
    shutil.copy(site.folder / "store.card", here)
    shutil.copy(next(a.home.joinpath("domains").glob("*.domain")), here / "clinic-a.domain")
    (here / "capsule.dictionary").write_bytes(dictionary.HEADERS)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 7
    script = "set -eu\n" + "\n".join(blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("Good ") == 2
    assert "opened/manifest.parquet: OK" in done.stdout
    assert (here / "image.dcm").read_bytes() in wanted
    assert (here / "original.dcm").read_bytes() == protected
    assert pydicom.dcmread(here / "reidentified.dcm").PatientName == "FAMILY3^GIVEN3"


def _catch(a, inbox: Path) -> bytes:
    """The next batch as it lies on the shelf: a second name for the file, taken when it appears."""
    with subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(inbox)], stdout=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        assert a("sync").status in (0, 11)
        copy = Path(watcher.stdout.readline().strip())
    return copy.read_bytes()


_WATCH = """
import os, sys, time
inbox = sys.argv[1]
print("watching", flush=True)
until = time.monotonic() + 30
while time.monotonic() < until:
    for name in os.listdir(inbox):
        if name.endswith(".batch"):
            try:
                os.link(os.path.join(inbox, name), inbox + "/../caught")
            except OSError:
                continue
            print(os.path.realpath(inbox + "/../caught"), flush=True)
            sys.exit()
"""
