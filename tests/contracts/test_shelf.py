"""What every shelf promises: one suite for a local folder, the store's own SFTP server, and OpenSSH.

`bare` is a server without extensions: 32 KiB requests, no fsync, a rename that refuses a taken name.
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import keys
from schemas.errors import Damaged, FormatError, TransitError
from schemas.names import ShelfKind, ShelfName
from schemas.transit import sftp
from schemas.transit.shelf import Absent, Shelf, Shelves, store_shelves, terminal_shelves
from tests.kit import servers

ROADS = ("folder", "embedded", "bare", "openssh")
SIZES = (0, 1, 32 * 1024 - 1, 32 * 1024, 32 * 1024 + 1, 255 * 1024, 255 * 1024 + 1, 3_000_001)


class Ends(NamedTuple):
    folder: Path
    terminal: Shelves
    store: Shelves


@pytest.fixture(scope="module", params=ROADS)
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    root = tmp_path_factory.mktemp("shelf")
    for name in ("in", "out"):
        (root / name).mkdir()
    if request.param == "folder":
        yield Ends(root, terminal_shelves(root), store_shelves(root))
        return
    if request.param == "openssh" and servers.SSHD is None:
        pytest.skip("sshd is not installed")
    key = Ed25519PrivateKey.generate()
    roots, authorized = {"clinic": root}, {"clinic": keys.ssh_line(key.public_key())}
    if request.param == "openssh":
        server, user = servers.openssh_server(roots, authorized), servers.OPENSSH_USER
    else:
        fault = "no-extensions" if request.param == "bare" else ""
        server, user = servers.embedded_server(roots, authorized, fault=fault), "clinic"
    with (
        server as (host, port, host_key),
        sftp.connect(host=host, port=port, user=user, key=key, host_key=host_key) as session,
    ):
        yield Ends(root, Shelves(put=session.shelf("in"), take=session.shelf("out")), store_shelves(root))


@pytest.fixture
def ends(road: Ends) -> Ends:
    for folder in ("in", "out"):
        for path in (road.folder / folder).iterdir():
            path.unlink()
    return road


def name(kind: ShelfKind, digit: str = "a") -> ShelfName:
    return ShelfName(digit * (64 if kind in ("batch", "receipt") else 32), kind)


def put(shelf: Shelf, where: ShelfName, data: bytes) -> None:
    shelf.put(where, io.BytesIO(data), len(data))


def get(shelf: Shelf, where: ShelfName, limit: int = 1 << 30) -> bytes:
    sink = io.BytesIO()
    assert shelf.get(where, sink, limit) == len(sink.getvalue())
    return sink.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_bytes_arrive_in_both_directions(ends: Ends, size: int) -> None:
    data = os.urandom(size)
    put(ends.terminal.put, name("batch"), data)
    assert get(ends.store.take, name("batch")) == data
    put(ends.store.put, name("receipt"), data)
    assert get(ends.terminal.take, name("receipt")) == data
    sizes = ends.terminal.take.size(name("receipt")), ends.terminal.put.size(name("batch"))
    assert sizes == (size, size)


def test_many_windows_in_order(ends: Ends) -> None:
    data = os.urandom(40_000_003)  # more than is ever under way at once
    moved: list[int] = []
    ends.terminal.put.put(name("batch"), io.BytesIO(data), len(data), moved.append)
    assert sum(moved) == len(data)
    assert (ends.folder / "in" / str(name("batch"))).read_bytes() == data
    (ends.folder / "out" / str(name("answer"))).write_bytes(data)
    moved.clear()
    sink = io.BytesIO()
    ends.terminal.take.get(name("answer"), sink, len(data), moved.append)
    assert sink.getvalue() == data
    assert sum(moved) == len(data)


def test_what_is_not_there(ends: Ends) -> None:
    take = ends.terminal.take
    assert take.size(name("receipt")) is None
    assert take.names() == []
    assert not take.try_get(name("receipt"), io.BytesIO(), 10)
    with pytest.raises(Absent):
        take.get(name("receipt"), io.BytesIO(), 10)
    take.remove(name("receipt"))


def test_names_are_whole_files_only(ends: Ends) -> None:
    out = ends.folder / "out"
    for number in range(450):  # more than one answer of a listing holds
        (out / f"{number:064x}.receipt").touch()
    for foreign in ("notes.txt", f"{'a' * 64}.receipt.part", f"{'A' * 64}.receipt", ".hidden", "a" * 200):
        (out / foreign).touch()
    (out / str(name("answer"))).mkdir()
    (out / str(name("answer", "b"))).symlink_to(out / "notes.txt")
    found = ends.terminal.take.names()
    (out / str(name("answer"))).rmdir()
    assert found == [ShelfName(f"{number:064x}", "receipt") for number in range(450)]


def test_too_large_is_refused_before_it_is_read(ends: Ends) -> None:
    put(ends.store.put, name("answer"), b"x" * 1001)
    sink = io.BytesIO()
    with pytest.raises(FormatError):
        ends.terminal.take.get(name("answer"), sink, 1000)
    assert sink.getvalue() == b""
    assert get(ends.terminal.take, name("answer"), 1001) == b"x" * 1001


def test_putting_again_changes_nothing(ends: Ends) -> None:
    put(ends.terminal.put, name("batch"), b"first")
    path = ends.folder / "in" / str(name("batch"))
    before = path.stat()
    put(ends.terminal.put, name("batch"), b"again")
    assert path.read_bytes() == b"first"
    assert path.stat().st_ino == before.st_ino
    assert list((ends.folder / "in").iterdir()) == [path]


def test_another_size_replaces(ends: Ends) -> None:
    put(ends.terminal.put, name("request"), b"first")
    put(ends.terminal.put, name("request"), b"a longer second")
    assert get(ends.store.take, name("request")) == b"a longer second"


def test_a_part_left_behind_is_no_obstacle(ends: Ends) -> None:
    (ends.folder / "in" / f"{name('batch')}.part").write_bytes(b"half of a former try")
    put(ends.terminal.put, name("batch"), b"whole")
    assert get(ends.store.take, name("batch")) == b"whole"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_source_of_another_length_leaves_nothing(ends: Ends, size: int) -> None:
    for claimed in (size - 1, size + 1):
        with pytest.raises(Damaged):
            ends.terminal.put.put(name("batch"), io.BytesIO(b"x" * size), claimed)
    assert ends.store.take.names() == []
    assert list((ends.folder / "in").iterdir()) == []


def test_a_source_that_fails_leaves_nothing(ends: Ends) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500_000:
                raise OSError("the source's disk failed")
            return super().read(size)

    with pytest.raises(OSError, match="source"):
        ends.terminal.put.put(name("batch"), Failing(b"x" * 1_000_000), 1_000_000)
    assert list((ends.folder / "in").iterdir()) == []
    put(ends.terminal.put, name("batch"), b"whole")  # and the session goes on
    assert get(ends.store.take, name("batch")) == b"whole"


def test_removed_is_gone(ends: Ends) -> None:
    put(ends.store.put, name("receipt"), b"r")
    ends.terminal.take.remove(name("receipt"))
    ends.terminal.take.remove(name("receipt"))
    assert list((ends.folder / "out").iterdir()) == []


def test_a_name_is_checked_again_before_it_becomes_a_path(ends: Ends) -> None:
    for wrong in ("../../etc/passwd", "a", "", "/" * 64):
        with pytest.raises(FormatError):
            put(ends.terminal.put, ShelfName(wrong, "batch"), b"x")


@pytest.mark.parametrize("pages", [1, 63, 64, 128, 245])
def test_a_full_disk_at_openssh_is_noticed(tmp_path: Path, pages: int) -> None:
    """Its own answers are as much in need of being looked at as ours."""
    size = 245 * 4096 + 1  # a little more than the largest of the disks holds
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(tmp_path / "full")]
    (tmp_path / "full").mkdir()
    if servers.SSHD is None or os.getuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs sshd and the right to mount")
    try:
        key = Ed25519PrivateKey.generate()
        roots, authorized = {"clinic": tmp_path / "full"}, {"clinic": keys.ssh_line(key.public_key())}
        with (
            servers.openssh_server(roots, authorized) as (host, port, host_key),
            sftp.connect(
                host=host, port=port, user=servers.OPENSSH_USER, key=key, host_key=host_key
            ) as session,
        ):
            with pytest.raises(TransitError):
                put(session.shelf("in"), name("batch"), os.urandom(size))
            assert list((tmp_path / "full" / "in").iterdir()) == []
            put(session.shelf("in"), name("batch", "b"), b"small")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "full")], check=True)  # sshd may still be leaving
