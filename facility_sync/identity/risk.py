"""Whether the pixels of an object may show an identity, judged from its header alone: pure.

    HIGH      something says so: burned-in text, a screen capture, a photograph, a document, an overlay
    UNKNOWN   nothing says so, and nothing says that this kind of device writes no text into its pixels
    LOW       pixels that were measured, by a class of device that writes no text there, or one that a person
              at the facility released by name; or no pixels at all

HIGH and UNKNOWN objects are sealed whole. No pixel is looked at, and nothing here is a claim that pixels are
clean (code 113101 is never written). Guarantees: `judge` never raises, whatever stands in a header; what
cannot be read counts against the object.

The conditions for HIGH are those of RSNA CTP's BurnedInPixelsFilter and more. Leaves to others: what is done
about it (`decide`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import NamedTuple

from pydicom import config, uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from facility_sync.releases import ANY, Release
from schemas.errors import SettingsError

KEYWORDS: tuple[str, ...] = (
    "SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "SeriesDescription", "Manufacturer",
    "ManufacturerModelName", "BurnedInAnnotation", "RecognizableVisualFeatures", "DateOfSecondaryCapture",
    "SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName",
    "SecondaryCaptureDeviceSoftwareVersions",
)  # fmt: skip
"""What must be read of a header to judge it."""


_UID = re.compile(r"[0-9]{1,20}(\.[0-9]{1,30}){2,20}")


_TAGS = {keyword: BaseTag(tag_for_keyword(keyword) or 0) for keyword in KEYWORDS}


class Risk(StrEnum):
    """How likely the pixels show an identity."""

    LOW = "low"
    UNKNOWN = "unknown"
    HIGH = "high"


class Verdict(NamedTuple):
    """The risk, and why: codes of `REASONS`."""

    risk: Risk
    reasons: tuple[str, ...]


REASONS: dict[str, str] = {
    "burned-in-annotation": "The device says that text is burned into the pixels, or its word is unreadable.",
    "recognizable-features": "The device says that the patient can be recognised.",
    "screen-save": "It is a saved screen: image type or series description say so.",
    "secondary-capture": "It was captured from another image or a screen.",
    "photograph-or-video": "Its class or modality is one of photographs, ultrasound, endoscopy or video.",
    "document": "It is a document.",
    "overlay": "It has overlays, which often hold text.",
    "value-unreadable": "A value that decides about its pixels cannot be read.",
    "colour": "Its class is one of measured pixels, but it has colours, as screen captures have.",
    "not-original": "It is not an original primary image: derived ones may carry text.",
    "device-not-released": "Nobody released this kind of device: `fsync release add`.",
    "class-not-known": "It has no pixels, and its class is not known to be free of narrative.",
    "measured-pixels": "An original image of a class whose devices write no text into the pixels.",
    "released": "A person at this facility released this kind of device.",
    "no-pixel-data": "It has no pixels, and everything its class holds is protected by the profile.",
}
"""Code to meaning."""

_HIGH_MODALITIES = {
    "SC": "secondary-capture", "OT": "secondary-capture", "DOC": "document",
    **dict.fromkeys(("US", "IVUS", "XC", "ES", "GM", "SM", "BDUS"), "photograph-or-video"),
}  # fmt: skip
_DOCUMENTS = "Encapsulated"
_CAPTURES = ("SecondaryCapture", "MultiFrame")
_PHOTOGRAPHS = ("Ultrasound", "EnhancedUS", "Photoacoustic", "VL", "Video", "Dermoscopic", "Confocal")

_SCREEN = re.compile("SAVE|SCREEN(?!ING)")
"""A saved screen, but not the screening of breasts and lungs."""

_MEASURED = frozenset({
    # Counts and attenuations computed by the scanner; text goes into overlays, saved screens, captures.
    uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage,
    uid.MRImageStorage, uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage,
    uid.PositronEmissionTomographyImageStorage, uid.EnhancedPETImageStorage,
    uid.LegacyConvertedEnhancedPETImageStorage, uid.NuclearMedicineImageStorage,
})  # fmt: skip
"""Not here: CR, DX, MG, XA, RF (workstations burn in markers and names), colour MR (fused, annotated)."""
_COMPUTED = frozenset({uid.RTDoseStorage})
"""Pixels nobody draws into, without an image type."""
_WITHOUT_PIXELS = frozenset({
    # Samples, geometry, references and settings: their texts are in the profile's table.
    uid.TwelveLeadECGWaveformStorage, uid.GeneralECGWaveformStorage, uid.AmbulatoryECGWaveformStorage,
    uid.HemodynamicWaveformStorage, uid.CardiacElectrophysiologyWaveformStorage,
    uid.ArterialPulseWaveformStorage, uid.RespiratoryWaveformStorage,
    uid.RTPlanStorage, uid.RTIonPlanStorage, uid.RTStructureSetStorage,
    uid.KeyObjectSelectionDocumentStorage, uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.SpatialRegistrationStorage, uid.DeformableSpatialRegistrationStorage,
    uid.RealWorldValueMappingStorage,
})  # fmt: skip
"""Not here: reports (SR), whose narrative may name anybody, and raw data, which may hold anything."""


def judge(
    dataset: Dataset,
    *,
    has_pixels: bool,
    overlays: bool,
    releases: Sequence[Release],
    unreadable: AbstractSet[int] = frozenset(),
) -> Verdict:
    """Judge one object.

    Args:
        dataset: the attributes of `KEYWORDS`, as far as they could be read.
        has_pixels: whether there is pixel data at the root.
        overlays: whether the root has an element of a group 60xx.
        releases: of the facility; they can turn UNKNOWN to LOW, never HIGH.
        unreadable: tags the object has and nobody could decode: they say more than absent ones.
    """
    found = _Values(dataset, unreadable)
    high = list(dict.fromkeys(_high(found, overlays=overlays)))
    if high:
        return Verdict(Risk.HIGH, tuple(high))
    if found.failed:  # one of those that could have said HIGH
        return _verdict("value-unreadable", low=False)
    sop_class = found.text("SOPClassUID")
    if not has_pixels:
        known = sop_class in _WITHOUT_PIXELS
        return _verdict("no-pixel-data" if known else "class-not-known", low=known)
    if any(_matches(release, found) for release in releases):
        return _verdict("released", low=True)
    if sop_class not in _MEASURED | _COMPUTED:
        return _verdict("device-not-released", low=False)
    return _measured(found, computed=sop_class in _COMPUTED)


def _measured(found: _Values, *, computed: bool) -> Verdict:
    """Of a class of measured pixels: as they left the scanner, or made into a picture since."""
    if found.text("SamplesPerPixel") not in ("", "1"):
        return _verdict("colour", low=False)
    original = computed or found.texts("ImageType")[:2] == ["ORIGINAL", "PRIMARY"]
    return _verdict("measured-pixels" if original else "not-original", low=original)


def sop_class(text: str) -> str:
    """The class of a release from what a person gave: a UID, a keyword as in PS3.6, or `ANY`.

    Raises:
        SettingsError: there is no such class, or one whose images a release cannot reach.
    """
    if text == ANY:
        return text
    found = getattr(uid, text, None)
    if isinstance(found, uid.UID) and found.type == "SOP Class":
        text = str(found)
    if not _UID.fullmatch(text):
        raise SettingsError(
            "this is no SOP class", hint=f"Give its UID, its keyword like CTImageStorage, or `{ANY}`."
        )
    alone = Dataset()
    alone.SOPClassUID = text
    if judge(alone, has_pixels=True, overlays=False, releases=()).risk is Risk.HIGH:
        raise SettingsError(
            "images of this class are always sealed whole: no release changes that",
            hint="`fsync explain FILE` shows why a file is sealed.",
        )
    return text


def _verdict(reason: str, *, low: bool) -> Verdict:
    return Verdict(Risk.LOW if low else Risk.UNKNOWN, (reason,))


_UNREADABLE = "\x7f"
"""Stands for what cannot be read: no device is released under this name, for it is not printable."""


class _Values:
    """Reads values as text in capitals; never raises, but remembers that one could not be read."""

    def __init__(self, dataset: Dataset, unreadable: AbstractSet[int]) -> None:
        self._dataset = dataset
        self._unreadable = unreadable
        self.failed = False

    def texts(self, keyword: str) -> list[str]:
        tag = _TAGS[keyword]
        if tag in self._unreadable:
            self.failed = True
            return [_UNREADABLE]
        try:
            value = self._dataset[tag].value if tag in self._dataset else None
            many = value if isinstance(value, (MultiValue, list, tuple)) else [value]
            return ["" if item is None else str(item).strip("\0 ").upper() for item in many]
        except Exception:  # pydicom decodes on access and may raise anything on what a device wrote
            self.failed = True
            return [_UNREADABLE]

    def text(self, keyword: str) -> str:
        return "\\".join(self.texts(keyword))


def _high(found: _Values, *, overlays: bool) -> Iterable[str]:
    if found.text("BurnedInAnnotation") not in ("", "NO"):
        yield "burned-in-annotation"
    if found.text("RecognizableVisualFeatures") not in ("", "NO"):
        yield "recognizable-features"
    told = found.text("ImageType") + "\\" + found.text("SeriesDescription")
    if _SCREEN.search(told):
        yield "screen-save"
    if any(map(found.text, KEYWORDS[-4:])):
        yield "secondary-capture"
    for modality in found.texts("Modality"):
        if modality in _HIGH_MODALITIES:
            yield _HIGH_MODALITIES[modality]
    keyword = uid.UID(found.text("SOPClassUID"), config.IGNORE).keyword
    if keyword.startswith(_DOCUMENTS):
        yield "document"
    if keyword.startswith(_CAPTURES):
        yield "secondary-capture"
    if keyword.startswith(_PHOTOGRAPHS):
        yield "photograph-or-video"
    if overlays:
        yield "overlay"


def _matches(release: Release, found: _Values) -> bool:
    return (
        release.sop_class in (ANY, found.text("SOPClassUID"))
        and release.manufacturer.strip().upper() == found.text("Manufacturer")
        and release.model.strip().upper() == found.text("ManufacturerModelName")
    )
