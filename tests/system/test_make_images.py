"""The generator of images to measure with: always the same bytes, valid, compressible as real ones are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import zstandard
from pydicom.uid import CTImageStorage

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_images.py"


def make(out: Path, *words: str) -> list[Path]:
    subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *words], check=True, capture_output=True, timeout=60
    )
    return sorted(path for path in out.rglob("*") if path.is_file())


def digests(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> list[Path]:
    return make(tmp_path_factory.mktemp("slices"), "--studies", "2", "--slices", "4", "--seed", "3")


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(slices, tmp_path):
    again = make(tmp_path / "again", "--studies", "2", "--slices", "4", "--seed", "3")
    other = make(tmp_path / "other", "--studies", "2", "--slices", "4", "--seed", "4")
    assert len(slices) == 8
    assert digests(slices) == digests(again)
    assert len({*digests(slices), *digests(other)}) == 16


def test_each_slice_is_a_valid_ct_image_with_all_that_is_searched(slices):
    read = [pydicom.dcmread(path) for path in slices]
    for path, image in zip(slices, read, strict=True):
        assert image.file_meta.MediaStorageSOPClassUID == image.SOPClassUID == CTImageStorage
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.pixel_array.shape == (512, 512)
        assert int(image.pixel_array.max()) < 4096
        assert int(image.InstanceNumber) == int(path.stem)
        assert image.SliceLocation == image.ImagePositionPatient[2]
        assert image.ProcedureCodeSequence[0].CodeMeaning
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime",
                        "InstitutionName", "BodyPartExamined", "AccessionNumber"):  # fmt: skip
            assert image.get(keyword), keyword
    assert len({image.SOPInstanceUID for image in read}) == 8
    assert len({image.StudyInstanceUID for image in read}) == len({image.PatientID for image in read}) == 2
    assert len({image.SliceLocation for image in read[:4]}) == 4


def test_it_compresses_as_a_noisy_scan_does(slices):
    before = sum(path.stat().st_size for path in slices)
    after = sum(len(zstandard.ZstdCompressor(level=1).compress(path.read_bytes())) for path in slices)
    assert 0.70 <= after / before <= 0.75


def test_the_giant_has_the_frames_it_announces(tmp_path):
    (path,) = make(tmp_path, "--giant", "20")
    image = pydicom.dcmread(path)
    assert abs(path.stat().st_size - 20 * 1024 * 1024) < 4096
    assert image.pixel_array.shape == (image.NumberOfFrames, 512, 512)
    frames = image.pixel_array.reshape(image.NumberOfFrames, -1)
    assert len({frame.tobytes() for frame in frames}) == image.NumberOfFrames == 40
    assert np.all(frames < 4096)


def test_impossible_sizes_are_refused(tmp_path):
    for words in (["--giant", "4096"], ["--studies", "0"]):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path), *words], check=False, capture_output=True
        )
        assert done.returncode == 2
    assert not list(tmp_path.iterdir())
