#!/usr/bin/env python3
"""CT-like DICOM files for measuring: the same arguments give the same bytes.

    scripts/make_images.py OUT --studies 10 --slices 200 --seed 1     2,000 files of 512 KiB and a header
    scripts/make_images.py OUT --giant 1024                           one multi-frame file of 1 GiB

A slice is a smooth body with lungs and a spine under 12-bit Gaussian noise, 512 x 512 of 16 bits, as the
files of a real scanner compress: zstd -1 saves 25 to 30 %. A study is one patient, one day, one coded
procedure, one series. Nothing here is anybody's: names, IDs and dates are made of the seed.

One header is built for each series; what differs from slice to slice has a fixed width and is written
over. Memory stays at a few frames, whatever is asked for. An existing file is written over.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.sequence import Sequence
    from pydicom.uid import (
        CTImageStorage,
        ExplicitVRLittleEndian,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    )
except ModuleNotFoundError:  # started with an interpreter that lacks them: the checkout's has them
    _OWN = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if not _OWN.exists() or Path(sys.prefix) == _OWN.parents[1]:
        sys.exit("Run ./scripts/test once, or: pip install -e '.[test]'")
    os.execv(_OWN, [str(_OWN), *sys.argv])

SIDE = 512
FRAME = SIDE * SIDE * 2
"""Bytes of one frame."""
MAX_GIANT = 4095
"""Largest multi-frame file in MiB: the length of pixel data is a number of 32 bits (PS3.5 section 7.1.1)."""

_UID = "1.2.826.0.1.3680043.10.9999.7"
_NOISE = 60.0  # standard deviation in stored values: a thin slice at a low dose
_NUMBER = "999999"  # what stands for a slice's number in the header of its series
_PLACE = "-999.999"  # and for its position along the table
_EXAMS = (
    ("CTTHX", "CT Thorax native", "CHEST"),
    ("CTABD", "CT Abdomen with contrast", "ABDOMEN"),
    ("CTHEAD", "CT Head native", "HEAD"),
    ("CTNECK", "CT Neck with contrast", "NECK"),
    ("CTPELV", "CT Pelvis native", "PELVIS"),
)
_FAMILIES = (
    "ARDEN",
    "BRANDT",
    "CASTELL",
    "DUPREY",
    "ENGSTROM",
    "FARKAS",
    "GIULIANI",
    "HOLUB",
    "IVANOV",
    "JANSEN",
)
_GIVEN = ("ALEX", "BIRGIT", "CHARLES", "DORA", "EMIL", "FIONA", "GEORG", "HELENE", "IGOR", "JULIA", "KARIN")

Frame = npt.NDArray[np.uint16]
Smooth = npt.NDArray[np.float32]


class Body(NamedTuple):
    """The smooth part of a study's images, and how it changes from one end to the other."""

    here: Smooth
    there: Smooth


def body(rng: np.random.Generator) -> Body:
    """A body's cross-section at both ends: air, fat, muscle, lungs, spine."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)

    def ellipse(cx: float, cy: float, width: float, height: float, edge: float) -> Smooth:
        inside = 1 - ((x - cx) / width) ** 2 - ((y - cy) / height) ** 2
        part: Smooth = np.clip(inside / edge, 0, 1).astype(np.float32)
        return part

    def slab(size: float, lung: float) -> Smooth:
        image = np.full((SIDE, SIDE), 250, np.float32)  # air, above the zero of 12 bits
        image += 530 * ellipse(0, 0, 0.88 * size, 0.64 * size, 0.03)  # fat
        image += 250 * ellipse(0, 0, 0.80 * size, 0.56 * size, 0.04)  # muscle
        for side in (-1, 1):
            image -= 640 * ellipse(0.38 * side * size, -0.06, lung, 1.15 * lung, 0.2)
        image += 620 * ellipse(0, 0.36 * size, 0.11, 0.1, 0.3)  # spine
        image += 25 * np.sin(3 * x + 2 * y)  # the slow drift of every scanner
        return image

    size = float(rng.uniform(0.9, 1.05))
    return Body(slab(size, float(rng.uniform(0.2, 0.3))), slab(size * 0.95, float(rng.uniform(0.02, 0.1))))


def frame(body: Body, position: float, rng: np.random.Generator) -> Frame:
    """One noisy slice.

    Args:
        body: of the study.
        position: 0 to 1, from one end to the other.
        rng: of this slice alone.
    """
    image = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    image *= np.float32(_NOISE)
    image += body.here * np.float32(1 - position)
    image += body.there * np.float32(position)
    return np.clip(np.rint(image, out=image), 0, 4095, out=image).astype("<u2")


def dataset(seed: int, study: int) -> Dataset:
    """A study's header without pixels; slice numbers and positions are placeholders."""
    code, meaning, part = _EXAMS[study % len(_EXAMS)]
    day = date(2024, 1, 8) + timedelta(days=(study * 17 + seed) % 360)
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = f"{_UID}.{seed}.{study + 1}.1.{_NUMBER}"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = f"{day:%Y%m%d}"
    made.StudyTime, made.SeriesTime = f"{8 + study % 9:02}{study * 7 % 60:02}30", f"{8 + study % 9:02}5500"
    made.AcquisitionTime = made.ContentTime = f"{8 + study % 9:02}5512.250"
    made.AccessionNumber = f"A{seed:04}{study + 1:06}"
    made.Modality = "CT"
    made.Manufacturer, made.ManufacturerModelName = "Example Imaging", "Phantom 64"
    made.InstitutionName, made.StationName = "General Hospital", f"CT{1 + study % 3:02}"
    made.ReferringPhysicianName = "REFERRER^R"
    made.StudyDescription = f"{meaning}, routine"
    made.SeriesDescription = "axial 1.0 soft"
    made.ProcedureCodeSequence = Sequence([_code(code, "99EXAMPLE", meaning)])
    made.PatientName = f"{_FAMILIES[study % len(_FAMILIES)]}{study:03}^{_GIVEN[(study + seed) % len(_GIVEN)]}"
    made.PatientID = f"GEN{seed:03}-{study + 1:06}"
    made.IssuerOfPatientID = "EXAMPLE"
    made.PatientBirthDate = f"{1935 + study * 7 % 70}{1 + study % 12:02}{1 + study * 5 % 28:02}"
    made.PatientSex = "FMO"[study % 3]
    made.BodyPartExamined = part
    made.SliceThickness, made.KVP, made.PatientPosition = "1.0", "120", "HFS"
    made.ConvolutionKernel, made.XRayTubeCurrent = "B30", "220"
    made.StudyInstanceUID = f"{_UID}.{seed}.{study + 1}"
    made.SeriesInstanceUID = f"{_UID}.{seed}.{study + 1}.1"
    made.FrameOfReferenceUID = f"{_UID}.{seed}.{study + 1}.0"
    made.PositionReferenceIndicator = ""
    made.StudyID, made.SeriesNumber, made.AcquisitionNumber = f"{study + 1}", "1", "1"
    made.InstanceNumber = _NUMBER
    made.ImagePositionPatient = ["-180.0", "-180.0", _PLACE]
    made.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    made.SliceLocation = _PLACE
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows = made.Columns = SIDE
    made.PixelSpacing = ["0.703125", "0.703125"]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth = "40", "400"
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "-1024", "1", "HU"
    return made


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def before_pixels(made: Dataset, length: int) -> bytes:
    """A Part 10 file up to its first pixel byte.

    Args:
        made: the data set, whose last element will be the pixels.
        length: of the pixel data, in bytes.
    """
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    sink = io.BytesIO()
    dcmwrite(sink, made, enforce_file_format=True)
    return sink.getvalue() + b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little")


def slice_header(template: bytes, number: int) -> bytes:
    """The header of slice `number` (from 1) of a series."""
    head = template.replace(_NUMBER.encode(), f"{100_000 + number}".encode(), 2)  # both SOP Instance UIDs
    head = head.replace(_NUMBER.encode(), f"{number:06}".encode())
    return head.replace(_PLACE.encode(), f"{number - 500:+08.2f}".encode())


def write_study(out: Path, seed: int, study: int, slices: int) -> Iterator[Callable[[], None]]:
    """The work of a study, one call for each file."""
    shape = body(np.random.default_rng((seed, study)))
    template = before_pixels(dataset(seed, study), FRAME)
    folder = out / f"study-{study + 1:03}"
    folder.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        rng = np.random.Generator(np.random.SFC64((seed, study, number)))
        pixels = frame(shape, (number - 1) / max(slices - 1, 1), rng)
        with (folder / f"{number:04}.dcm").open("wb") as file:
            file.write(slice_header(template, number))
            file.write(pixels.data)

    return ((lambda number=number: write(number)) for number in range(1, slices + 1))  # type: ignore[misc]


def _do(work: Callable[[], None]) -> None:
    work()


def write_giant(out: Path, seed: int, mib: int) -> Path:
    """One multi-frame secondary capture of about `mib` MiB; 16 frames of noise take turns."""
    frames = max(2, mib * 1024 * 1024 // FRAME)
    made = dataset(seed, 9_999)
    for keyword in ("SliceLocation", "SliceThickness", "KVP", "ConvolutionKernel", "XRayTubeCurrent",
                    "ImagePositionPatient", "ImageOrientationPatient", "AcquisitionNumber", "RescaleType",
                    "PixelSpacing", "FrameOfReferenceUID", "PositionReferenceIndicator"):  # fmt: skip
        del made[keyword]
    made.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    made.SOPInstanceUID, made.InstanceNumber = f"{_UID}.{seed}.9999.1.1", "1"
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType, made.BurnedInAnnotation, made.PresentationLUTShape = "WSD", "NO", "IDENTITY"
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "0", "1", "US"
    made.NumberOfFrames, made.FrameIncrementPointer = frames, 0x00181063
    made.FrameTime = "100"
    shape = body(np.random.default_rng((seed, 9_999)))
    rng = np.random.Generator(np.random.SFC64((seed, 9_999)))
    turns = [frame(shape, number / 15, rng) for number in range(16)]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "giant.dcm"
    with path.open("wb") as file:
        file.write(before_pixels(made, frames * FRAME))
        for number in range(frames):
            turns[number % 16][0, :4] = (number & 0xFFF, number >> 12, 0, 0)  # no two frames are equal
            file.write(turns[number % 16].data)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Example: scripts/make_images.py slices --studies 2",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into; made if missing")
    parser.add_argument("--studies", type=int, default=10, help="number of studies (default 10)")
    parser.add_argument("--slices", type=int, default=200, help="slices of each study (default 200)")
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed, other patients and pixels (default 1)"
    )
    parser.add_argument(
        "--giant", type=int, metavar="MIB", help="one multi-frame file of about MIB MiB instead"
    )
    options = parser.parse_args()
    if options.giant is not None:
        if not 1 <= options.giant <= MAX_GIANT:
            parser.error(f"--giant takes 1 to {MAX_GIANT}")
        path = write_giant(options.out, options.seed, options.giant)
        print(f"1 file, {path.stat().st_size / 1024**2:.0f} MiB")
        return
    if not (0 <= options.seed <= 9_999 and 1 <= options.studies <= 9_999 and 1 <= options.slices <= 99_999):
        parser.error("a seed goes to 9999, studies from 1 to 9999, slices from 1 to 99999")
    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter lock while it makes noise
        for study in range(options.studies):
            for _ in pool.map(_do, write_study(options.out, options.seed, study, options.slices)):
                pass  # an error of any file comes out here
    print(f"{options.studies * options.slices} files in {options.studies} studies")


if __name__ == "__main__":
    main()
