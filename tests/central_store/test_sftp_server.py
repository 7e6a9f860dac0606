"""The embedded SFTP server against real clients: who gets in, what they reach, what breaks.

Longer than others: all of it asks one server with the same few helpers.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import sftp_server
from central_store.sftp_files import Files
from central_store.sftp_quota import Quota
from central_store.sftp_session import Session
from schemas import keys
from schemas.errors import AccessDenied, FormatError, HostKeyError, OutcomeUnknown, SyncError, TransitError
from schemas.names import ShelfName
from schemas.transit import dial, sftp
from schemas.transit import sftp_packets as p
from tests.kit.servers import Endpoint, cut_wire, embedded_server

OURS, THEIRS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
AUTHORIZED = {"clinic": keys.ssh_line(OURS.public_key()), "hospital": keys.ssh_line(THEIRS.public_key())}
BATCH, REQUEST = ShelfName("a" * 64, "batch"), ShelfName("b" * 32, "request")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def log(place: Path) -> Path:
    return place / "log"


@pytest.fixture(scope="module")
def server(place: Path, log: Path) -> Iterator[Endpoint]:
    roots = {user: place / "shelves" / user for user in AUTHORIZED}
    with embedded_server(roots, AUTHORIZED, log=log, handles=8, login_seconds=5) as endpoint:
        yield endpoint


def connect(
    server: Endpoint, user: str = "clinic", key: Ed25519PrivateKey = OURS, timeout: float = 10
) -> sftp.SftpSession:
    host, port, host_key = server
    return sftp.connect(host=host, port=port, user=user, key=key, host_key=host_key, timeout=timeout)


@contextmanager
def stock_client(server: Endpoint) -> Iterator[paramiko.SFTPClient]:
    """paramiko's own client: one that does not know our rules, and not that one may be turned away.

    Sessions of the tests before, which were closed a moment ago, may still count.
    """
    until = time.monotonic() + 10
    while True:
        with paramiko.Transport((server.host, server.port)) as transport:
            transport.connect(username="clinic", pkey=dial.paramiko_key(OURS))
            try:
                client = paramiko.SFTPClient.from_transport(transport)
            except paramiko.ChannelException:
                if time.monotonic() > until:
                    raise
                continue
            assert client is not None
            yield client
            return


def put(session: sftp.SftpSession, data: bytes, name: ShelfName = BATCH) -> None:
    session.shelf("in").put(name, io.BytesIO(data), len(data))


# -- who gets in -----------------------------------------------------------------------------------


def test_another_host_key_is_never_spoken_to(server: Endpoint) -> None:
    wrong = server._replace(host_key=keys.ssh_line(Ed25519PrivateKey.generate().public_key()))
    with pytest.raises(HostKeyError):
        connect(wrong)


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ("clinic", THEIRS),
        ("hospital", OURS),
        ("nobody", OURS),
        ("../clinic", OURS),
        ("clinic\n", OURS),
        ("clinic", Ed25519PrivateKey.generate()),
    ],
)
def test_the_wrong_key_or_user_is_refused(server: Endpoint, user: str, key: Ed25519PrivateKey) -> None:
    with pytest.raises(AccessDenied):
        connect(server, user, key)


def test_passwords_other_keys_shells_and_tunnels_are_refused(server: Endpoint) -> None:
    for attempt in ("none", "password", "rsa"):
        with paramiko.Transport((server.host, server.port)) as transport:
            transport.start_client(timeout=10)
            with pytest.raises(paramiko.AuthenticationException):
                if attempt == "none":
                    transport.auth_none("clinic")
                elif attempt == "password":
                    transport.auth_password("clinic", "secret")
                else:
                    transport.auth_publickey("clinic", paramiko.RSAKey.generate(2048))
    with paramiko.Transport((server.host, server.port)) as transport:
        transport.connect(username="clinic", pkey=dial.paramiko_key(OURS))
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", server.port), ("127.0.0.1", 1))
    for ask in ("invoke_shell", "get_pty", "exec"):
        with paramiko.Transport((server.host, server.port)) as transport:
            transport.connect(username="clinic", pkey=dial.paramiko_key(OURS))
            channel = transport.open_session(timeout=10)
            with pytest.raises(paramiko.SSHException):
                channel.exec_command("id") if ask == "exec" else getattr(channel, ask)()


def test_nobody_listens(server: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TransitError):
        connect(server._replace(port=port))


def test_a_server_that_says_nothing_is_given_up(server: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TransitError):
        connect(server._replace(port=silent.getsockname()[1]), timeout=0.3)


def test_enrolment_counts_at_once_and_the_log_says_who(tmp_path: Path) -> None:
    with embedded_server(
        {"clinic": tmp_path}, {"clinic": AUTHORIZED["clinic"]}, log=tmp_path / "log"
    ) as server:
        with connect(server):
            pass
        with pytest.raises(AccessDenied):
            connect(server, "hospital", THEIRS)
    lines = (tmp_path / "log").read_text().splitlines()
    mine, other = (keys.fingerprint(AUTHORIZED[user]) for user in ("clinic", "hospital"))
    assert lines[0] == f"login facility=clinic key={mine} from=127.0.0.1"
    assert f"refused facility=hospital key={other} from=127.0.0.1" in lines
    assert not [line for line in lines if str(tmp_path) in line]


# -- what they reach -------------------------------------------------------------------------------


def test_a_facility_sees_only_its_own(server: Endpoint, place: Path) -> None:
    with connect(server) as session, connect(server, "hospital", THEIRS) as other:
        put(session, b"ours")
        assert other.shelf("in").names() == []
        assert other.shelf("in").size(BATCH) is None
        put(other, b"theirs, longer")
        assert session.shelf("in").size(BATCH) == 4
    assert (place / "shelves" / "hospital" / "in" / str(BATCH)).read_bytes() == b"theirs, longer"


ESCAPES = [
    "../hospital/in/x", "/../../etc/passwd", "in/../../hospital", "/etc/passwd", "in/..", "..", "out/../../x",
    "in//../..", f"in/{BATCH}/x", "in/.part", f"in/{BATCH}.part.part", f"in/{'a' * 64}.receipt.part",
    "in/a.txt.part",
    f"in/{'A' * 64}.batch.part", f"{BATCH}.part", f"out/{BATCH}.part", f"out/{'a' * 64}.receipt",
    f"in/{BATCH}", "in/\u00e9.part", f"in/{'a' * 300}.part", "in/",
]  # fmt: skip


@pytest.mark.parametrize("path", ESCAPES)
def test_no_other_path_can_be_written(server: Endpoint, place: Path, path: str) -> None:
    def tree() -> set[str]:
        return {str(found) for found in (place / "shelves").rglob("*")}

    with stock_client(server) as client:
        before = tree()
        with pytest.raises(OSError):
            client.open(path, "w")
        assert tree() == before


@pytest.mark.parametrize(
    "path", ["../hospital/in", "..", "/..", "in/../..", "/etc", "/etc/passwd", "in/../../x"]
)
def test_no_other_path_can_be_seen(server: Endpoint, path: str) -> None:
    with stock_client(server) as client:
        for look in (client.stat, client.lstat, client.listdir, client.open, client.remove):
            with pytest.raises(OSError):
                look(path)


def test_a_link_is_not_followed(server: Endpoint, place: Path) -> None:
    """Only the store's operator could make one; the server does not trust them either."""
    ours = place / "shelves" / "clinic"
    (place / "secret").write_text("secret")
    receipt = f"{'c' * 64}.receipt"
    (ours / "out").mkdir(parents=True, exist_ok=True)
    (ours / "out" / receipt).symlink_to(place / "secret")
    (ours / "in" / f"{'c' * 64}.batch.part").symlink_to(place / "secret")
    with stock_client(server) as client:
        assert receipt not in client.listdir("out")
        for path, mode in ((f"out/{receipt}", "r"), (f"in/{'c' * 64}.batch.part", "w")):
            with pytest.raises(OSError):
                client.open(path, mode)
        with pytest.raises(OSError):
            client.posix_rename(f"in/{'c' * 64}.batch.part", f"in/{'c' * 64}.batch")
    assert (place / "secret").read_text() == "secret"
    for path in (ours / "out" / receipt, ours / "in" / f"{'c' * 64}.batch.part"):
        path.unlink()


def test_what_is_not_for_a_facility_is_refused(server: Endpoint, place: Path) -> None:
    ours = place / "shelves" / "clinic"
    receipt = f"out/{'d' * 64}.receipt"
    with stock_client(server) as client:
        (ours / receipt).write_text("r")
        with client.open(f"in/{BATCH}.part", "w") as file:
            file.write(b"x")
            with pytest.raises(OSError):  # it is still being written
                client.posix_rename(f"in/{BATCH}.part", f"in/{BATCH}")
        for refused in (
            lambda: client.mkdir("in/x"),
            lambda: client.rmdir("in"),
            lambda: client.symlink("/etc/passwd", f"in/{BATCH}.part"),
            lambda: client.readlink("in"),
            lambda: client.chmod(receipt, 0o777),
            lambda: client.truncate(receipt, 0),
            lambda: client.open(receipt, "w"),
            lambda: client.open(f"in/{BATCH}.part", "r"),
            lambda: client.open(f"in/{BATCH}.part", "a"),
            lambda: client.rename(receipt, f"in/{BATCH}"),
            lambda: client.rename(f"in/{BATCH}.part", f"in/{'e' * 64}.batch"),
            lambda: client.posix_rename(f"in/{BATCH}.part", receipt),
        ):
            with pytest.raises(OSError):
                refused()
        client.posix_rename(f"in/{BATCH}.part", f"in/{BATCH}")
        with client.open(receipt) as file:
            assert file.read() == b"r"
        assert client.listdir(".") == ["in", "out"]
        assert client.normalize("in/./") == "/in"
    assert (ours / "in" / str(BATCH)).read_bytes() == b"x"


def test_limits_are_kept(tmp_path: Path) -> None:
    limits = {
        "handles": 3,
        "file_bytes": 1000,
        "sessions": 3,
        "login_seconds": 1,
        "waiting": 1,
        "attempts": 2,
    }
    log = tmp_path / "log"
    roots = {user: tmp_path / user for user in AUTHORIZED}
    with embedded_server(roots, AUTHORIZED, log=log, **limits) as server:
        with stock_client(server) as client:
            held = [client.open(f"in/{digit * 64}.batch.part", "w") for digit in "abc"]
            with pytest.raises(OSError):
                client.open(f"in/{'d' * 64}.batch.part", "w")
            assert len(held) == 3
        with connect(server) as session:
            with pytest.raises(TransitError):
                put(session, b"x" * 1001)
            put(session, b"x" * 1000)
            with socket.create_connection(server[:2]) as idler:
                assert idler.recv(4) == b"SSH-"
                with pytest.raises(TransitError):  # one connection may be waiting to log in, and it is there
                    connect(server)
                while idler.recv(1000):  # it is thrown out after a second
                    pass
        with paramiko.Transport((server.host, server.port)) as transport:
            transport.start_client(timeout=10)
            for _ in range(2):
                with pytest.raises(paramiko.SSHException):
                    transport.auth_publickey("clinic", dial.paramiko_key(THEIRS))
            transport.join(5)
            assert not transport.is_active()
    assert "too many connections" in log.read_text()
    assert "the login took too long" in log.read_text()


def test_a_silent_session_ends(tmp_path: Path) -> None:
    with (
        embedded_server(
            {"clinic": tmp_path}, AUTHORIZED | {"hospital": AUTHORIZED["clinic"]}, idle_seconds=1
        ) as server,
        stock_client(server) as client,
    ):
        channel = client.get_channel()
        assert channel is not None
        channel.settimeout(20)
        assert channel.recv(1) == b""


def test_another_sessions_file_is_not_published_in_our_name(server: Endpoint, place: Path) -> None:
    """A connection whose client gave up must not give the final name to what its successor is writing."""
    part = f"in/{'f' * 64}.batch.part"
    with stock_client(server) as first, stock_client(server) as second:
        with first.open(part, "w") as file:
            file.write(b"whole")
        second.remove(part)
        with second.open(part, "w") as file:
            file.write(b"half of")
            with pytest.raises(OSError):
                first.posix_rename(part, part.removesuffix(".part"))
            file.write(b" the second")
        second.posix_rename(part, part.removesuffix(".part"))
    assert (place / "shelves" / "clinic" / part.removesuffix(".part")).read_bytes() == b"half of the second"


def test_the_openssh_client_works(server: Endpoint, place: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(keys.private_pem(OURS))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "known").write_text(f"[{server.host}]:{server.port} {server.host_key}\n")
    (tmp_path / "file").write_bytes(os.urandom(2_000_000))
    ours = place / "shelves" / "clinic"
    (ours / "out" / f"{'9' * 64}.receipt").write_bytes(b"receipt")
    name = f"{'8' * 64}.batch"
    commands = f"put {tmp_path}/file in/{name}.part\nrename in/{name}.part in/{name}\nls -l in\n"
    commands += f"get out/{'9' * 64}.receipt {tmp_path}/receipt\ncd in\nls ..\npwd\n"
    done = subprocess.run(
        [
            "sftp", "-b", "-", "-i", tmp_path / "key", "-P", str(server.port), "-F", "none",
            "-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "StrictHostKeyChecking=yes",
            f"clinic@{server.host}",
        ],
        input=commands.encode(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ours / "in" / name).read_bytes() == (tmp_path / "file").read_bytes(), done.stderr
    assert (tmp_path / "receipt").read_bytes() == b"receipt"
    assert name.encode() in done.stdout


# -- what breaks -----------------------------------------------------------------------------------

PIECES = 6
DATA = os.urandom(p.MAX_DATA * (PIECES - 1) + 1000)


@pytest.mark.parametrize("position", range(1, PIECES + 1))
def test_a_failed_write_is_noticed_wherever_it_is(tmp_path: Path, position: int) -> None:
    with (
        embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE, fault=f"fail-write:{position}") as server,
        connect(server) as session,
    ):
        with pytest.raises(TransitError):
            put(session, DATA)
        assert list((tmp_path / "in").iterdir()) == []
        put(session, DATA)  # the fault was one write: the same session goes on
    assert (tmp_path / "in" / str(BATCH)).read_bytes() == DATA


AUTHORIZED_ONE = {"clinic": AUTHORIZED["clinic"]}


def test_short_writes_lose_nothing(tmp_path: Path) -> None:
    with (
        embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE, fault="short-writes") as server,
        connect(server) as session,
    ):
        put(session, DATA)
    assert (tmp_path / "in" / str(BATCH)).read_bytes() == DATA


def test_a_failed_fsync_is_not_success(tmp_path: Path) -> None:
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    with (
        embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE, fault="fail-fsync") as server,
        connect(server) as session,
        pytest.raises(TransitError),
    ):
        put(session, DATA)
    assert not (tmp_path / "in" / str(BATCH)).exists()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_a_cut_connection_leaves_nothing_under_the_name(server: Endpoint, place: Path, share: float) -> None:
    name = ShelfName("7" * 64, "batch")
    path = place / "shelves" / "clinic" / "in" / str(name)
    data = os.urandom(3_000_000)
    with cut_wire(server, up=int(len(data) * share)) as wire:
        with connect(wire) as session, pytest.raises(TransitError):
            put(session, data, name)
        assert not path.exists()
        with connect(wire) as session:  # the next round: the wire is whole again
            put(session, data, name)
    assert path.read_bytes() == data
    path.unlink()


def test_a_lost_answer_to_the_rename_is_looked_up(tmp_path: Path) -> None:
    with (
        embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE, fault="die-after-rename") as server,
        connect(server) as session,
    ):
        put(session, DATA)
        assert session.shelf("in").size(BATCH) == len(DATA)
    assert (tmp_path / "in" / str(BATCH)).read_bytes() == DATA


def test_an_answer_that_cannot_be_looked_up_is_unknown(tmp_path: Path) -> None:
    with (
        embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE, fault="vanish-after-rename") as server,
        connect(server) as session,
        pytest.raises(OutcomeUnknown),
    ):
        put(session, DATA)
    assert (tmp_path / "in" / str(BATCH)).read_bytes() == DATA


def test_stopping_the_server_ends_its_sessions(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE) as server:
        session = connect(server)
        processes = list(set(psutil.Process().children(recursive=True)) - before)
        assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    with pytest.raises(TransitError):
        session.shelf("in").names()
    session.close()


def test_a_killed_server_leaves_no_session_behind(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with embedded_server({"clinic": tmp_path}, AUTHORIZED_ONE) as server, connect(server) as session:
        processes = set(psutil.Process().children(recursive=True)) - before
        parent = min(processes, key=lambda process: process.create_time())
        parent.kill()
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        with pytest.raises(TransitError):
            session.shelf("in").names()
        with socket.create_server((server.host, server.port)):  # the address is free again
            pass


def test_a_process_with_threads_cannot_serve() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError):
            sftp_server.serve(
                host="127.0.0.1",
                port=0,
                host_key=OURS,
                shelf_of=lambda _user, _key: None,
                ready=lambda _address: pytest.fail("it must not start"),
                stop=release,
            )
    finally:
        release.set()
        thread.join()


def test_a_large_file_costs_little_memory(tmp_path: Path) -> None:
    size = 300_000_000
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    with (
        embedded_server({"clinic": tmp_path / "shelf"}, AUTHORIZED_ONE) as server,
        connect(server) as session,
    ):
        child = max(psutil.Process().children(recursive=True), key=lambda process: process.create_time())
        peak = 0

        def watch(_moved: int) -> None:
            nonlocal peak
            peak = max(peak, child.memory_info().rss, psutil.Process().memory_info().rss - own)

        own = psutil.Process().memory_info().rss
        with (tmp_path / "large").open("rb") as source:
            session.shelf("in").put(BATCH, source, size, watch)
        (tmp_path / "shelf" / "in" / str(BATCH)).rename(tmp_path / "shelf" / "out" / f"{'a' * 64}.receipt")
        with Path(os.devnull).open("wb") as sink:
            session.shelf("out").get(ShelfName("a" * 64, "receipt"), sink, size, watch)
    assert peak < 200_000_000


def test_two_sessions_in_two_threads(server: Endpoint, place: Path) -> None:
    failures: list[BaseException] = []

    def work(user: str, key: Ed25519PrivateKey, data: bytes) -> None:
        try:
            with connect(server, user, key) as session:
                for _ in range(3):
                    put(session, data, REQUEST)
                    data += b"+"
        except BaseException as error:
            failures.append(error)

    jobs = [("clinic", OURS, DATA), ("hospital", THEIRS, DATA[::-1])]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for user, _, data in jobs:
        assert (place / "shelves" / user / "in" / str(REQUEST)).read_bytes() == data + b"++"


# -- hostile bytes ---------------------------------------------------------------------------------


def test_whatever_the_bytes_only_our_errors(tmp_path: Path) -> None:
    from hypothesis import given
    from hypothesis import strategies as st

    kinds = st.sampled_from([*range(1, 21), 200, 255])
    handles = st.integers(0, 5).map(lambda n: p.string(struct.pack(">I", n)))
    paths = st.sampled_from(
        ["in", "out", "..", ".", "/in/..", f"in/{BATCH}.part", f"in/{BATCH}", "out/\0", "x" * 999]
    )
    words = st.sampled_from([p.POSIX_RENAME, p.FSYNC, p.LIMITS, b"statvfs@openssh.com"])
    field = st.one_of(
        handles, paths.map(lambda text: p.string(text.encode())), words.map(p.string), st.binary(max_size=40),
        st.integers(0, 2**32 - 1).map(p.u32), st.integers(0, 2**64 - 1).map(p.u64),
    )  # fmt: skip
    packets = st.lists(st.tuples(kinds, st.lists(field, max_size=5)), max_size=12)

    @given(packets)
    def attack(requests: list[tuple[int, list[bytes]]]) -> None:
        quota = Quota(bytes=1 << 20, files=100, reserve=0)
        files = Files(tmp_path / "shelf", max_handles=4, max_file=10_000, quota=quota)
        session = Session(files, 4)
        session.answer(p.version_packet(p.INIT)[4:])
        try:
            for number, (kind, fields) in enumerate(requests):
                answer = session.answer(p.packet(kind, number, *fields)[4:])
                assert int.from_bytes(answer[5:9], "big") == number
        except FormatError:
            pass  # malformed: the conversation ends
        finally:
            files.close_all()
        assert {path.name for path in tmp_path.iterdir()} <= {"shelf"}
        assert {path.name for path in (tmp_path / "shelf").iterdir()} == {"in", "out"}

    attack()


def test_a_hostile_server_cannot_surprise_the_client() -> None:
    from hypothesis import given
    from hypothesis import strategies as st

    from schemas.transit.pump import Pump

    class Canned:
        """The bytes of a server, as they come."""

        def __init__(self, data: bytes) -> None:
            self.data = data

        def recv(self, nbytes: int) -> bytes:
            piece, self.data = self.data[:nbytes], self.data[nbytes:]
            return piece

        def send(self, s: Any) -> int:
            return len(s)

        def settimeout(self, timeout: float) -> None:
            pass

    hello = p.version_packet(p.VERSION_REPLY, [(p.LIMITS, b"1")])
    answers = st.tuples(
        st.sampled_from([101, 102, 103, 104, 105, 201]), st.integers(4, 9), st.binary(max_size=60)
    )
    streams = st.one_of(
        st.binary(max_size=200),
        st.lists(answers, max_size=8).map(lambda found: hello + b"".join(p.packet(*one) for one in found)),
    )

    @given(streams, st.sampled_from(["get", "put", "names", "size"]))
    def listen(stream: bytes, what: str) -> None:
        try:
            pump = Pump(Canned(stream), 1)
            link: Any = type("Link", (), {"pump": pump, "close": lambda self: None})()
            shelf = sftp.SftpSession(lambda: link).shelf("out")
            if what == "get":
                shelf.get(BATCH, io.BytesIO(), 1000)
            elif what == "put":
                shelf.put(BATCH, io.BytesIO(b"x"), 1)
            elif what == "names":
                shelf.names()
            else:
                shelf.size(BATCH)
        except SyncError:
            pass

    listen()
