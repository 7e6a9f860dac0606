"""Readable, safe file names for restored images: pure.

Guarantees: every part is a valid name on Linux, macOS and Windows, cannot leave its folder, and is the
same for the same row in every run; two different images never share a name (a piece of the keyed digest
of the original is in it).

These names hold identities: they are made on the terminal, for the person who fetched, and never leave it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_BYTES = 80


def safe(text: str, fallback: str) -> str:
    """One path component: letters, digits and `-_.,+` kept, everything else one `_`."""
    folded = unicodedata.normalize("NFC", text)
    kept = "".join(char if char.isalnum() or char in "-_.,+" else "_" for char in folded)
    kept = re.sub(r"_+", "_", kept).strip("_. ")
    while len(kept.encode("utf-8")) > _MAX_BYTES:
        kept = kept[:-1]
    kept = kept.strip("_. ") or fallback
    return f"_{kept}" if _RESERVED.fullmatch(kept) else kept


def short(uid: str) -> str:
    """Eight hexadecimal digits that stand for a UID."""
    return hashlib.sha256(uid.encode("utf-8")).hexdigest()[:8]


def image_path(row: Mapping[str, Any], identity: Mapping[str, Any]) -> PurePosixPath:
    """`patient/study/series/instance.dcm` of a row at instance level.

    Args:
        row: the columns of `schemas.columns`.
        identity: the opened identity; missing values give a neutral name.
    """
    name = str(identity.get("patient_name") or "").split("=")[0]
    patient = "_".join(part for part in (name, str(identity.get("patient_id") or "")) if part)
    study = "_".join(
        _texts(row.get("study_date") or "undated", row.get("menu"), short(str(row.get("study_uid"))))
    )
    number = row.get("series_number")
    series = "_".join(
        _texts(
            None if number is None else f"{number:03d}",
            row.get("modality"),
            short(str(row.get("series_uid"))),
        )
    )
    number = row.get("instance_number")
    instance = "_".join(_texts(None if number is None else f"{number:05d}", str(row["source_digest"])[:12]))
    parts = (
        safe(patient, "patient"),
        safe(study, "study"),
        safe(series, "series"),
        safe(instance, "image") + ".dcm",
    )
    return PurePosixPath(*parts)


def protected_path(row: Mapping[str, Any]) -> PurePosixPath:
    """`study/series/instance.dcm` of a protected file: no identity is in the name."""
    instance = str(row["sop_instance_uid"])
    return PurePosixPath(
        "study-" + short(str(row.get("study_uid"))),
        "series-" + short(str(row.get("series_uid"))),
        f"{short(instance)}-{str(row['object_sha256'])[:12]}.dcm",
    )


def _texts(*values: object) -> list[str]:
    return [str(value) for value in values if value not in (None, "")]
