"""What one facility, one address or one slow client can take of the embedded server: its share, no more."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import sftp_addresses, sftp_process
from central_store.settings import Settings
from central_store.sftp_addresses import Addresses
from facility_sync.patience import Patience, persist
from schemas import keys
from schemas.errors import AccessDenied, TransitError
from schemas.names import ShelfName
from schemas.transit import dial, sftp
from schemas.transit import sftp_packets as p
from schemas.transit.dial import TurnedAway
from schemas.transit.shelf import ShelfFull
from tests.kit.servers import Endpoint, embedded_server

OURS, THEIRS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
AUTHORIZED = {"clinic": keys.ssh_line(OURS.public_key()), "hospital": keys.ssh_line(THEIRS.public_key())}
SOON = Patience(seconds=20, jitter=lambda: 0.5, first=0.05, most=0.2)


def batch(digit: str) -> ShelfName:
    return ShelfName(digit * 64, "batch")


REQUEST = ShelfName("b" * 32, "request")


@contextmanager
def serving(folder: Path, **limits: float) -> Iterator[Endpoint]:
    roots = {user: folder / user for user in AUTHORIZED}
    with embedded_server(roots, AUTHORIZED, log=folder / "log", **limits) as server:
        yield server


def connect(server: Endpoint, user: str = "clinic", key: Ed25519PrivateKey = OURS) -> sftp.SftpSession:
    host, port, host_key = server
    return sftp.connect(host=host, port=port, user=user, key=key, host_key=host_key, timeout=10)


def put(session: sftp.SftpSession, name: ShelfName, size: int) -> None:
    session.shelf("in").put(name, io.BytesIO(b"x" * size), size)


# -- the shelf -------------------------------------------------------------------------------------


def test_a_full_shelf_is_said_plainly_and_stops_nothing_else(tmp_path: Path) -> None:
    with (
        serving(tmp_path, shelf_bytes=1_000_000) as server,
        connect(server) as session,
        connect(server, "hospital", THEIRS) as other,
    ):
        put(session, batch("a"), 900_000)
        for size in (200_000, 2_000_000):
            with pytest.raises(ShelfFull, match="shelf is full"):
                put(session, batch("c"), size)
        assert {path.name for path in (tmp_path / "clinic" / "in").iterdir()} == {str(batch("a"))}
        put(session, batch("d"), 100_000)  # what fits still goes in
        with pytest.raises(ShelfFull):
            put(session, batch("e"), 1)
        put(session, REQUEST, 50_000)  # and searches go on
        put(other, batch("c"), 900_000)
        (tmp_path / "clinic" / "in" / str(batch("a"))).unlink()  # the store took it in
        put(session, batch("c"), 200_000)


def test_the_number_of_files_is_bounded_too(tmp_path: Path) -> None:
    with serving(tmp_path, shelf_files=10) as server, connect(server) as session:
        for digit in "0123456789":
            put(session, batch(digit), 1)
        with pytest.raises(ShelfFull):
            put(session, batch("a"), 1)
        put(session, REQUEST, 1)
        assert len(session.shelf("in").names()) == 11


def test_uploads_leave_the_store_room_on_its_disk(tmp_path: Path) -> None:
    with serving(tmp_path, reserve_bytes=1 << 60) as server, connect(server) as session:
        with pytest.raises(ShelfFull):
            put(session, batch("a"), 1)
        assert list((tmp_path / "clinic" / "in").iterdir()) == []


@pytest.mark.parametrize("pages", [1, 64, 245])
def test_a_full_disk_is_a_full_shelf(tmp_path: Path, pages: int) -> None:
    """The disk itself says so, in the midst of an upload; the session and the server go on."""
    full = tmp_path / "clinic"
    full.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(full)]
    if os.getuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        with serving(tmp_path) as server, connect(server) as session:
            with pytest.raises(ShelfFull):
                put(session, batch("a"), 245 * 4096 + 1)
            assert list((full / "in").iterdir()) == []
            put(session, batch("b"), 100)
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)


# -- sessions, time, addresses ---------------------------------------------------------------------


def test_one_facility_cannot_take_the_sessions_of_the_others(tmp_path: Path) -> None:
    with serving(tmp_path, facility_sessions=2) as server:
        with connect(server), connect(server):
            with pytest.raises(TurnedAway, match="no room"):
                connect(server)
            with connect(server, "hospital", THEIRS):
                pass
        with persist(lambda: connect(server), lambda: None, SOON):  # there is room again
            pass
    assert "refused: too many sessions, facility=clinic" in (tmp_path / "log").read_text()


def test_a_dead_session_gives_way_to_a_new_one(tmp_path: Path) -> None:
    """A line that broke without a word must not lock its facility out until the server notices."""
    with (
        serving(tmp_path, facility_sessions=2, silent_seconds=1.5) as server,
        connect(server) as dead,
        connect(server) as busy,
    ):
        for _ in range(20):
            time.sleep(0.1)
            busy.shelf("out").names()
        with connect(server) as third:
            assert third.shelf("out").names() == []
            assert busy.shelf("out").names() == []
            with pytest.raises(TransitError):
                dead.shelf("out").names()
            with pytest.raises(TurnedAway):  # both of these are alive
                connect(server)
    assert "a silent session gives way, facility=clinic" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("pace", ["stops", "trickles"])
def test_a_packet_that_takes_too_long_ends_the_session(tmp_path: Path, pace: str) -> None:
    with serving(tmp_path, packet_seconds=0.5) as server, paramiko.Transport(server[:2]) as transport:
        transport.connect(username="clinic", pkey=dial.paramiko_key(OURS))
        channel = transport.open_session(timeout=10)
        channel.settimeout(10)
        channel.invoke_subsystem("sftp")
        channel.sendall(p.version_packet(p.INIT))
        assert channel.recv(1000)
        channel.sendall(p.packet(p.OPENDIR, 1, p.string(b"in"))[:10])
        started = time.monotonic()
        if pace == "trickles":
            channel.settimeout(0.1)
            while time.monotonic() - started < 10:
                try:
                    channel.send(b"i")
                    if channel.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        else:
            assert channel.recv(1) == b""
        assert time.monotonic() - started < 5


def test_an_address_that_fails_again_and_again_has_to_pause(tmp_path: Path) -> None:
    with serving(tmp_path, failed_logins=3, pause_seconds=2) as server:
        for _ in range(3):
            with pytest.raises(AccessDenied):
                connect(server, "clinic", THEIRS)
        with pytest.raises(TurnedAway):  # whoever it is
            connect(server)
        with persist(lambda: connect(server), lambda: None, SOON):
            pass
    log = (tmp_path / "log").read_text()
    assert log.count("pausing: too many failed logins, from=127.0.0.1") == 1
    assert log.count("refused facility=clinic") == 3


def test_failures_count_by_address_and_are_forgotten() -> None:
    seen = Addresses(failures=3, pause=60)
    assert [seen.failed("192.0.2.1", now) for now in (0, 50, 100)] == [False, False, True]
    assert seen.pausing("192.0.2.1", 159)
    assert not seen.pausing("192.0.2.1", 161)
    assert not seen.pausing("192.0.2.2", 100)
    assert not seen.failed("192.0.2.1", 161)  # counted from one again
    for number in range(3):
        seen.failed(f"2001:db8::{number}", 0)  # one caller: the same /64
    assert seen.pausing("2001:db8::ffff:1", 1)
    assert not seen.pausing("2001:db8:0:1::1", 1)
    for _ in range(3):
        seen.failed("::ffff:192.0.2.9", 0)
    assert seen.pausing("192.0.2.9", 1)
    for number in range(sftp_addresses.MOST + 10):
        seen.failed(str(number), 200)
    assert len(seen._known) == sftp_addresses.MOST


def test_every_limit_is_a_setting() -> None:
    settings = Settings(name="a", host="h", port=1, sessions=7, shelf_mib=3, reserve_mib=2, packet_seconds=9)
    limits = sftp_process.limits_of(settings)
    assert (limits.sessions, limits.shelf_bytes, limits.reserve_bytes) == (7, 3 << 20, 2 << 20)
    assert limits.packet_seconds == 9


# -- files with another name -----------------------------------------------------------------------


def test_a_hard_link_is_neither_read_nor_written_nor_published(tmp_path: Path) -> None:
    """Only somebody on the store's machine could make one."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    ours = tmp_path / "clinic"
    with serving(tmp_path) as server, connect(server) as session:
        part, receipt = f"in/{'c' * 64}.batch.part", f"out/{'c' * 64}.receipt"
        for path in (part, receipt):
            (ours / path).hardlink_to(secret)
        with paramiko.Transport(server[:2]) as transport:
            transport.connect(username="clinic", pkey=dial.paramiko_key(OURS))
            client = paramiko.SFTPClient.from_transport(transport)
            assert client is not None
            for path, mode in ((part, "w"), (part, "r+"), (receipt, "r")):
                with pytest.raises(OSError):
                    client.open(path, mode)
            with pytest.raises(OSError):
                client.posix_rename(part, part.removesuffix(".part"))
        assert secret.read_text() == "secret"
        assert secret.stat().st_mode & 0o200  # nor made read-only
        put(session, batch("c"), 10)  # a new file of that name is another file
        assert secret.read_text() == "secret"


# -- many at once ----------------------------------------------------------------------------------


def test_fifty_terminals_at_once(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    """Fifty facilities are logged in at the same time, and each puts a file."""
    who = {f"clinic-{number}": Ed25519PrivateKey.generate() for number in range(50)}
    roots = {user: tmp_path / user for user in who}
    authorized = {user: keys.ssh_line(key.public_key()) for user, key in who.items()}
    all_there, all_done = threading.Barrier(51), threading.Barrier(51)
    failures: list[BaseException] = []

    def terminal(user: str, key: Ed25519PrivateKey) -> None:
        try:
            with connect(server, user, key) as session:
                all_there.wait(60)
                put(session, batch("a"), 1000)
                all_done.wait(60)
        except BaseException as error:
            failures.append(error)
            all_there.abort()
            all_done.abort()

    before = set(psutil.Process().children(recursive=True))
    with embedded_server(roots, authorized) as server:
        started = time.monotonic()
        threads = [threading.Thread(target=terminal, args=item) for item in who.items()]
        for thread in threads:
            thread.start()
        try:
            all_there.wait(60)
            processes = set(psutil.Process().children(recursive=True)) - before
            own = [process.memory_full_info().uss for process in processes]
            all_done.wait(60)
        finally:
            for thread in threads:
                thread.join(60)
        seconds = time.monotonic() - started
    assert failures == []
    assert all((root / "in" / str(batch("a"))).stat().st_size == 1000 for root in roots.values())
    assert len(own) == 51
    record_property("seconds", seconds)
    record_property("megabytes", sum(own) / 1e6)
    print(f"50 terminals: {seconds:.1f} s, {sum(own) / 1e6:.0f} MB in {len(own)} processes")
    assert sum(own) < 1_500_000_000


def test_a_login_that_breaks_is_not_a_refusal(tmp_path: Path) -> None:
    """Otherwise a bad line would be reported as a terminal that is not enrolled, and not tried again."""
    from tests.kit.wire import wire

    with serving(tmp_path) as server, wire(server) as broken:
        for packets in range(1, 9):
            broken.break_after(packets)
            with pytest.raises(TransitError):
                connect(server._replace(port=broken.endpoint.port))
            assert broken.broken == 1
