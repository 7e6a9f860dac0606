"""Pixel risk: what is sealed whole, what a release can change and what it cannot, and who released what.

Longer than others: one decision, and the list of everything that may sway it.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

from facility_sync import capture, pack
from facility_sync.cli.release import LOG
from facility_sync.cli.root import fsync
from facility_sync.dicom_file import Header, Refused, read_header
from facility_sync.elements import LONG_VRS
from facility_sync.home import Home
from facility_sync.identity import decide, risk
from facility_sync.identity.risk import Risk, Verdict
from facility_sync.releases import ANY, Release
from schemas import messages
from schemas.errors import SettingsError
from tests.kit import images
from tests.kit.corpus import bundled, corpus
from tests.kit.domains import domain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the values it is given

CR, DX, MG = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForPresentation,
)
RELEASE = Release(
    sop_class=CR, manufacturer="maker", model=" model 7", by="P", at="2026-11-24T10:00:00Z", note=""
)
EVERYTHING = replace(RELEASE, sop_class=ANY)


def judged(
    *releases: Release, has_pixels: bool = True, overlays: bool = False, **values: Any
) -> tuple[Risk, tuple[str, ...]]:
    """The verdict on an original CT slice with these values; None takes one away."""
    found = Dataset()
    given = {
        "SOPClassUID": uid.CTImageStorage, "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Manufacturer": "Maker", "ManufacturerModelName": "Model 7",
    } | values  # fmt: skip
    for keyword, value in given.items():
        if value is not None:
            setattr(found, keyword, value)
    return risk.judge(found, has_pixels=has_pixels, overlays=overlays, releases=releases)


HIGH: list[tuple[str, dict[str, Any]]] = [
    ("burned-in-annotation", {"BurnedInAnnotation": "YES"}),
    ("burned-in-annotation", {"BurnedInAnnotation": "yes "}),
    ("burned-in-annotation", {"BurnedInAnnotation": "MAYBE"}),
    ("burned-in-annotation", {"BurnedInAnnotation": ["NO", "YES"]}),
    ("burned-in-annotation", {"BurnedInAnnotation": ["NO", "NO"]}),
    ("recognizable-features", {"RecognizableVisualFeatures": "YES"}),
    ("recognizable-features", {"RecognizableVisualFeatures": "?"}),
    ("screen-save", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
    ("screen-save", {"ImageType": ["ORIGINAL", "PRIMARY", "SAVED"]}),
    ("screen-save", {"SeriesDescription": "Screen saves"}),
    ("screen-save", {"SeriesDescription": "screenshots"}),
    *(("secondary-capture", {keyword: "x"}) for keyword in (
        "SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName",
        "SecondaryCaptureDeviceSoftwareVersions",
    )),
    ("secondary-capture", {"DateOfSecondaryCapture": "20240101"}),
    ("secondary-capture", {"Modality": "SC"}),
    ("secondary-capture", {"Modality": "OT"}),
    ("secondary-capture", {"SOPClassUID": uid.SecondaryCaptureImageStorage}),
    ("secondary-capture", {"SOPClassUID": uid.MultiFrameTrueColorSecondaryCaptureImageStorage}),
    *(("photograph-or-video", {"Modality": modality}) for modality in (
        "US", "IVUS", "XC", "ES", "GM", "SM", "BDUS", " us", ["CT", "US"],
    )),
    *(("photograph-or-video", {"SOPClassUID": sop_class}) for sop_class in (
        uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage, uid.EnhancedUSVolumeStorage,
        uid.VLPhotographicImageStorage, uid.VLWholeSlideMicroscopyImageStorage,
        uid.VideoEndoscopicImageStorage, uid.DermoscopicPhotographyImageStorage,
    )),
    ("document", {"Modality": "DOC"}),
    ("document", {"SOPClassUID": uid.EncapsulatedPDFStorage, "has_pixels": False}),
    ("document", {"SOPClassUID": uid.EncapsulatedCDAStorage, "has_pixels": False}),
    ("overlay", {"overlays": True}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "values"), HIGH, ids=lambda value: str(value)[:60])
def test_what_says_that_it_may_show_an_identity_is_high_and_no_release_changes_that(reason, values):
    """All conditions of RSNA CTP's BurnedInPixelsFilter are among them."""
    own = replace(EVERYTHING, sop_class=values.get("SOPClassUID", uid.CTImageStorage))
    for releases in ((), (EVERYTHING,), (own, EVERYTHING)):
        verdict = judged(*releases, **values)
        assert verdict[0] is Risk.HIGH
        assert reason in verdict[1]
    cleared = {key: value for key, value in values.items() if key == "has_pixels"}
    assert judged(EVERYTHING, **cleared)[0] is not Risk.HIGH  # it was this value and nothing else


def test_every_reason_for_high_is_given():
    both = judged(BurnedInAnnotation="YES", Modality="US", overlays=True)
    assert both == Verdict(Risk.HIGH, ("burned-in-annotation", "photograph-or-video", "overlay"))
    assert {reason for reason, _ in HIGH} == set(list(risk.REASONS)[:7])


MEASURED = (
    uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage,
    uid.MRImageStorage, uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage,
    uid.PositronEmissionTomographyImageStorage, uid.EnhancedPETImageStorage,
    uid.LegacyConvertedEnhancedPETImageStorage, uid.NuclearMedicineImageStorage,
)  # fmt: skip
LOW = Risk.LOW, ("measured-pixels",)


@pytest.mark.parametrize("sop_class", MEASURED, ids=lambda found: found.keyword)
def test_original_pixels_of_a_measuring_device_are_low_and_derived_ones_are_not(sop_class):
    assert judged(SOPClassUID=sop_class) == LOW
    assert judged(SOPClassUID=sop_class, BurnedInAnnotation="NO", RecognizableVisualFeatures="NO ") == LOW
    for image_type in (
        ["DERIVED", "PRIMARY"], ["ORIGINAL", "SECONDARY"], ["PRIMARY", "ORIGINAL"], ["ORIGINAL"], "", None,
    ):  # fmt: skip
        assert judged(SOPClassUID=sop_class, ImageType=image_type) == (Risk.UNKNOWN, ("not-original",))


def test_a_dose_grid_needs_no_image_type():
    assert judged(SOPClassUID=uid.RTDoseStorage, Modality="RTDOSE", ImageType=None) == LOW


def test_the_screening_of_breasts_and_lungs_is_no_saved_screen():
    assert judged(SeriesDescription="Lung Screening 1 mm") == LOW
    assert judged(SeriesDescription="screening, screen save")[0] is Risk.HIGH


@pytest.mark.parametrize(
    "sop_class",
    [CR, DX, MG, uid.XRayAngiographicImageStorage, uid.XRayRadiofluoroscopicImageStorage,
     uid.EnhancedMRColorImageStorage, uid.OphthalmicPhotography8BitImageStorage, uid.RTImageStorage,
     "1.2.3.4", None],
    ids=str,
)  # fmt: skip
def test_a_device_nobody_released_is_unknown(sop_class):
    assert judged(SOPClassUID=sop_class) == (Risk.UNKNOWN, ("device-not-released",))
    assert judged(EVERYTHING, SOPClassUID=sop_class) == (Risk.LOW, ("released",))


def test_without_pixels_the_class_decides_and_a_release_of_pixels_does_not():
    for sop_class in (uid.TwelveLeadECGWaveformStorage, uid.RTPlanStorage, uid.RTStructureSetStorage,
                      uid.KeyObjectSelectionDocumentStorage):  # fmt: skip
        assert judged(SOPClassUID=sop_class, has_pixels=False) == (Risk.LOW, ("no-pixel-data",))
    for sop_class in (uid.BasicTextSRStorage, uid.ComprehensiveSRStorage, uid.RawDataStorage, "1.2", None):
        for releases in ((), (EVERYTHING,)):
            found = judged(*releases, SOPClassUID=sop_class, has_pixels=False)
            assert found == (Risk.UNKNOWN, ("class-not-known",))


def test_colours_are_those_of_a_picture_of_the_screen():
    ct = {"SOPClassUID": uid.CTImageStorage, "ImageType": ["ORIGINAL", "PRIMARY"]}
    assert judged(**ct, SamplesPerPixel=3) == (Risk.UNKNOWN, ("colour",))
    assert judged(**ct, SamplesPerPixel=1) == judged(**ct) == (Risk.LOW, ("measured-pixels",))


def test_a_release_is_for_one_class_one_manufacturer_and_one_model():
    device = {"SOPClassUID": CR, "ImageType": ["DERIVED", "PRIMARY"]}
    assert judged(RELEASE, **device) == (Risk.LOW, ("released",))
    assert judged(RELEASE, **device, Modality="CR", ManufacturerModelName="MODEL 7 ")[0] is Risk.LOW
    for other in (
        {"SOPClassUID": DX}, {"Manufacturer": "Maker 2"}, {"Manufacturer": None}, {"Manufacturer": ""},
        {"ManufacturerModelName": "Model 70"}, {"ManufacturerModelName": None},
        {"ManufacturerModelName": ["Model 7", "Model 8"]},
    ):  # fmt: skip
        assert judged(RELEASE, **(device | other)) == (Risk.UNKNOWN, ("device-not-released",))


class Unreadable(Dataset):
    """What pydicom does with a value it cannot decode."""

    def __contains__(self, name: Any) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        raise ValueError("no value")


def test_what_cannot_be_read_counts_against_the_object():
    found = risk.judge(Unreadable(), has_pixels=True, overlays=False, releases=(EVERYTHING,))
    assert found.risk is Risk.HIGH
    assert "burned-in-annotation" in found.reasons


def raw(data: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """The file with one more element, in its place; explicit VR little endian."""
    where = pydicom.dcmread(io.BytesIO(data))
    behind = min(element.tag for element in where if element.tag > tag)
    at = data.index(struct.pack("<HH", behind >> 16, behind & 0xFFFF), 132)
    length = struct.pack("<HL", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value))
    return data[:at] + struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + length + value + data[at:]


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "expected"),
    [
        ("BurnedInAnnotation", b"FD", b"YES ", (Risk.HIGH, "burned-in-annotation")),
        ("BurnedInAnnotation", b"SL", b"Y ", (Risk.HIGH, "burned-in-annotation")),
        ("RecognizableVisualFeatures", b"FD", b"YES ", (Risk.HIGH, "recognizable-features")),
        ("DateOfSecondaryCapture", b"FD", b"2024", (Risk.HIGH, "secondary-capture")),
        ("SeriesDescription", b"FD", b"SAVE", (Risk.UNKNOWN, "value-unreadable")),
        ("SeriesDescription", b"UT", b"SCREEN SAVE " * 25_000, (Risk.UNKNOWN, "value-unreadable")),
        ("Modality", b"FD", b"US", (Risk.UNKNOWN, "value-unreadable")),
        ("ImageType", b"FD", b"SAVE", (Risk.UNKNOWN, "value-unreadable")),
        ("ManufacturerModelName", b"FD", b"Model 7 x ", (Risk.UNKNOWN, "device-not-released")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_the_reader_gives_up_on_counts_against_the_image_whatever_is_released(
    keyword, vr, value, expected
):
    tag = tag_for_keyword(keyword)
    without = {keyword: None} if keyword in images.header() else {}
    given = {"ImageType": ["ORIGINAL", "PRIMARY"]} if keyword != "ImageType" else {}
    sop_class = CR if keyword == "ManufacturerModelName" else uid.CTImageStorage
    data = raw(images.image(SOPClassUID=sop_class, **given, **without), tag, vr, value)
    layout = decide.layout_of(io.BytesIO(data), len(data))
    assert layout is not None  # the file itself is in order: it is this value that decides
    header = read_header(io.BytesIO(data), len(data), layout)
    assert isinstance(header, Header)
    assert header.unreadable == {tag}
    found = decide.decide(
        header.dataset, "CHEST", layout, decide.Rules(releases=(EVERYTHING,)), unreadable=header.unreadable
    )
    assert found == (None, expected[0], (expected[1],))


WORDS = st.sampled_from(
    [
        "YES",
        "NO",
        "ORIGINAL",
        "CT",
        uid.CTImageStorage,
        uid.VLPhotographicImageStorage,
        CR,
        "MAKER",
        "Model 7",
        "",
        " ",
        "\0",
        "\ud800",
        "山田",
        "1." * 40,
        "\\",
        "\x7f",
        "x" * 5000,
    ]
)
ODD = st.one_of(
    st.none(), WORDS, st.binary(max_size=8), st.integers(), st.floats(),
    st.lists(st.one_of(st.none(), WORDS, st.binary(max_size=8)), max_size=4),
)  # fmt: skip


class Odd(Dataset):
    """A header whose values are whatever they are."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__["found"] = found

    def __contains__(self, name: Any) -> bool:
        return keyword_for_tag(name) in self.__dict__["found"]

    def __getitem__(self, key: Any) -> Any:
        return SimpleNamespace(value=self.__dict__["found"][keyword_for_tag(key)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(risk.KEYWORDS), ODD),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), (RELEASE,), (RELEASE, EVERYTHING)]),
)
@example({"BurnedInAnnotation": "YES"}, True, False, ())  # that the values are seen at all
def test_whatever_stands_in_a_header_there_is_an_answer(values, has_pixels, overlays, releases):
    how: dict[str, Any] = {"has_pixels": has_pixels, "overlays": overlays}
    alone = risk.judge(Odd(values), **how, releases=())
    released = risk.judge(Odd(values), **how, releases=releases)
    for verdict in (alone, released):
        assert verdict.reasons
        assert set(verdict.reasons) <= set(risk.REASONS)
    assert released == alone or (alone.risk, released) == (Risk.UNKNOWN, (Risk.LOW, ("released",)))
    if overlays or values.get("BurnedInAnnotation") == "YES":
        assert alone.risk is Risk.HIGH


def decided(data: bytes, rules: decide.Rules, body_part: str | None = "CHEST") -> decide.Decision:
    header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    layout = decide.layout_of(io.BytesIO(data), len(data))
    return decide.decide(header, body_part, layout, rules, unreadable=frozenset())


def test_the_settings_seal_more_whatever_is_released():
    data = images.image(ImageType=["ORIGINAL", "PRIMARY"])
    rules = decide.Rules(releases=(EVERYTHING,))
    assert decided(data, rules).reasons == ("released",)
    assert decided(data, decide.Rules()).reasons == ("measured-pixels",)
    derived = images.image(ImageType=["DERIVED", "PRIMARY"])
    assert decided(derived, decide.Rules()) == (None, Risk.UNKNOWN, ("not-original",))
    assert decided(data, rules._replace(seal_all=True))[::2] == (None, ("seal-all",))
    head = rules._replace(seal_body_parts=frozenset({"HEAD"}))
    assert decided(data, head).layout is not None
    assert decided(data, head, "HEAD")[::2] == (None, ("body-part",))
    assert decided(data, head, None)[::2] == (None, ("body-part-unknown",))
    assert decided(data[:200], rules)[::2] == (None, ("structure",))


def test_overlays_are_found_in_the_file_itself():
    made = pydicom.dcmread(io.BytesIO(images.image(ImageType=["ORIGINAL", "PRIMARY"])))
    made.add_new(0x60020010, "US", 32)
    sink = io.BytesIO()
    made.save_as(sink)
    assert decided(sink.getvalue(), decide.Rules(releases=(EVERYTHING,))).reasons == ("overlay",)


def test_of_every_real_file_it_is_known_why_it_is_protected_or_sealed():
    """As a round takes them; what is shown never has a reason for sealing, and the other way round."""
    how = pack.capturing(
        pack.Context(
            facility="clinic-a", domains=(domain(),), key=bytes(32), escrow=None, menu={},
            captured=datetime(2026, 11, 24, tzinfo=UTC), max_file=1 << 26, rules=decide.Rules(),
        )
    )  # fmt: skip
    counts: Counter[tuple[str, str, str]] = Counter()
    for path in [*bundled(), *corpus()[::7]]:  # all of them come back bit for bit in `test_capture`
        made = capture.take(path, how, io.BytesIO())
        if isinstance(made, Refused):
            continue
        shown = made.row["encoding"].startswith("dicom")
        counts.update((path_class(path), "protected" if shown else "sealed", why) for why in made.reasons)
        assert made.reasons
        assert shown == (made.reasons[0] in {"measured-pixels", "no-pixel-data"}), (made.reasons, counts)
        assert set(made.reasons) <= set(decide.REASONS)
    ways = Counter(way for _, way, _ in counts.elements())
    assert ways["protected"] > (80 if corpus() else 25), counts
    assert ways["sealed"] > 100, counts
    reasons = {reason for _, _, reason in counts}
    assert reasons >= {"photograph-or-video", "secondary-capture", "not-original", "device-not-released"}, (
        counts
    )
    assert "not-proved" not in reasons, counts


def path_class(path: Path) -> str:
    """The class of a file, as text; for the message of a failure only."""
    try:
        found = pydicom.dcmread(path, force=True, stop_before_pixels=True).get("SOPClassUID", "")
        return uid.UID(str(found)).keyword
    except Exception:  # pydicom cannot read it
        return "?"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create("clinic-a")
    return made


def run(home: Home, *words: str) -> Any:
    return fsync.main(["--home", str(home.root), "release", *words], standalone_mode=False)


ADD = (
    "add",
    "--sop-class",
    "ComputedRadiographyImageStorage",
    "--manufacturer",
    "Maker ",
    "--model",
    "Model 7",
)


def test_a_release_is_made_and_taken_back_by_name_and_both_are_logged(home, capsys):
    run(home, *ADD, "--by", "Dr. Satō", "--note", "looked at 200")
    told = capsys.readouterr().out
    assert "WARNING" in told
    assert "UNSEALED" in told
    (made,) = Home(home.root).settings.release
    expected = {"sop_class": CR, "manufacturer": "Maker", "model": "Model 7", "by": "Dr. Satō"}
    assert expected.items() <= vars(made).items()
    run(home, "add", "--sop-class", DX, "--manufacturer", "M", "--model", "N", "--by", "P", "--json")
    shown = capsys.readouterr()
    assert "UNSEALED" in shown.err
    assert [item["number"] for item in json.loads(shown.out)["releases"]] == [1, 2]
    run(home, "list")
    assert "Dr. Satō" in capsys.readouterr().out
    run(home, "remove", "1", "--by", "Q")
    assert [item.sop_class for item in Home(home.root).settings.release] == [DX]

    path = home.root / LOG
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_bytes().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [messages.canonical(entry) for entry in entries] == lines
    assert [(entry["what"], entry["who"]) for entry in entries] == [
        ("add", "Dr. Satō"), ("add", "P"), ("remove", "Q"),
    ]  # fmt: skip
    assert entries[0]["release"] == entries[2]["release"] == vars(made)
    assert all(re.fullmatch(r"[-0-9]{10}T[:0-9]{8}Z", entry["time"]) for entry in entries)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*ADD, "--by", " "), "by"),
        (("add", "--sop-class", "any", "--manufacturer", "", "--model", "N", "--by", "P"), "manufacturer"),
        (("add", "--sop-class", "any", "--manufacturer", "M", "--model", " ", "--by", "P"), "model"),
        (("add", "--sop-class", "CT", "--manufacturer", "M", "--model", "N", "--by", "P"), "no SOP class"),
        (("add", "--sop-class", "../1", "--manufacturer", "M", "--model", "N", "--by", "P"), "no SOP class"),
        (("add", "--sop-class", "ImplicitVRLittleEndian", "--manufacturer", "M", "--model", "N", "--by", "P"),
         "no SOP class"),
        (("add", "--sop-class", "UltrasoundImageStorage", "--manufacturer", "M", "--model", "N", "--by", "P"),
         "always sealed"),
        ((*ADD, "--by", "a\nb"), "by"),
        (("remove", "1", "--by", "P"), "no release"),
    ],
)  # fmt: skip
def test_what_is_no_release_is_refused_and_leaves_nothing(home, words, message):
    with pytest.raises(SettingsError, match=message):
        run(home, *words)
    assert Home(home.root).settings.release == ()
    assert not (home.root / LOG).exists()


def test_a_release_needs_a_name_and_is_made_once(home):
    import click

    for words in (ADD, ("remove", "1")):
        with pytest.raises(click.MissingParameter, match="by"):
            run(home, *words)
    run(home, *ADD, "--by", "P")
    with pytest.raises(SettingsError, match="already"):
        run(home, *(word.upper() if word == "Model 7" else word for word in ADD), "--by", "Q")
    with pytest.raises(SettingsError, match="by"):
        run(home, "remove", "1", "--by", "")
    assert len(Home(home.root).settings.release) == 1


def test_without_its_line_in_the_log_there_is_no_release(home):
    (home.root / LOG).mkdir()
    with pytest.raises(SettingsError, match="nothing is released"):
        run(home, *ADD, "--by", "P")
    assert Home(home.root).settings.release == ()


def test_any_is_every_class():
    assert risk.sop_class("any") == ANY
    assert risk.sop_class("CTImageStorage") == risk.sop_class(uid.CTImageStorage) == uid.CTImageStorage
    assert risk.sop_class("1.2.3.4.5") == "1.2.3.4.5"
