"""Seals of a domain: whole or an error, bounded, and open to `age` and `zstd`."""

import hashlib
import io
import random
import shutil
import subprocess

import pytest
import zstandard

from facility_sync.identity import domains, frames, sealed
from schemas import envelope
from schemas.errors import FormatError, SealError
from tests.kit.domains import domain

A, B = domain(), domain("b")
RING = domains.Keyring((A,))
NOISE = random.Random(1).randbytes(9 * 1024 * 1024)
SOFT = (b"soft tissue" * 1000 + NOISE[:3000]) * 700
CONTENTS = {
    "empty": b"", "one byte": b"x", "noise": NOISE[:100_000], "soft": SOFT[:200_000],
    "noise beyond what is held": NOISE, "soft beyond what is held": SOFT,
}  # fmt: skip


def seal(data: bytes, *for_domains: domains.Domain) -> tuple[bytes, frames.Encoded]:
    sink = io.BytesIO()
    made = sealed.seal_object(io.BytesIO(data), len(data), sink, for_domains or (A,))
    return sink.getvalue(), made


def opened(data: bytes, encoding: str, size: int, ring: domains.Keyring = RING) -> bytes:
    sink = io.BytesIO()
    sealed.open_object(io.BytesIO(data), sink, encoding, ring, size=size)
    return sink.getvalue()


@pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS.keys())
def test_round_trip(data):
    stored, made = seal(data)
    assert made.sha256 == hashlib.sha256(stored).hexdigest()
    assert made.size == len(stored)
    assert opened(stored, made.encoding, len(data)) == data


def test_what_saves_too_little_is_not_compressed():
    assert seal(NOISE[:100_000])[1].encoding == seal(NOISE)[1].encoding == "age"
    assert seal(SOFT[:200_000])[1].encoding == seal(SOFT)[1].encoding == "age+zstd"
    assert seal(SOFT)[1].size < 0.95 * len(SOFT)


def test_each_domain_opens_it_and_no_other():
    stored, made = seal(b"shared", A, B)
    assert opened(stored, made.encoding, 6, domains.Keyring((B,))) == b"shared"
    with pytest.raises(SealError):
        opened(stored, made.encoding, 6, domains.Keyring((domain("c"),)))


@pytest.mark.skipif(
    not (shutil.which("age") and shutil.which("zstd")), reason="no age or zstd on this machine"
)
def test_standard_tools_open_it(tmp_path):
    (tmp_path / "key").write_text(A.current.age_identity + "\n")
    for data in (b"plain", SOFT[:200_000]):
        stored, made = seal(data)
        out = subprocess.run(
            ["age", "-d", "-i", tmp_path / "key"], input=stored, capture_output=True, check=True
        ).stdout
        if made.encoding == "age+zstd":
            out = subprocess.run(["zstd", "-dc"], input=out, capture_output=True, check=True).stdout
        assert out == data


@pytest.mark.parametrize("size", [199_999, 200_001, 0])
def test_another_size_than_the_row_says_is_refused(size):
    stored, made = seal(SOFT[:200_000])
    with pytest.raises(FormatError):
        opened(stored, made.encoding, size)


def test_cut_altered_or_extended_bytes_are_refused():
    stored, made = seal(SOFT[:200_000])
    for at in range(0, len(stored), max(1, len(stored) // 60)):
        for case in (stored[:at], stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]):
            with pytest.raises((SealError, FormatError)):
                opened(case, made.encoding, 200_000)
    with pytest.raises(SealError):
        opened(stored + b"x", made.encoding, 200_000)


def test_the_wrong_or_an_unknown_encoding_is_refused():
    stored, made = seal(NOISE[:1000])
    assert made.encoding == "age"
    for encoding in ("age+zstd", "dcm", ""):
        with pytest.raises(FormatError):
            opened(stored, encoding, 1000)


class Counting:
    """Takes everything in pieces and remembers the largest."""

    largest = total = 0

    def write(self, data):
        self.largest, self.total = max(self.largest, len(data)), self.total + len(data)
        return len(data)

    def flush(self):
        pass


def test_a_bomb_is_stopped_at_the_size_of_the_row():
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(200 * 1024 * 1024))
    stored, sink = envelope.seal_bytes(frame, [A.recipient]), Counting()
    with pytest.raises(FormatError):
        sealed.open_object(io.BytesIO(stored), sink, "age+zstd", RING, size=1024 * 1024)
    assert sink.total <= 1024 * 1024
    assert sink.largest <= 512 * 1024


def test_what_is_no_frame_is_refused():
    for plain in (b"", b"no frame", zstandard.compress(b"x" * 100)[:-1], zstandard.compress(b"x" * 100) * 2):
        with pytest.raises(FormatError):
            opened(envelope.seal_bytes(plain, [A.recipient]), "age+zstd", 100)


IDENTITY = {"patient_name": "山田^太郎", "patient_id": "12345", "birth_date": "19700501", "sex": ""}


def test_an_identity_comes_back_without_its_empty_values():
    seal = sealed.seal_identity(IDENTITY, [A])
    assert sealed.open_identity(seal, RING) == {key: value for key, value in IDENTITY.items() if value}
    assert sealed.open_identity(seal, domains.Keyring((B,))) is None


def test_a_long_identity_is_cut_and_still_opens():
    seal = sealed.seal_identity(dict.fromkeys(sealed.IDENTITY_KEYS, "山" * 5000), [A, B])
    assert len(seal) < 8192
    found = sealed.open_identity(seal, RING)
    assert found is not None
    assert found["patient_name"] == "山" * 300


@pytest.mark.parametrize("plain", [b"", b"[]", b"{}", b'{"version":2}', b"\xff", b"[" * 2000])
def test_what_is_no_identity_is_none(plain):
    assert sealed.open_identity(envelope.seal_bytes(plain, [A.recipient]), RING) is None
    assert sealed.open_identity(plain, RING) is None
