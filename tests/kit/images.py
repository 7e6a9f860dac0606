"""Small synthetic DICOM files: patient n, study n, series n, instance n, and whatever a test overrides."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.9999"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def header(patient: int = 1, study: int = 1, series: int = 1, instance: int = 1, **overrides: Any) -> Dataset:
    """A CT slice without pixels; an override of None removes the attribute."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = CTImageStorage
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPInstanceUID = f"{ROOT}.{patient}.{study}.{series}.{instance}"
    made.StudyInstanceUID = f"{ROOT}.{patient}.{study}"
    made.SeriesInstanceUID = f"{ROOT}.{patient}.{study}.{series}"
    made.PatientName = f"FAMILY{patient}^GIVEN{patient}"
    made.PatientID = f"PID-{patient:05}"
    made.PatientBirthDate = f"19{40 + patient % 60}0315"
    made.PatientSex = "O"
    made.AccessionNumber = f"ACC{patient:04}{study:02}"
    made.StudyDate = f"2024{1 + study % 12:02}15"
    made.StudyTime = "101530.25"
    made.AcquisitionDate, made.AcquisitionTime = made.StudyDate, "101601"
    made.Modality = "CT"
    made.ProcedureCodeSequence = Sequence([code("CTTHX", "99LOCAL", "CT Thorax native")])
    made.StudyDescription = "free text of a busy day"
    made.BodyPartExamined = "CHEST"
    made.InstitutionName, made.StationName = "General Hospital", "CT01"
    made.Manufacturer, made.ManufacturerModelName = "Maker", "Model 7"
    made.SeriesNumber, made.InstanceNumber = series, instance
    for keyword, value in overrides.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def image(
    *where: int, pixels: bytes | None = None, syntax: str = ExplicitVRLittleEndian, **overrides: Any
) -> bytes:
    """A whole Part 10 file.

    Args:
        where: patient, study, series and instance numbers, as far as given.
        pixels: the pixel bytes; 32 x 32 of 16 bits by default.
        syntax: transfer syntax UID (an uncompressed one).
        overrides: attributes to set, or to remove with None.
    """
    dataset = header(*where, **overrides)
    data = bytes(range(256)) * 8 if pixels is None else pixels
    dataset.Rows, dataset.Columns = 32, max(1, len(data) // 64)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = data
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    if "SOPInstanceUID" in dataset:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    sink = io.BytesIO()
    dcmwrite(sink, dataset, enforce_file_format="SOPInstanceUID" in dataset)
    return sink.getvalue()


def write(folder: Path, *where: int, **more: Any) -> Path:
    """Write an image below a folder, named by its numbers."""
    path = folder / ("-".join(map(str, where)) + ".dcm")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(*where, **more))
    return path
