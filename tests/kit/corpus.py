"""Real DICOM files: the corpus beside the repository when it is there, pydicom's bundled files always."""

from __future__ import annotations

from pathlib import Path

import pydicom.data

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
"""Folder of the corpus; may be absent."""
FACILITIES = ("clinic-a", "hospital-b", "imaging-c", "odd")


def bundled() -> list[Path]:
    """What pydicom brings along, DICOM or not; never empty."""
    folder = Path(pydicom.data.__file__).parent  # its own finder would download what is not bundled
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json"))
    assert len(found) > 50, "pydicom's bundled files are missing"
    return found


def corpus(part: str = "") -> list[Path]:
    """Files of the corpus, or none when it is absent."""
    return sorted(path for path in (CORPUS / part).rglob("*") if path.is_file()) if CORPUS.is_dir() else []


def everything() -> list[Path]:
    """Every real file there is."""
    return bundled() + corpus()
