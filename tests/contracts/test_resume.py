"""A transfer that broke is gone on with only where the bytes of both sides are proved to be of one file.

The same against the store's own server, a server without extensions, and OpenSSH.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import carry_part
from central_store.carry_part import Download
from schemas import keys
from schemas.errors import FormatError, TransitError
from schemas.names import ShelfName
from schemas.transit import pump, sftp
from schemas.transit.shelf import Absent
from tests.kit import servers

BATCH = ShelfName("a" * 64, "batch")
STEP = 512 * 1024
SIZE = 4 * STEP + 12_345


class Mark:
    """A mark in memory that may break the line when it moves."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.then: Callable[[int], None] = lambda _: None

    def load(self) -> int:
        return self.offset

    def save(self, offset: int) -> None:
        self.offset = offset
        self.then(offset)


class Road(NamedTuple):
    folder: Path
    call: Callable[[], sftp.SftpSession]

    @property
    def part(self) -> Path:
        return self.folder / "in" / f"{BATCH}.part"

    @property
    def final(self) -> Path:
        return self.folder / "in" / str(BATCH)

    def put(self, data: bytes, mark: Mark) -> int:
        """Put in a fresh session; returns the bytes that travelled."""
        moved: list[int] = []
        with self.call() as session:
            session.shelf("in").put(BATCH, io.BytesIO(data), len(data), moved.append, mark)
        return sum(moved)

    def break_off(self, data: bytes) -> Mark:
        """Put until the second checkpoint; there the line breaks."""
        mark = Mark()
        with self.call() as session:

            def hang_up(offset: int) -> None:
                if offset >= 2 * STEP:
                    session._link.transport.close()

            mark.then = hang_up
            with pytest.raises(TransitError):
                session.shelf("in").put(BATCH, io.BytesIO(data), len(data), None, mark)
        mark.then = lambda _: None
        assert not self.final.exists()
        return mark


@contextmanager
def serving(kind: str, root: Path) -> Iterator[Road]:
    for folder in ("in", "out"):
        (root / folder).mkdir(parents=True)
    key = Ed25519PrivateKey.generate()
    roots, authorized = {"clinic": root}, {"clinic": keys.ssh_line(key.public_key())}
    if kind == "openssh":
        opened, user = servers.openssh_server(roots, authorized), servers.OPENSSH_USER
    else:
        fault = "no-extensions" if kind == "bare" else ""
        opened, user = servers.embedded_server(roots, authorized, fault=fault), "clinic"
    with opened as (host, port, host_key):

        def call() -> sftp.SftpSession:
            return sftp.connect(host=host, port=port, user=user, key=key, host_key=host_key)

        yield Road(root, call)


@pytest.fixture(scope="module", params=["embedded", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    if request.param == "openssh" and servers.SSHD is None:
        pytest.skip("sshd is not installed")
    with serving(request.param, tmp_path_factory.mktemp("road") / "shelf") as road:
        yield road


@pytest.fixture
def road(server: Road, monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setattr(pump, "CHECKPOINT", STEP)
    monkeypatch.setattr(pump, "CHECKPOINT_SECONDS", 0)
    for path in (*(server.folder / "in").glob("*"), *(server.folder / "out").glob("*")):
        path.unlink()
    return server


def broken_off(road: Road, data: bytes) -> Mark:
    mark = road.break_off(data)
    assert mark.offset >= 2 * STEP
    return mark


def test_a_broken_upload_goes_on_where_it_was_confirmed(road: Road) -> None:
    data = os.urandom(SIZE)
    mark = broken_off(road, data)
    began = mark.offset
    inode = road.part.stat().st_ino
    assert road.put(data, mark) == SIZE - began
    assert road.final.read_bytes() == data
    assert road.final.stat().st_ino == inode
    assert mark.offset == 0
    assert not road.part.exists()


def test_a_server_without_fsync_gets_all_of_it_again(tmp_path: Path) -> None:
    with serving("bare", tmp_path / "shelf") as road:
        data, mark = os.urandom(SIZE), Mark(2 * STEP)
        road.part.write_bytes(data[: 3 * STEP])
        assert road.put(data, mark) == SIZE
        assert road.final.read_bytes() == data


def zero_tail(part: Path, mark: Mark) -> None:
    """What a power cut leaves of a file whose blocks never reached the disk: the size, without the bytes."""
    size = part.stat().st_size
    os.truncate(part, mark.offset - 100_000)
    os.truncate(part, size)


def other_head(part: Path, mark: Mark) -> None:
    with part.open("r+b") as file:
        file.write(b"another sealing of the same batch")


def shorter(part: Path, mark: Mark) -> None:
    os.truncate(part, mark.offset - 1)


def too_long(part: Path, mark: Mark) -> None:
    os.truncate(part, SIZE + 1)


def gone(part: Path, mark: Mark) -> None:
    part.unlink()


def one_bit(part: Path, mark: Mark) -> None:
    with part.open("r+b") as file:
        file.seek(mark.offset - 1)
        last = file.read(1)
        file.seek(mark.offset - 1)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize("spoil", [zero_tail, other_head, shorter, too_long, gone, one_bit])
def test_what_is_not_proved_begins_again(road: Road, spoil: Callable[[Path, Mark], None]) -> None:
    data = os.urandom(SIZE)
    mark = broken_off(road, data)
    spoil(road.part, mark)
    assert road.put(data, mark) == SIZE
    assert road.final.read_bytes() == data
    assert mark.offset == 0


def test_another_file_of_the_same_name_and_size_begins_again(road: Road) -> None:
    mark = broken_off(road, os.urandom(SIZE))
    data = os.urandom(SIZE)
    assert road.put(data, mark) == SIZE
    assert road.final.read_bytes() == data


def test_a_file_that_is_there_is_not_sent_again(road: Road) -> None:
    data = os.urandom(SIZE)
    mark = broken_off(road, data)
    road.part.rename(road.folder / "moved")
    road.final.write_bytes(data)
    (road.folder / "moved").rename(road.part)
    assert road.put(data, mark) == 0
    assert mark.offset == 0
    assert not road.part.exists()


def test_it_may_break_again_and_again(road: Road) -> None:
    data = os.urandom(SIZE)
    mark = broken_off(road, data)
    mark.offset = 2 * STEP
    with road.call() as session:

        class Breaking(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 3 * STEP:
                    session._link.transport.close()
                return super().read(size)

        with pytest.raises(TransitError):
            session.shelf("in").put(BATCH, Breaking(data), len(data), None, mark)
    began = mark.offset
    assert began >= 2 * STEP  # what was confirmed stays confirmed
    assert road.put(data, mark) == SIZE - began
    assert road.final.read_bytes() == data


# -- bringing a file here -----------------------------------------------------------------------------


class Offered:
    """A batch on the peer's shelf, and what is here of it."""

    def __init__(self, road: Road, folder: Path) -> None:
        self.road, self.data = road, os.urandom(SIZE)
        self.marks, self.final = folder / "marks", folder / "here.batch"
        self.marks.mkdir()
        self.offer(self.data)

    @property
    def part(self) -> Path:
        return self.marks / f"{BATCH}.part"

    def offer(self, data: bytes) -> None:
        self.data = data
        path = self.road.folder / "out" / str(BATCH)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def bring(self, then: Callable[[sftp.SftpSession, int], None] = lambda *_: None) -> int:
        """Bring it in a fresh session; returns the bytes that travelled."""
        moved: list[int] = []
        with self.road.call() as session:

            def told(count: int) -> None:
                moved.append(count)
                then(session, sum(moved))

            Download(BATCH, self.marks).bring(session.shelf("out"), self.final, SIZE, told)
        return sum(moved)

    def break_off(self) -> int:
        """Bring it until the line breaks in the midst; returns how much of it is lasting."""

        def hang_up(session: sftp.SftpSession, moved: int) -> None:
            if moved > 3 * STEP:  # what has arrived by now would still be read
                session._link.transport.close()
                raise TransitError("the line broke")

        with pytest.raises(TransitError):
            self.bring(hang_up)
        assert not self.final.exists()
        kept = int((self.marks / f"{BATCH}.got").read_bytes())
        assert STEP <= kept < SIZE
        return kept


@pytest.fixture
def offered(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offered:
    monkeypatch.setattr(carry_part, "STEP", STEP // 2)
    return Offered(road, tmp_path)


def test_a_broken_download_goes_on_where_it_is_lasting(offered: Offered) -> None:
    kept = offered.break_off()
    assert carry_part.begun(offered.marks) == {BATCH}
    assert offered.bring() == SIZE - kept
    assert offered.final.read_bytes() == offered.data
    assert [*offered.marks.iterdir()] == []


def grown(part: Path, mark: Mark) -> None:
    """More than was lasting reached the disk, and more than there is to come."""
    with part.open("ab") as file:
        file.write(bytes(2 * SIZE))


def test_more_than_was_lasting_is_cut_off(offered: Offered) -> None:
    kept = offered.break_off()
    grown(offered.part, Mark(kept))
    assert offered.bring() == SIZE - kept
    assert offered.final.read_bytes() == offered.data


@pytest.mark.parametrize("spoil", [zero_tail, other_head, shorter, gone, one_bit])
def test_a_part_that_is_not_proved_is_brought_again(
    offered: Offered, spoil: Callable[[Path, Mark], None]
) -> None:
    spoil(offered.part, Mark(offered.break_off()))
    assert offered.bring() == SIZE
    assert offered.final.read_bytes() == offered.data


@pytest.mark.parametrize("size", [SIZE, STEP // 4])
def test_another_sealing_of_the_batch_is_brought_whole(offered: Offered, size: int) -> None:
    offered.break_off()
    offered.offer(os.urandom(size))
    assert offered.bring() == size
    assert offered.final.read_bytes() == offered.data
    assert [*offered.marks.iterdir()] == []


@pytest.mark.parametrize("larger", [True, False])
def test_what_is_offered_no_more_or_too_large_leaves_nothing(offered: Offered, larger: bool) -> None:
    offered.break_off()
    offered.offer(bytes(SIZE + 1))
    if not larger:
        (offered.road.folder / "out" / str(BATCH)).unlink()
    with pytest.raises(FormatError if larger else Absent):
        offered.bring()
    assert [*offered.marks.iterdir()] == []
    assert not offered.final.exists()
