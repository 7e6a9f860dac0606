"""Walking over elements: whatever the bytes, bounded in memory and time, and true to what stands there."""

import io
import random
import resource
import struct
import subprocess
import sys
import time
import zlib

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from facility_sync import dicom_file, elements
from facility_sync.dicom_file import Header, Refused, read_header
from schemas.extract import FLAGS
from tests.kit import images

UNDEFINED = 0xFFFFFFFF
GOOD = images.image(1)
AT_DATA = GOOD.index(b"\x08\0\x05\0")


def explicit(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    if vr in elements.LONG_VRS:
        return struct.pack("<HH2sHI", group, element, vr, 0, length) + value
    return struct.pack("<HH2sH", group, element, vr, length) + value


def item(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END, SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
PATIENT = explicit(0x10, 0x20, b"LO", b"PID1")


def walk(data: bytes) -> elements.Walk:
    return elements.walk(
        io.BytesIO(data), 0, len(data), implicit=False, little=True, wanted=frozenset({0x00100020})
    )


def header(data: bytes) -> Header:
    found = read_header(io.BytesIO(data), len(data))
    assert isinstance(found, Header)
    assert set(found.flags) <= set(FLAGS)
    return found


@pytest.mark.parametrize("before", [
    b"", explicit(9, 0x1001, b"OB", b"x" * 7),
    explicit(9, 0x1001, b"UN", item(b"abc") + SEQUENCE_END, UNDEFINED),
    explicit(9, 0x1001, b"SQ", item(PATIENT + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED),
    explicit(9, 0x1001, b"SQ", item(PATIENT, UNDEFINED) + SEQUENCE_END, UNDEFINED),  # no end of the item
    explicit(9, 0x1001, b"SQ", item(PATIENT)), explicit(9, 0x1001, b"SQ", b"", 0),
    struct.pack("<HHI", 9, 0x1001, 4) + b"abcd",  # an element without VR among others
], ids=range(8))  # fmt: skip
def test_what_stands_before_is_stepped_over(before):
    assert walk(before + PATIENT + explicit(0x7FE0, 0x10, b"OW", b"pixels")) == elements.Walk(
        {0x00100020: elements.Raw(0x00100020, "LO", b"PID1")}, frozenset(), False, False
    )


def test_a_value_inside_a_sequence_is_not_the_files_own():
    assert not walk(explicit(9, 0x1001, b"SQ", item(PATIENT, UNDEFINED) + SEQUENCE_END, UNDEFINED)).found


def test_a_wanted_sequence_is_read_whole_whatever_its_lengths():
    inner = explicit(8, 0x100, b"SH", b"T1")
    for sequence in (
        explicit(8, 0x1032, b"SQ", item(inner)),
        explicit(8, 0x1032, b"SQ", item(inner) + SEQUENCE_END, UNDEFINED),
        explicit(8, 0x1032, b"SQ", item(inner + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED),
    ):
        data = GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + sequence
        assert header(data).dataset.ProcedureCodeSequence[0].CodeValue == "T1"


@pytest.mark.parametrize("cut", range(1, len(PATIENT)))
def test_a_cut_value_is_not_read_and_the_cut_is_told(cut):
    found = walk(PATIENT[:cut])
    assert not found.found
    assert found.cut
    assert found.broken


def test_pixels_are_never_read_and_their_cut_is_told():
    class Watched(io.BytesIO):
        furthest = 0

        def read(self, size=-1):
            data = super().read(size)
            self.furthest = max(self.furthest, self.tell())
            return data

    for syntax, cut in ((ExplicitVRLittleEndian, 0), (ExplicitVRLittleEndian, 100)):
        data = images.image(1, syntax=syntax, pixels=bytes(100_000))
        source = Watched(data)
        found = elements.walk(
            source, AT_DATA, len(data) - cut, implicit=False, little=True, wanted=frozenset({0x00280010})
        )
        assert found.found[0x00280010].value == struct.pack("<H", 32)
        assert (found.cut, found.broken) == (bool(cut), False)
        assert source.furthest < len(data) - 99_000


def test_a_cut_among_the_fragments_of_compressed_pixels_is_told():
    fragments = item(b"") + item(bytes(500)) + item(bytes(700)) + SEQUENCE_END
    data = GOOD[: GOOD.index(b"\xe0\x7f\x10\0")]
    data += explicit(0x7FE0, 0x10, b"OB", fragments, UNDEFINED)
    assert header(data).flags == ()
    for cut in (4, 9, 400, 900):
        assert header(data[:-cut]).flags == ("truncated",)


@pytest.mark.parametrize("syntax", [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
])  # fmt: skip
@pytest.mark.parametrize("declared", [True, False])
def test_the_encoding_is_seen_in_the_data_whatever_is_declared(syntax, declared):
    data = images.image(3, 2, 1, 7, syntax=syntax)
    if not declared:
        if syntax == DeflatedExplicitVRLittleEndian:
            pytest.skip("deflated data look like nothing")
        data = data.replace(b"\x02\0\x10\0UI", b"\x02\0\x11\0UI")
    found = header(data).dataset
    assert (found.InstanceNumber, found.Rows, found.PatientID) == (7, 32, "PID-00003")
    assert found.ProcedureCodeSequence[0].CodeMeaning == "CT Thorax native"


def test_without_preamble_or_meta_a_file_is_read_all_the_same():
    meta_at = 132
    for data in (GOOD[128:], GOOD[meta_at:], GOOD[AT_DATA:]):
        found = header(data)
        assert found.flags == ("no-part10-header",)
        assert found.dataset.Rows == 32
    assert (
        header(GOOD[128:]).transfer_syntax == header(GOOD[meta_at:]).transfer_syntax == ExplicitVRLittleEndian
    )


def test_a_few_bytes_too_many_before_the_data_set_lose_the_header_but_not_the_file():
    found = header(b" " + GOOD[AT_DATA:])
    assert found.flags == ("no-part10-header", "header-unreadable")
    assert found.dataset.SOPInstanceUID == f"{images.ROOT}.1.1.1.1"


def test_files_that_contain_a_dicom_file_are_none():
    for around in (b"ustar..." * 30, b"PK\3\4" + bytes(60)):
        assert read_header(io.BytesIO(around + GOOD), 10_000) == Refused("not-dicom")


def test_an_undecodable_value_is_left_out_with_a_flag():
    data = GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + explicit(0x28, 0x10, b"US", b"abc")
    found = header(data)
    assert "bad-value" in found.flags
    assert "Rows" not in found.dataset


def test_an_endless_value_is_not_held():
    name = explicit(0x10, 0x10, b"UN", b"A" * 300_000)
    found = header(GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + name + PATIENT)
    assert "bad-value" in found.flags
    assert "PatientName" not in found.dataset
    assert found.dataset.PatientID == "PID1"


def test_sequences_nested_without_end_are_walked_without_recursion():
    level = struct.pack("<HH2sHI", 9, 0x1140, b"SQ", 0, UNDEFINED) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, UNDEFINED
    )
    data = GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + PATIENT
    depth = 100_000
    found = header(
        data + level * depth + (ITEM_END + SEQUENCE_END) * depth + explicit(0x28, 0x10, b"US", b"\x20\0")
    )
    assert found.flags == ()
    assert found.dataset.Rows == 32
    assert header(data + level * depth).flags == ("header-unreadable", "truncated")
    # Nested inside a wanted sequence it must be decoded, which ends at the interpreter's own limit.
    codes = explicit(8, 0x1032, b"SQ", item(level * 5000 + (ITEM_END + SEQUENCE_END) * 5000))
    assert header(data + codes).dataset.PatientID == "PID1"


def test_millions_of_empty_elements_end_after_a_while():
    data = GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + explicit(9, 1, b"LO", b"") * 3_000_000
    start = time.process_time()
    assert header(data).flags == ("header-unreadable",)
    assert time.process_time() - start < 10


def test_a_deflated_bomb_is_inflated_up_to_a_limit():
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = (
        explicit(8, 0x18, b"UI", b"1.23")
        + PATIENT
        + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 300 << 20)
    )
    packed = bomb.compress(body + bytes(300 << 20)) + bomb.flush()
    meta = images.image(1, syntax=DeflatedExplicitVRLittleEndian)
    size = 144 + struct.unpack("<I", meta[140:144])[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = header(meta[:size] + packed)
    assert found.dataset.PatientID == "PID1"
    assert found.flags == ()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * 1024
    cut = header(meta[:size] + packed[: len(packed) // 10])
    assert cut.flags == ("truncated",)
    damaged = header(meta[:size] + b"\xff" * 50)
    assert damaged.flags == ("header-unreadable", "uid-from-meta")


def test_a_huge_sparse_file_takes_no_memory(tmp_path):
    """Both the file and every declared length say gigabytes; address space is capped to prove it."""
    path = tmp_path / "sparse.dcm"
    with path.open("wb") as file:
        file.write(GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23"))
        file.write(struct.pack("<HH2sHI", 0x10, 0x10, b"UN", 0, 3 << 30))
        file.seek(3 << 30, io.SEEK_CUR)
        file.write(PATIENT + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 3 << 30))
        file.truncate(file.tell() + (3 << 30))
    code = (
        "import resource, sys; from facility_sync import dicom_file\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open(sys.argv[1], 'rb') as file: found = dicom_file.read_header(file, 1 << 40)\n"
        "print(found.dataset.PatientID, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    patient, grown = done.stdout.split()
    assert patient == "PID1"
    assert int(grown) < 20 * 1024


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_cut_of_a_good_file_keeps_what_stood_before(syntax):
    data = images.image(1, syntax=syntax)
    whole = header(data).dataset
    kept = set()
    for length in range(0, len(data), 50):
        found = read_header(io.BytesIO(data[:length]), length)
        if isinstance(found, Refused):
            assert length < AT_DATA
            continue
        kept.add(len(found.dataset))
        for element in found.dataset:
            assert element == whole[element.tag]
    assert max(kept) == len(whole)
    assert len(kept) > 10


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", bytes(128) + b"DICM", GOOD[:AT_DATA], GOOD[: AT_DATA + 90]]),
)
def test_whatever_the_bytes(data, before):
    found = read_header(io.BytesIO(before + data), len(before + data))
    assert isinstance(found, Refused | Header)


def test_random_damage_to_the_header_never_raises():
    rng = random.Random(20261124)
    for _ in range(2000):
        data = bytearray(GOOD)
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(128, len(data) - 2048)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        assert isinstance(read_header(io.BytesIO(bytes(data)), len(data)), Refused | Header)


def test_the_last_of_two_equal_tags_counts_as_for_pydicom():
    twice = (
        GOOD[:AT_DATA] + explicit(8, 0x18, b"UI", b"1.23") + PATIENT + explicit(0x10, 0x20, b"LO", b"PID2")
    )
    assert header(twice).dataset.PatientID == pydicom.dcmread(io.BytesIO(twice)).PatientID == "PID2"


def test_every_wanted_tag_is_known():
    assert len(dicom_file._WANTED) > 40
