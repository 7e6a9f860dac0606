"""Protected objects: what they show, what they hide, and that they give the original back or nothing.

Over 400 lines, since all of it shares one expensive fixture: every real file, protected once.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from facility_sync import capture, pack
from facility_sync.identity import (
    capsule,
    cms,
    decide,
    dictionary,
    domain_format,
    domains,
    layout,
    objects,
    profile,
    protect,
    scrub,
)
from schemas.errors import FormatError, SealError
from tests.kit import images
from tests.kit.corpus import bundled, corpus, everything
from tests.kit.domains import domain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the files it reads

GOLDEN = Path(__file__).parent / "golden"
OWN, OTHER = domain("own"), domain("other", 2)
RING = domains.Keyring((OWN,))
SYNTAXES = ("1.2.840.10008.1.2.1", ImplicitVRLittleEndian, ExplicitVRBigEndian)


def context(*for_domains: domains.Domain) -> capture.Context:
    made = pack.capturing(
        pack.Context(
            facility="clinic-a", domains=for_domains or (OWN,), key=bytes(32), escrow=None, menu={},
            captured=datetime(2026, 11, 24, tzinfo=UTC), max_file=1 << 33, rules=decide.Rules(),
        )
    )  # fmt: skip
    return made._replace(stored=False)


CONTEXT = context()


def protected(data: bytes, how: capture.Context = CONTEXT, token: str = "1" + "A" * 26) -> bytes:
    """The protected object of a file, whatever its pixels may show; raises `CannotProtectError`."""
    found = layout.read_layout(io.BytesIO(data), len(data))
    face = protect.protect(
        found,
        instance=found.front.uid(0x00080018),
        original=hashlib.sha256(data).digest(),
        token=token,
        writer=how.writer,
        iv=bytes(16),
    )
    sink = io.BytesIO()
    objects.store_protected(face, found, io.BytesIO(data), sink, stored=False)
    return sink.getvalue()


def restored(data: bytes, ring: domains.Keyring = RING) -> bytes:
    """The original, with its SHA-256 checked as every caller does."""
    sink, source = io.BytesIO(), io.BytesIO(data)
    found = objects.opened(source, objects.readers(ring), objects.domain_keys(ring))
    objects.write_original(found, source, sink)
    if hashlib.sha256(sink.getvalue()).hexdigest() != found.capsule.message.original:
        raise SealError("other bytes")
    return sink.getvalue()


def every_protected() -> dict[Path, bytes]:
    """Every real file that can be protected, whatever its risk."""
    found = {}
    for path in everything():
        try:
            found[path] = protected(path.read_bytes())
        except (FormatError, protect.CannotProtectError):
            continue
    return found


@pytest.fixture(scope="module")
def real() -> dict[Path, bytes]:
    return every_protected()


def test_every_real_file_comes_back_bit_for_bit_at_little_cost(real):
    for path, data in real.items():
        assert restored(data) == path.read_bytes()
    assert len(real) > (700 if corpus() else 120)
    grown = [len(data) - path.stat().st_size for path, data in real.items() if path not in bundled()]
    assert not grown or median(grown) <= 3 * 1024


def test_a_protected_object_is_dicom_with_the_same_pixels_and_says_what_was_done(real):
    for path, data in real.items():
        shown = pydicom.dcmread(io.BytesIO(data))
        assert data[:132] == bytes(128) + b"DICM"
        assert shown.PatientIdentityRemoved == "YES"
        assert shown.LongitudinalTemporalInformationModified == "UNMODIFIED"
        codes = [item.CodeValue for item in shown.DeidentificationMethodCodeSequence]
        assert codes == ["113100", "113106", "113109", "113110", "113112"]
        original = pydicom.dcmread(path, force=True)
        assert shown.get("PixelData") == original.get("PixelData")
        assert shown.SOPInstanceUID == original.SOPInstanceUID
        assert not any(element.tag.is_private for element in shown.iterall())


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_encoding_hides_the_patient_and_keeps_the_rest(syntax):
    data = images.image(7, syntax=syntax, OtherPatientIDs="ALIAS-77", PatientComments="nice to FAMILY7")
    made = protected(data)
    assert restored(made) == data
    for secret in (b"FAMILY7", b"GIVEN7", b"PID-00007", b"ALIAS-77", b"19470315", b"free text"):
        assert secret not in made
    shown = pydicom.dcmread(io.BytesIO(made))
    assert shown.PatientID == "1" + "A" * 26
    assert shown.PatientName == "1" + "A" * 26 + "^ANON"
    assert shown.InstitutionName == "General Hospital"
    assert shown.StudyDate == "20240215"


def canary(dataset: Dataset, first: int) -> dict[int, int]:
    """Plant a value in every attribute of the table; returns number to tag."""
    planted: dict[int, int] = {}
    for number, tag in enumerate(sorted(profile.single()), first):
        if tag < 0x00080005 or tag in (0x00080016, 0x00080018) or tag >> 16 == 2:
            continue
        try:
            vr = dictionary_VR(tag).split(" or ")[0]
        except KeyError:
            continue
        text = f"CANARY{number:05d}"
        value: object = text
        if vr == "SQ":
            item = Dataset()
            item.PatientName = item.CodeMeaning = item.TextValue = text
            item.CodeValue, item.CodingSchemeDesignator = "1", "DCM"
            value = Sequence([item])
        elif vr in ("OB", "OW", "UN", "OF", "OD", "OL", "OV"):
            value = text.encode() * 8
        elif vr in ("IS", "DS"):
            value = str(7_000_000 + number)
        elif vr in ("US", "SS", "UL", "SL", "FL", "FD", "AT"):
            value = number
        elif vr in ("DA", "DT", "TM", "AS", "UI"):
            value = {"DA": "19870605", "DT": "19870605010203", "TM": "010203", "AS": "077Y", "UI": "1.2.3.4"}[
                vr
            ]
        dataset.add_new(tag, vr, value)
        planted[number] = tag
    return planted


def test_nothing_planted_survives_outside_what_the_options_keep():
    source = next(path for path in bundled() if path.name == "CT_small.dcm")
    dataset, inner, measures = pydicom.dcmread(source), Dataset(), Dataset()
    planted = canary(dataset, 10_000) | canary(inner, 20_000)
    measures.PixelMeasuresSequence = Sequence([inner])
    dataset.SharedFunctionalGroupsSequence = Sequence([measures])
    dataset.private_block(0x0099, "CANARY99999", create=True).add_new(1, "LO", "CANARY99998")
    dataset.preamble = b"CANARY99997".ljust(128)
    sink = io.BytesIO()
    dataset.save_as(sink)
    assert len(planted) > 1200
    made = protected(sink.getvalue())
    assert restored(made) == sink.getvalue()
    seen = {int(number) for number in re.findall(rb"CANARY(\d{5})", made)}
    kept = {n for n, tag in planted.items() if profile.action(tag, dictionary_VR(tag)) is profile.Action.KEEP}
    assert seen <= kept
    assert 50 < len(kept) < 600
    shown, before = pydicom.dcmread(io.BytesIO(made)), pydicom.dcmread(io.BytesIO(sink.getvalue()))
    for one, two in (
        (shown, before),
        (
            shown.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0],
            before.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0],
        ),
    ):
        for tag in (planted[n] for n in planted if n not in kept):
            if tag in one and tag in two and two[tag].VR != "SQ":
                assert one[tag].value != two[tag].value, f"{tag:08x}"


def test_what_names_the_patient_elsewhere_is_sealed_whole():
    with pytest.raises(protect.CannotProtectError, match="identity-in-value"):
        protected(images.image(7, InstitutionName="Practice of Family7"))
    with pytest.raises(protect.CannotProtectError, match="identity-in-value"):
        protected(images.image(7, StationName="PID-00007"))
    assert protected(images.image(7, SOPInstanceUID="1.2.7.00007.3".replace("0000", "")))


def test_an_object_of_the_first_version_is_read_for_ever():
    """A golden file, and the domain it was made for: whatever changes, what is stored must come back."""
    owner = domain_format.from_bytes((GOLDEN / "owner.domain").read_bytes())
    back = restored((GOLDEN / "protected.dcm").read_bytes(), domains.Keyring((owner,)))
    assert hashlib.sha256(back).hexdigest() == (
        "ef66886e6e587d0d01ba7a9850417d72dd6945a7b13ddb3a26319eb7ac188ff6"
    )


def test_the_dictionary_of_the_capsules_never_changes():
    assert (
        hashlib.sha256(dictionary.HEADERS).hexdigest()
        == "2082037090f4270a876ef5d1f9be15eb96d8519801ae683a4fee7c92f6872839"
    )


def test_a_short_identifier_counts_as_a_word_of_its_own():
    head = b"\x08\0\x80\0LO\x0c\0Unit 1234567"
    assert not scrub.shows(head, layout.EXPLICIT, [b"1234"])
    assert scrub.shows(head.replace(b"1234567", b"1234 67"), layout.EXPLICIT, [b"1234"])


def test_a_protected_object_protected_again_gives_back_both(pair):
    data, made = pair
    again = protected(made, token="1" + "B" * 26)
    assert restored(again) == made
    assert restored(restored(again)) == data


# -- what is altered, forged, or for somebody else ----------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[bytes, bytes]:
    data = images.image(7)
    return data, protected(data)


def test_every_bit_flip_in_the_envelope_is_refused(pair):
    _, made = pair
    envelope = protect.envelope_of(layout.read_front(io.BytesIO(made)))
    start, chance = made.index(envelope), random.Random(3)
    for _ in range(300):
        at, bit = start + chance.randrange(len(envelope) - 1), 1 << chance.randrange(8)
        changed = bytearray(made)
        changed[at] ^= bit
        with pytest.raises((SealError, FormatError)):
            restored(bytes(changed))


def test_bit_flips_in_the_pixels_and_the_header_never_give_other_bytes(pair):
    data, made = pair
    chance = random.Random(4)
    for _ in range(300):
        changed = bytearray(made)
        changed[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        try:
            assert restored(bytes(changed)) == data  # what is shown beside the capsule is not needed
        except (SealError, FormatError):
            continue


def test_a_capsule_of_another_image_is_refused(pair):
    _, made = pair
    other = protected(images.image(8))
    mine = protect.envelope_of(layout.read_front(io.BytesIO(made)))
    theirs = protect.envelope_of(layout.read_front(io.BytesIO(other)))
    assert len(mine) == len(theirs)
    with pytest.raises(SealError, match="another image"):
        restored(made.replace(mine, theirs))


def forged(made: bytes, change) -> bytes:
    """The object with its envelope's content changed and encrypted again, as who has the certificate can."""
    envelope = protect.envelope_of(layout.read_front(io.BytesIO(made)))
    content = cms.unseal(envelope, objects.readers(RING), capsule.BEGINS)
    new = cms.seal(change(content), cms.content_key(bytes(32), [OWN.current.certificate]), bytes(16))
    new += bytes(len(new) % 2)
    assert len(new) == len(envelope)
    return made.replace(envelope, new)


def test_who_has_only_the_certificate_can_forge_nothing(pair):
    data, made = pair
    assert restored(forged(made, lambda content: content)) == data  # encrypted again: a rotation does that
    for old, new in ((b"FAMILY7", b"FAMILY8"), (b"clinic-a", b"clinic-b"), (bytes.fromhex(OWN.id), bytes(8))):
        with pytest.raises((SealError, FormatError)):
            restored(forged(made, lambda content, old=old, new=new: content.replace(old, new)))
    stranger = capture.Context(
        *CONTEXT[:4], CONTEXT.writer._replace(domain_keys={OWN.id: b"x" * 32}), CONTEXT.rules
    )
    with pytest.raises(SealError, match="member"):
        restored(protected(data, stranger))


def test_each_domain_opens_it_and_no_other():
    data, third = images.image(7), domain("third", 3)
    made = protected(data, context(OWN, OTHER))
    assert restored(made) == restored(made, domains.Keyring((OTHER,))) == data
    with pytest.raises(SealError):
        restored(made, domains.Keyring((third,)))


def test_whatever_the_bytes_only_our_errors_come_out(pair):
    _, made = pair
    chance = random.Random(5)
    for cut in range(0, len(made), 97):
        with pytest.raises((SealError, FormatError)):
            restored(made[:cut])
    for path in everything()[::7]:
        data = bytearray(path.read_bytes()[:20_000])
        for _ in range(10):
            data[chance.randrange(len(data))] = chance.randrange(256) if data else 0
        try:
            protected(bytes(data))
        except (FormatError, protect.CannotProtectError):
            continue


# -- other tools --------------------------------------------------------------------------------------


def tool(name: str) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)


@pytest.fixture
def key(tmp_path) -> tuple[Path, Path]:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    key.write_bytes(OWN.current.rsa_key)
    certificate.write_bytes(OWN.current.certificate)
    return key, certificate


def some(real: dict[Path, bytes]) -> list[tuple[Path, bytes]]:
    """About forty: each costs a process."""
    return sorted(real.items())[:: max(1, len(real) // 40)]


def test_gdcm_opens_what_we_protect(real, tmp_path, key):
    tool("gdcmanon")
    opened = 0
    for path, data in some(real):
        (tmp_path / "in.dcm").write_bytes(data)
        done = run("gdcmanon", "-d", "-k", key[0], "-i", tmp_path / "in.dcm", "-o", tmp_path / "out.dcm")
        if "Media Storage Type of your file is not supported" in done.stderr:
            continue  # GDCM knows no such SOP class
        assert done.returncode == 0, (path.name, done.stderr)
        opened += 1
        before, after = pydicom.dcmread(path, force=True), pydicom.dcmread(tmp_path / "out.dcm")
        for element in before:
            if (
                element.tag.group in (2, 0x7FE0)
                or element.tag.elem == 0
                or element.tag in (0x00120062, 0x00120063)
            ):
                continue  # GDCM writes group lengths and File Meta anew, and removes these two
            if element.tag != 0x04000500:
                assert after[element.tag].value == element.value, (path.name, element.tag)
    assert opened > 10


def test_openssl_opens_the_envelope(pair, tmp_path, key):
    tool("openssl")
    _, made = pair
    (tmp_path / "envelope.der").write_bytes(
        pydicom.dcmread(io.BytesIO(made))[0x04000500][0][0x04000520].value
    )
    done = run(
        "openssl", "cms", "-decrypt", "-inform", "DER", "-in", tmp_path / "envelope.der", "-inkey", key[0],
        "-recip", key[1], "-binary", "-out", tmp_path / "plain",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain").read_bytes()[:6] == bytes.fromhex("000450055351")


def test_a_valid_image_stays_valid(real, tmp_path):
    tool("dciodvfy")
    for path, data in some(real):
        (tmp_path / "out.dcm").write_bytes(data)
        before, after = (run("dciodvfy", file) for file in (path, tmp_path / "out.dcm"))
        errors = [
            {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}
            for done in (before, after)
        ]
        new = {
            line for line in errors[1] - errors[0] if "<OverlayData>" not in line
        }  # those are sealed whole
        assert not new, path.name


@pytest.mark.parametrize("command", [("dcmconv",), ("dcmconv", "+g"), ("gdcmconv",)])
def test_who_only_rewrites_the_header_loses_nothing(real, tmp_path, command):
    tool(command[0])
    files = [(path, data) for path, data in some(real) if path.name in ("CT_small.dcm", "MR_small.dcm")]
    files += [(path, data) for path, data in some(real)[::4]]
    for path, data in files:
        (tmp_path / "in.dcm").write_bytes(data)
        done = run(*command, tmp_path / "in.dcm", tmp_path / "out.dcm")
        if done.returncode == 0:
            assert restored((tmp_path / "out.dcm").read_bytes()) == path.read_bytes(), path.name
