"""One site that several modules look at, made once for each test process."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import images
from tests.kit.corpus import bundled
from tests.kit.site import Site, make_site

WANTED = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "waveform_ecg.dcm", "test-SR.dcm", "rtplan.dcm",
          "MR_truncated.dcm", "DICOMDIR", "image_dfl.dcm", "ExplVR_BigEnd.dcm")  # fmt: skip


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A store that does not serve yet, and no terminal."""
    return make_site(tmp_path / "site", free_port())


@pytest.fixture(scope="session")
def full_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A serving store with two facilities' synthetic and real images; look, do not change."""
    folder = tmp_path_factory.mktemp("full")
    site = make_site(folder / "site", free_port())
    a, b = folder / "images-a", folder / "images-b"
    for patient in (1, 2):
        for study in (1, 2):
            for instance in (1, 2, 3):
                images.write(a, patient, study, 1, instance)
            images.write(
                a, patient, study, 2, 1, Modality="MR", BodyPartExamined="BRAIN", ProcedureCodeSequence=None
            )
    images.write(
        b, 1, 3, 1, 1, PatientName="山田^太郎=ヤマダ^タロウ", PatientID="pid-00001", IssuerOfPatientID="B"
    )
    images.write(b, 7, 1, 1, 1, Modality="MR", BodyPartExamined="KNEE")
    (b / "real").mkdir()
    for path in bundled():
        if path.name in WANTED:
            shutil.copy2(path, b / "real" / path.name)
    (b / "notes.txt").write_text("no image")
    site.terminal("clinic-a", a, offline=True)
    site.terminal("hospital-b", b)
    with site.serving():
        for terminal in site.terminals.values():
            done = terminal("sync", "--json")
            assert done.status in (0, 3), done.err
        yield site
