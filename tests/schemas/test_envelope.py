"""Sealing: complete or an error, and `age` agrees."""

import io
import shutil
import subprocess
from pathlib import Path

import pyrage
import pytest

from schemas import envelope, keys
from schemas.errors import FormatError, SealError

IDENTITY = keys.new_age_identity()
RECIPIENT = keys.recipient_of(IDENTITY)
SIZES = [0, 1, 65535, 65536, 65537, 200_000]

needs_age = pytest.mark.skipif(not shutil.which("age"), reason="no age on this machine")


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size):
    plain = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert envelope.open_bytes(envelope.seal_bytes(plain, [RECIPIENT]), [IDENTITY], limit=size) == plain


@pytest.mark.parametrize("size", SIZES)
def test_every_truncation_extension_and_flip_is_refused(size):
    sealed = envelope.seal_bytes(bytes(size), [RECIPIENT])
    cuts = {0, 10, len(sealed) // 2, len(sealed) - 65552, len(sealed) - 17, len(sealed) - 16, len(sealed) - 1}
    broken = [sealed[:cut] for cut in cuts if cut >= 0] + [sealed + b"\0", sealed + sealed]
    for at in range(0, len(sealed), max(1, len(sealed) // 97)):
        broken.append(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    for case in broken:
        with pytest.raises(SealError):
            envelope.open_bytes(case, [IDENTITY], limit=2 * size + 100_000)


def test_somebody_else_cannot_open_it():
    with pytest.raises(SealError, match="somebody else"):
        envelope.open_bytes(envelope.seal_bytes(b"x", [RECIPIENT]), [keys.new_age_identity()], limit=10)


def test_each_of_several_recipients_opens_it():
    other = keys.new_age_identity()
    sealed = envelope.seal_bytes(b"x", [RECIPIENT, keys.recipient_of(other)])
    assert (
        envelope.open_bytes(sealed, [other], limit=1)
        == envelope.open_bytes(sealed, [IDENTITY], limit=1)
        == b"x"
    )


def test_the_limit_holds():
    with pytest.raises(FormatError, match="larger"):
        envelope.open_bytes(envelope.seal_bytes(bytes(100), [RECIPIENT]), [IDENTITY], limit=99)


def test_without_a_recipient_nothing_is_sealed():
    with pytest.raises(SealError):
        envelope.seal_bytes(b"x", [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
@pytest.mark.parametrize("size", [0, 100, 65536, 262_144])
def test_a_full_disk_is_never_silent(size):
    """pyrage 1.4 drops an error of its last buffered write; this is the guard against it."""
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        envelope.seal(io.BytesIO(bytes(size)), full, [RECIPIENT])


class Lossy:
    """A writer whose n-th write fails."""

    def __init__(self, fail_at):
        self.left = fail_at

    def write(self, data):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return len(data)

    def flush(self):
        pass


@pytest.mark.parametrize("fail_at", range(6))
def test_a_failed_write_at_any_place_comes_out_as_it_was(fail_at):
    with pytest.raises(OSError, match="No space"):
        envelope.seal(io.BytesIO(bytes(300_000)), Lossy(fail_at), [RECIPIENT])
    sealed = envelope.seal_bytes(bytes(300_000), [RECIPIENT])
    with pytest.raises(OSError, match="No space"):
        envelope.open_sealed(io.BytesIO(sealed), Lossy(fail_at), [IDENTITY], limit=300_000)


class Stubborn:
    """A reader that fails after its first block."""

    def __init__(self):
        self.first = True

    def read(self, size=-1):
        if not self.first:
            raise OSError(5, "Input/output error")
        self.first = False
        return bytes(100)


def test_a_failed_read_comes_out_as_it_was():
    with pytest.raises(OSError, match="Input/output"):
        envelope.seal(Stubborn(), io.BytesIO(), [RECIPIENT])


@needs_age
@pytest.mark.parametrize("size", SIZES)
def test_age_opens_ours_and_we_open_its(size, tmp_path):
    (tmp_path / "key").write_text(IDENTITY + "\n")
    plain = bytes(size)
    opened = subprocess.run(
        ["age", "-d", "-i", tmp_path / "key"],
        input=envelope.seal_bytes(plain, [RECIPIENT]),
        capture_output=True,
        check=True,
    )
    assert opened.stdout == plain
    sealed = subprocess.run(["age", "-r", RECIPIENT], input=plain, capture_output=True, check=True)
    assert envelope.open_bytes(sealed.stdout, [IDENTITY], limit=size) == plain


STANZA = b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n"
FIRST = b"age-encryption.org/v1\n"


def opened_both_ways(sealed: bytes) -> list[str]:
    said = []
    with pytest.raises(SealError) as caught:
        envelope.open_bytes(sealed, [IDENTITY], limit=1 << 26)
    said.append(str(caught.value))
    source = io.BytesIO(sealed)
    with pytest.raises(SealError) as caught:
        envelope.open_sealed(source, io.BytesIO(), [IDENTITY], limit=1 << 26)
    assert source.tell() <= 2 * 65536 or len(sealed) < 4 * 65536, "read on behind a header nobody writes"
    return [*said, str(caught.value)]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("more", [STANZA * 200_000, b"-> grease " + b"x" * 10_000_000 + b"\n\n"])
def test_a_header_without_end_costs_nothing(more):
    """age reads the header again for each stanza: two megabytes of them took it a minute."""
    sealed = envelope.seal_bytes(b"x", [RECIPIENT])
    for said in opened_both_ways(sealed.replace(FIRST, FIRST + more, 1)):
        assert "header" in said


def test_many_recipients_still_open():
    sealed = envelope.seal_bytes(b"x", [RECIPIENT] * 200)
    assert envelope.open_bytes(sealed, [IDENTITY], limit=1) == b"x"


@pytest.mark.timeout(10)
def test_a_passphrase_of_any_work_factor_is_never_tried():
    scrypt = (
        FIRST + b"-> scrypt " + b"A" * 22 + b" 63\n" + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n" + bytes(64)
    )
    assert opened_both_ways(scrypt) == ["this is sealed for somebody else"] * 2


def test_an_armored_file_is_a_second_spelling():
    armored = pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(RECIPIENT)], armored=True)
    assert opened_both_ways(armored) == ["this is not an age file"] * 2
