"""One file at a time, as a person types it: protect, restore, reidentify, explain."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

from tests.kit import images
from tests.kit.site import Done, call


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    for name in ("clinic-a", "clinic-b"):
        assert call("fsync", "--home", folder / name, "init", "--facility", name).status == 0
    certificate = fsync(folder, "domain", "certificate", "--key", folder / "a.key")
    assert certificate.status == 0, certificate.err
    (folder / "a.crt").write_text(certificate.out)
    return folder


def fsync(folder: Path, *words: str | Path, home: str = "clinic-a") -> Done:
    return call("fsync", "--home", folder / home, *words)


def tool(*words: object) -> None:
    command = [str(word) for word in words]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_protected_file_comes_back_and_only_with_the_key(homes, tmp_path):
    original = images.write(tmp_path, 3)
    done = fsync(homes, "protect", "--json", original, tmp_path / "out.dcm")
    assert done.status == 0, done.err
    assert done.json["sealed_whole"] is False
    assert b"FAMILY3" not in (tmp_path / "out.dcm").read_bytes()
    assert fsync(homes, "restore", tmp_path / "out.dcm", tmp_path / "back.dcm").status == 0
    assert (tmp_path / "back.dcm").read_bytes() == original.read_bytes()
    other = fsync(homes, "restore", tmp_path / "out.dcm", tmp_path / "other.dcm", home="clinic-b")
    assert other.status == 16
    assert not (tmp_path / "other.dcm").exists()
    held = fsync(
        homes, "restore", "--key", homes / "a.key", tmp_path / "out.dcm", tmp_path / "held.dcm", home="nobody"
    )
    assert held.status == 0, held.err
    assert "SHA256:" in held.out
    assert (tmp_path / "held.dcm").read_bytes() == original.read_bytes()


def test_what_its_pixels_may_show_is_sealed_whole_and_comes_back(homes, tmp_path):
    original = images.write(tmp_path, 3, BurnedInAnnotation="YES")
    done = fsync(homes, "protect", "--json", original, tmp_path / "out.age")
    assert done.json["sealed_whole"] is True
    assert done.json["reasons"] == ["burned-in-annotation"]
    sealed = (tmp_path / "out.age").read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1")
    assert fsync(homes, "restore", tmp_path / "out.age", tmp_path / "back.dcm").status == 0
    assert (tmp_path / "back.dcm").read_bytes() == original.read_bytes()
    assert fsync(homes, "restore", tmp_path / "out.age", tmp_path / "x", home="clinic-b").status == 16
    again = fsync(homes, "restore", tmp_path / "out.age", tmp_path / "back.dcm")
    assert again.status == 10
    assert "already" in again.err


def test_a_second_reader_by_certificate(homes, tmp_path):
    original = images.write(tmp_path, 3)
    done = fsync(homes, "protect", "--cert", homes / "a.crt", original, tmp_path / "out.dcm", home="clinic-b")
    assert done.status == 0, done.err
    done = fsync(homes, "restore", "--key", homes / "a.key", tmp_path / "out.dcm", tmp_path / "back.dcm")
    assert done.status == 0, done.err
    assert (tmp_path / "back.dcm").read_bytes() == original.read_bytes()


def test_transcoded_pixels_are_said_to_be_and_altered_ones_are_refused(homes, tmp_path):
    original = images.write(tmp_path, 3, pixels=bytes(range(256)) * 32)
    assert fsync(homes, "protect", original, tmp_path / "out.dcm").status == 0
    data = bytearray((tmp_path / "out.dcm").read_bytes())
    data[-100] ^= 1
    (tmp_path / "altered.dcm").write_bytes(data)
    done = fsync(homes, "restore", tmp_path / "altered.dcm", tmp_path / "altered.back")
    assert done.status == 16
    assert not (tmp_path / "altered.back").exists()
    tool("dcmcrle", tmp_path / "out.dcm", tmp_path / "rle.dcm")
    done = fsync(homes, "restore", tmp_path / "rle.dcm", tmp_path / "rle.back")
    assert done.status == 18
    assert "not bit-identical" in done.err
    back = pydicom.dcmread(tmp_path / "rle.back")
    assert back.PatientName == "FAMILY3^GIVEN3"
    assert "DeidentificationMethodCodeSequence" not in back
    assert "EncryptedAttributesSequence" not in back


@pytest.mark.parametrize("cipher", ["--aes128", "--aes192", "--aes256"])
def test_we_open_what_gdcm_encrypted(homes, tmp_path, cipher):
    original = images.write(tmp_path, 3)
    tool("gdcmanon", "-e", cipher, "-c", homes / "a.crt", "-i", original, "-o", tmp_path / "gdcm.dcm")
    assert pydicom.dcmread(tmp_path / "gdcm.dcm").PatientName != "FAMILY3^GIVEN3"
    done = fsync(homes, "reidentify", tmp_path / "gdcm.dcm", tmp_path / "back.dcm")
    assert done.status == 0, done.err
    back = pydicom.dcmread(tmp_path / "back.dcm")
    assert (back.PatientName, back.PatientID) == ("FAMILY3^GIVEN3", "PID-00003")
    assert back.SOPInstanceUID == pydicom.dcmread(original).SOPInstanceUID
    done = fsync(homes, "restore", tmp_path / "gdcm.dcm", tmp_path / "no.dcm")
    assert done.status == 15  # no capsule: nothing to restore bit for bit


def test_explain_masks_the_identity_unless_asked(homes, tmp_path):
    original = images.write(tmp_path, 3)
    done = fsync(homes, "explain", original)
    assert done.status == 0, done.err
    assert "FAMILY3" not in done.out
    assert "It would be protected" in done.out
    told = fsync(homes, "explain", "--identity", "--json", original)
    found = {line["tag"]: line for line in told.json["attributes"]}
    assert found["(0010,0010)"]["value"] == "FAMILY3^GIVEN3"
    assert found["(0010,0010)"]["action"] == "token"
    assert found["(0008,1030)"]["action"] == "remove"
    assert found["(0008,0080)"]["action"] == "keep"
    assert found["(0008,1032)[0]>(0008,0100)"]["value"] == "CTTHX"


def test_what_is_no_file_of_ours_is_refused_with_its_reason(homes, tmp_path):
    (tmp_path / "text").write_text("nothing")
    assert fsync(homes, "protect", tmp_path / "text", tmp_path / "out").status == 3
    assert fsync(homes, "explain", tmp_path / "text").status == 3
    assert fsync(homes, "restore", tmp_path / "text", tmp_path / "out").status == 15
    assert fsync(homes, "reidentify", tmp_path / "text", tmp_path / "out").status == 15
    assert fsync(homes, "restore", tmp_path / "gone", tmp_path / "out").status == 10
    done = fsync(homes, "restore", "--json", images.write(tmp_path, 1), tmp_path / "out")
    assert done.status == 15
    assert json.loads(done.out)["error"] == "FormatError"
    assert not (tmp_path / "out").exists()
