"""The tar bytes: readable by everyone, one spelling only."""

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ustar
from schemas.errors import FormatError


def build(members: dict[str, bytes]) -> bytes:
    return (
        b"".join(
            ustar.header(name, len(data)) + data + ustar.padding(len(data)) for name, data in members.items()
        )
        + ustar.END
    )


def parse(data: bytes, limit: int = 10**6) -> dict[str, bytes]:
    reader, found = ustar.Reader(io.BytesIO(data), limit=limit), {}
    while member := reader.next():
        found[member.name] = reader.read_all(member, limit=limit)
        assert data[member.offset : member.offset + member.size] == found[member.name]
    return found


MEMBERS = {"manifest.parquet": b"x" * 700, "statement.json": b"{}", "objects/a.age": bytes(512), "empty": b""}


def test_round_trip():
    assert parse(build(MEMBERS)) == MEMBERS


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?", fullmatch=True), st.binary(max_size=1500)))
def test_round_trip_of_anything(members):
    assert parse(build(members)) == members


def test_python_reads_it():
    with tarfile.open(fileobj=io.BytesIO(build(MEMBERS))) as tar:
        assert {item.name: tar.extractfile(item).read() for item in tar} == MEMBERS
        assert all(item.isreg() and item.mode == 0o644 for item in tar)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar on this machine")
def test_tar_reads_it():
    listing = subprocess.run(["tar", "-t"], input=build(MEMBERS), capture_output=True, check=True)
    assert listing.stdout.decode().split() == list(MEMBERS)


HEADER = bytes.fromhex("73746174656d656e742e6a736f6e")  # "statement.json"


def test_golden_header():
    head = ustar.header("statement.json", 212)
    assert len(head) == ustar.BLOCK
    assert head[:14] == HEADER
    assert head[100:108] == b"    644\0"
    assert head[124:136] == b"        324\0"
    assert head[148:156] == b"%06o\0 " % (sum(head) - sum(head[148:156]) + 8 * 32)
    assert head[156:157] + head[257:265] == b"0ustar\x0000"


def test_no_row_of_zeros_stands_in_a_tar():
    assert b"0000000" not in build({name: bytes(8) for name in MEMBERS}).replace(bytes(8), b"")


@pytest.mark.parametrize("flip", range(0, 8 * (512 + 512 + 512), 7))
def test_every_flipped_bit_outside_the_content_is_refused(flip):
    data = bytearray(build({"a": b"12345"}))
    if 512 <= flip // 8 < 517:
        return  # the content has a digest of its own
    data[flip // 8] ^= 1 << flip % 8
    with pytest.raises(FormatError):
        parse(bytes(data))


@pytest.mark.parametrize("length", range(0, 2048, 100))
def test_every_truncation_is_refused(length):
    data = build({"a": b"12345"})
    with pytest.raises(FormatError):
        parse(data[: min(length, len(data) - 1)])


def test_nothing_may_follow():
    with pytest.raises(FormatError):
        parse(build(MEMBERS) + b"\0")


def hostile() -> list[bytes]:
    """What `tarfile` writes that is not ours: links, devices, long names, sparse, owner, times."""
    found = []
    for change in (
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "a"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.GNUTYPE_SPARSE},
        {"mode": 0o4755},
        {"uid": 1000},
        {"mtime": 1},
        {"uname": "root"},
        {"name": "../../etc/cron.d/x"},
        {"name": "/etc/x"},
        {"name": "a/b/c"},
        {"name": "x" * 200},
        {"name": "objects/\xe4"},
    ):
        info = tarfile.TarInfo("a")
        for key, value in change.items():
            setattr(info, key, value)
        found.append(info.tobuf(tarfile.GNU_FORMAT) + ustar.END)
    return found


@pytest.mark.parametrize("data", hostile())
def test_what_tarfile_can_write_beyond_ours_is_refused(data):
    with pytest.raises(FormatError):
        parse(data)


def test_the_limit_holds_before_anything_is_read():
    endless = ustar.header("a", ustar.MAX_SIZE)
    with pytest.raises(FormatError, match="more than is allowed"):
        ustar.Reader(io.BytesIO(endless), limit=1000).next()


def test_the_limit_is_for_all_members_together():
    data = build({"a": bytes(600), "b": bytes(600)})
    with pytest.raises(FormatError, match="more than is allowed"):
        parse(data, limit=1000)


@given(st.binary(max_size=3000))
def test_only_our_error_comes_out(data):
    with pytest.raises(FormatError):
        parse(data)


@pytest.mark.parametrize(
    ("name", "size"), [("a" * 101, 0), ("../a", 0), ("", 0), ("a", -1), ("a", 8 * 1024**3)]
)
def test_the_writer_refuses_what_the_reader_would(name, size):
    with pytest.raises(FormatError):
        ustar.header(name, size)
