"""From a header to a row: what each column means, for missing, many-valued and badly written values.

Guarantees: no exception whatever stands in the header; an unreadable value is null and a flag. Free text
never becomes part of a row: modality, body part, view and laterality come from enumerated terms, the
menu from coded attributes or the site map; the rest goes into the identity, which is sealed. Institution,
station, manufacturer and model are kept as the options of PS3.15 allow, unless they contain something of
the patient's identity: then they are withheld, with a flag.

Leaves to others: reading the header (`facility_sync.dicom_file`), tokens and seals
(`facility_sync.identity`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time
from functools import cache
from typing import Any, NamedTuple, TypeVar

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from schemas import names, terms
from schemas.errors import FormatError

_T = TypeVar("_T")

SiteMap = Mapping[str, Mapping[str, str]]
"""A description as the modality writes it, in any case, to `meaning` and, if there is one, `code`."""

FLAGS: dict[str, str] = {
    "header-unreadable": "The header could not be read to its end: only what was found is in the row.",
    "no-part10-header": "The file has no Part 10 header.",
    "truncated": "The file is shorter than its header says.",
    "uid-from-meta": "The SOP Instance UID stands in the File Meta only.",
    "bad-value": "A value is not written as its VR demands and was left out.",
    "unknown-term": "A modality, body part, view or laterality is no term of the standard and stays sealed.",
    "identity-in-value": "A value contained something of the patient's identity and was withheld.",
    "identity-in-uid": "A UID has the patient ID as one of its components.",
}
"""Reason codes in a row's `flags`, with their meaning."""


class Identity(NamedTuple):
    """What identifies the patient, as text; birth date as a date when it can be read."""

    values: dict[str, str]
    born: date | None


_IDENTITY = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "issuer": "IssuerOfPatientID",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "accession": "AccessionNumber",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "protocol": "ProtocolName",
}
_DESCRIPTIONS = (
    "ProtocolName", "SeriesDescription", "PerformedProcedureStepDescription", "StudyDescription",
    "RequestedProcedureDescription",
)  # fmt: skip
_MENU_CODES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence", "PerformedProtocolCodeSequence")
_GUARDED = ("menu", "menu_code", "menu_scheme", "institution", "station", "manufacturer", "model")

KEYWORDS: tuple[str, ...] = (
    *_IDENTITY.values(), *_DESCRIPTIONS, *_MENU_CODES, "OtherPatientIDs", "OtherPatientIDsSequence",
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "StudyDate", "StudyTime", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "Modality",
    "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "Laterality",
    "ImageLaterality", "SeriesNumber", "InstanceNumber", "Rows", "Columns", "NumberOfFrames", "BitsStored",
    "InstitutionName", "StationName", "Manufacturer", "ManufacturerModelName", "DirectoryRecordSequence",
)  # fmt: skip
"""Every attribute a row or an identity is made of: what must be read of a header."""


class Clear(NamedTuple):
    """The clear columns of a row, the identity beside them, and the flags."""

    row: dict[str, Any]
    identity: Identity
    flags: list[str]


def clear_columns(header: Dataset, *, transfer_syntax: str, facility: str, site_map: SiteMap) -> Clear:
    """What may be read centrally, and apart from it what may not.

    Args:
        header: the attributes of `KEYWORDS`, as far as they could be read.
        transfer_syntax: UID, or empty when unknown.
        facility: whose image it is.
        site_map: this facility's map from descriptions to the menu.
    """
    values = _Values(header)
    identity = _identity(values)
    code, scheme, meaning = _menu(values, site_map)
    row: dict[str, Any] = {
        "study_uid": values.uid("StudyInstanceUID"),
        "series_uid": values.uid("SeriesInstanceUID"),
        "sop_instance_uid": values.uid("SOPInstanceUID"),
        "sop_class_uid": values.uid("SOPClassUID"),
        "transfer_syntax_uid": values.checked_uid(transfer_syntax),
        "study_date": values.day("StudyDate"),
        "study_time": values.clock("StudyTime"),
        "acquisition_datetime": values.moment(),
        "modality": values.term("Modality", terms.MODALITIES),
        "menu_code": code or None,
        "menu_scheme": scheme or None,
        "menu": meaning or None,
        "body_part": _body_part(values),
        "view": values.term("ViewPosition", terms.VIEWS),
        "laterality": values.term("ImageLaterality", terms.LATERALITIES)
        or values.term("Laterality", terms.LATERALITIES),
        "series_number": values.number("SeriesNumber"),
        "instance_number": values.number("InstanceNumber"),
        "rows": values.number("Rows"),
        "columns": values.number("Columns"),
        "frames": values.number("NumberOfFrames"),
        "bits": values.number("BitsStored"),
        "facility": facility,
        "institution": values.text("InstitutionName")[:64] or None,
        "station": values.text("StationName")[:64] or None,
        "manufacturer": values.text("Manufacturer")[:64] or None,
        "model": values.text("ManufacturerModelName")[:64] or None,
    }
    _guard(row, identity, values.flags)
    return Clear(row, identity, list(values.flags))


@cache
def _tag(keyword: str) -> BaseTag:
    """Looking up a keyword costs as much as reading the value."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword  # noqa: S101  # the keywords stand in this module
    return BaseTag(tag)


class _Values:
    """Reads single values out of a header; never raises."""

    def __init__(self, header: Dataset) -> None:
        self._header = header
        self.flags: dict[str, None] = {}

    def flag(self, code: str) -> None:
        self.flags[code] = None

    def raw(self, keyword: str) -> Any:
        try:
            return self._header[_tag(keyword)].value
        except KeyError:
            return None
        except Exception:  # pydicom decodes on access and may raise anything on what a device wrote
            self.flag("bad-value")
            return None

    def text(self, keyword: str) -> str:
        """The value as text; of many values the first."""
        value = self.raw(keyword)
        try:
            if isinstance(value, MultiValue):
                value = value[0] if len(value) else None
            text = (
                "" if value is None else value.decode("latin-1") if isinstance(value, bytes) else str(value)
            )
        except Exception:  # the same, one step later
            self.flag("bad-value")
            return ""
        return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "").strip()

    def items(self, keyword: str) -> Iterator[_Values]:
        """The items of a sequence."""
        value = self.raw(keyword)
        try:
            found = [item for item in value or () if isinstance(item, Dataset)][:8]
        except Exception:  # a sequence that is none
            self.flag("bad-value")
            return
        for item in found:
            values = _Values(item)
            values.flags = self.flags
            yield values

    def checked_uid(self, text: str) -> str | None:
        try:
            return names.uid(text) if text else None
        except FormatError:
            self.flag("bad-value")
            return None

    def uid(self, keyword: str) -> str | None:
        return self.checked_uid(self.text(keyword))

    def term(self, keyword: str, allowed: frozenset[str]) -> str | None:
        found = self.text(keyword).upper()
        if found and found not in allowed:
            self.flag("unknown-term")
        return found if found in allowed else None

    def number(self, keyword: str) -> int | None:
        text = self.text(keyword)
        if not text:
            return None
        try:
            number = int(float(text))
        except (ValueError, OverflowError):
            number = -(2**40)
        if not -(2**31) <= number < 2**31:
            self.flag("bad-value")
            return None
        return number

    def day(self, keyword: str) -> date | None:
        return self.read(keyword, parse_day)

    def clock(self, keyword: str) -> time | None:
        return self.read(keyword, parse_time)

    def moment(self) -> datetime | None:
        """Acquisition date-time, or its two halves."""
        text = self.text("AcquisitionDateTime")
        day, clock = (
            (text[:8], text[8:]) if text else (self.text("AcquisitionDate"), self.text("AcquisitionTime"))
        )
        if not day or not clock:
            return None
        try:
            return datetime.combine(parse_day(day), parse_time(re.split(r"[+-]", clock)[0]))
        except ValueError:
            self.flag("bad-value")
            return None

    def read(self, keyword: str, parse: Callable[[str], _T]) -> _T | None:
        text = self.text(keyword)
        if not text:
            return None
        try:
            return parse(text)
        except ValueError:
            self.flag("bad-value")
            return None


def parse_day(text: str) -> date:
    """DA (PS3.5 section 6.2), and the forms with dots or hyphens of old devices; raises `ValueError`."""
    match = re.fullmatch(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", text.strip(), re.ASCII)
    if not match:
        raise ValueError("not a DICOM date")
    return date(int(match[1]), int(match[2]), int(match[3]))


def parse_time(text: str) -> time:
    """TM (PS3.5 section 6.2), and the form with colons; a leap second is the second before."""
    match = re.fullmatch(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,9}))?)?)?", text.strip(), re.ASCII)
    if not match:
        raise ValueError("not a DICOM time")
    hour, minute, second = (int(match[i] or 0) for i in (1, 2, 3))
    return time(hour, minute, min(second, 59), int((match[4] or "0")[:6].ljust(6, "0")))


def _identity(values: _Values) -> Identity:
    found = {key: values.text(keyword) for key, keyword in _IDENTITY.items()}
    others = [item.text("PatientID") for item in values.items("OtherPatientIDsSequence")]
    try:
        more = values.raw("OtherPatientIDs") or ()
        others += [more] if isinstance(more, str) else [str(item) for item in more]
    except Exception:  # a value that is no list
        values.flag("bad-value")
    found["other_patient_ids"] = "\\".join(filter(None, others))
    try:
        born = parse_day(found["birth_date"])
    except ValueError:
        born = None
    return Identity(found, born)


def _menu(values: _Values, site_map: SiteMap) -> tuple[str, str, str]:
    """Code, scheme and meaning: the site map first, then the coded attributes."""
    known = {text.casefold().strip(): entry for text, entry in site_map.items()}
    for keyword in _DESCRIPTIONS if known else ():
        entry = known.get(values.text(keyword).casefold())
        if entry is not None:
            code = entry.get("code", "")[:64]
            return code, "SITE" if code else "", entry["meaning"][:64]
    for keyword in _MENU_CODES:
        for item in values.items(keyword):
            code, scheme, meaning = (
                item.text(part)[:64] for part in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
            )
            if (code or meaning) and meaning.upper() != "UNDEFINED":
                return code, scheme, meaning or code
    return "", "", ""


def _body_part(values: _Values) -> str | None:
    text = values.text("BodyPartExamined")
    found = terms.body_part(text)
    if found is None:
        for item in values.items("AnatomicRegionSequence"):
            found = terms.body_part(item.text("CodeMeaning"))
    if text and found is None:
        values.flag("unknown-term")
    return found


def _needles(identity: Identity) -> set[str]:
    """What may not stand in a clear value: IDs of 4 characters on, parts of names of 3 (2 in kanji)."""
    found = identity.values
    whole = [found[key] for key in ("patient_id", "accession", "birth_date")]
    whole += found["other_patient_ids"].split("\\")
    if identity.born:
        whole += [identity.born.isoformat(), identity.born.strftime("%Y%m%d")]
    parts = re.split(r"[\^=\s,;.]+", found["patient_name"])
    return {_folded(text) for text in whole if len(text) >= 4} | {
        _folded(part) for part in parts if len(part) >= (3 if part.isascii() else 2)
    }


def _folded(text: str) -> str:
    """Case and width (half-width katakana, full-width digits) do not matter."""
    return unicodedata.normalize("NFKC", text).casefold()


def _guard(row: dict[str, Any], identity: Identity, flags: dict[str, None]) -> None:
    """Withhold clear values that contain something of the identity; UIDs are kept and flagged."""
    needles = _needles(identity)
    for column in _GUARDED:
        if row[column] and any(needle in _folded(row[column]) for needle in needles):
            row[column] = None
            flags["identity-in-value"] = None
    for column in ("series_number", "instance_number"):  # seen: the patient ID as series number
        if str(row[column]) in needles:
            row[column] = None
            flags["identity-in-value"] = None
    patient = identity.values["patient_id"]
    uids = [row[column] or "" for column in ("study_uid", "series_uid", "sop_instance_uid")]
    if len(patient) >= 4 and any(patient in uid.split(".") for uid in uids):
        flags["identity-in-uid"] = None
