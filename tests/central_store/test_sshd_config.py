"""`fstore sshd-config`: sshd takes exactly what is printed; a terminal does its work and nothing else."""

from __future__ import annotations

import io
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import sshd_config
from central_store.layout import Layout
from central_store.settings import Settings
from schemas import keys, names
from schemas.errors import AccessDenied, SettingsError, TransitError
from schemas.names import ShelfName
from schemas.transit import dial, pump, sftp
from tests.contracts.test_resume import Mark
from tests.kit.batches import Facility
from tests.kit.servers import SSHD, Endpoint, _wait_for
from tests.kit.site import call

OURS, THEIRS = Facility("clinic-a"), Facility("hospital-b")
ACCOUNTS = ("games", "man")  # accounts every Debian has, with no shell and no password
RECEIPT, BATCH = ShelfName("c" * 64, "receipt"), ShelfName("a" * 64, "batch")

needs_sshd = pytest.mark.skipif(SSHD is None, reason="sshd is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def make_store(folder: Path) -> Path:
    root = folder / "store"
    assert call("fstore", "--root", root, "init", "--host", "127.0.0.1").status == 0
    for who in (OURS, THEIRS):
        (folder / "card").write_bytes(who.card.to_bytes())
        assert call("fstore", "--root", root, "enrol", folder / "card").status == 0
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"))


def printed(root: Path, *words: str) -> str:
    pairs = zip(("clinic-a", "hospital-b"), ACCOUNTS, strict=True)
    options = [word for facility, account in pairs for word in ("--account", f"{facility}={account}")]
    done = call("fstore", "--root", root, "sshd-config", *options, *words)
    assert done.status == 0, done.err
    return done.out


def effective(config: Path, user: str) -> dict[str, str]:
    """What sshd makes of it for a user."""
    assert SSHD is not None
    done = subprocess.run(
        [SSHD, "-T", "-f", config, "-C", f"user={user},host=h,addr=192.0.2.1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nsupported" not in done.stderr
    assert "Deprecated" not in done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@needs_sshd
def test_sshd_accepts_it_and_understands_what_we_mean(store: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (tmp_path / "config").write_text(printed(store))
    for user, facility in zip(ACCOUNTS, ("clinic-a", "hospital-b"), strict=True):
        found = effective(tmp_path / "config", user)
        assert found["chrootdirectory"] == str(store / "shelves" / facility)
        assert found["forcecommand"] == sshd_config.COMMAND
        assert found["authorizedkeysfile"] == str(store / "authorized_keys" / facility)
        assert found["maxsessions"] == "1"
        assert found["disableforwarding"] == found["strictmodes"] == "yes"
        for no in ("permittty", "allowtcpforwarding", "passwordauthentication", "permitrootlogin"):
            assert found[no] == "no"
        assert found["authenticationmethods"] == "publickey"
        assert found["channeltimeout"] == "session:*=600"
    stranger = effective(tmp_path / "config", "nobody")
    assert stranger["authorizedkeysfile"] == "none"


def test_the_allowed_requests_exist_and_no_more_than_that_is_allowed() -> None:
    tool = shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh")
    if tool is None:
        pytest.skip("no sftp-server on this machine")
    known = subprocess.run(
        [tool, "-Q", "requests"], capture_output=True, text=True, check=True
    ).stdout.split()
    allowed = sshd_config.REQUESTS.split(",")
    assert set(allowed) <= set(known)
    for never in ("setstat", "mkdir", "symlink", "readlink", "hardlink", "copy-data", "rename"):
        assert never not in allowed


def test_keys_are_restricted_and_follow_the_enrolment(store: Path, tmp_path: Path) -> None:
    root = shutil.copytree(store, tmp_path / "store")
    printed(root)
    file = root / "authorized_keys" / "clinic-a"
    line = file.read_text()
    assert line == f'restrict,command="{sshd_config.COMMAND}" {OURS.card.ssh_key} clinic-a\n'
    (tmp_path / "new").write_bytes(Facility("clinic-a").card.to_bytes())
    assert call("fstore", "--root", root, "enrol", tmp_path / "new", "--replace-key").status == 0
    assert file.read_text() != line
    assert OURS.card.ssh_key not in file.read_text()


@pytest.mark.parametrize("account", ["a b", "a,b", "*", "a\nMatch all", "!a", 'a"', "a@h"])
def test_what_sshd_would_read_otherwise_is_refused(account: str) -> None:
    owner = sshd_config.Owner(name="store", uid=1, gid=1)
    made = Settings(name="a", host="h", port=1)
    with pytest.raises(SettingsError):
        sshd_config.config(
            Layout(Path("/srv/store")), made, {names.facility_name("a"): account}, owner, port=22
        )
    with pytest.raises(SettingsError):
        sshd_config.config(Layout(Path("/srv/a b")), made, {}, owner, port=22)
    both = {names.facility_name("a"): "x", names.facility_name("b"): "x"}
    with pytest.raises(SettingsError):
        sshd_config.config(Layout(Path("/srv/store")), made, both, owner, port=22)


def test_an_account_of_nobody_is_a_wrong_command_line(store: Path) -> None:
    for wrong in ("clinic-z=x", "clinic-a"):
        assert call("fstore", "--root", store, "sshd-config", "--account", wrong).status == 2
    found = call("fstore", "--root", store, "sshd-config", "--json").json
    assert found["accounts"]["clinic-a"] == "clinic-a"


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Endpoint, Path]]:
    """The store's root below folders of root's own, as a chroot needs; done as the printed comment says."""
    if SSHD is None or os.getuid() != 0:
        pytest.skip("a chroot needs sshd and root")
    try:
        for account in ACCOUNTS:
            pwd.getpwnam(account)
        folder = Path(mkdtemp(dir="/run", prefix="fstore-"))
    except (KeyError, OSError):
        pytest.skip("a chroot needs a folder of root's and accounts")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    try:
        folder.chmod(0o755)
        root, port = make_store(folder), free_port()
        text = printed(root, "--listen", "127.0.0.1", "--port", str(port))
        (folder / "config").write_text(text)
        # the comment's commands; only useradd is replaced: these accounts are there, with ids of their own
        for line in re.findall(r"^#   (.*)$", text, re.MULTILINE):
            if not line.startswith("useradd"):
                subprocess.run(["sh", "-ec", line], check=True)
        for account, facility in zip(ACCOUNTS, ("clinic-a", "hospital-b"), strict=True):
            for name in ("in", "out"):
                os.chown(root / "shelves" / facility / name, pwd.getpwnam(account).pw_uid, -1)
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "config"],
            stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"),
        )  # fmt: skip
        try:
            _wait_for(port, process)
            host_key = keys.ssh_line(
                keys.load_private((root / "keys" / "host_key").read_bytes()).public_key()
            )
            yield Endpoint("127.0.0.1", port, host_key), root
        finally:
            process.terminate()
            process.wait(20)
    finally:
        shutil.rmtree(folder)


def connect(server: Endpoint, user: str = "games", key: Ed25519PrivateKey = OURS.key) -> sftp.SftpSession:
    return sftp.connect(
        host=server.host, port=server.port, user=user, key=key, host_key=server.host_key, timeout=10
    )


def test_a_terminal_does_its_work(server: tuple[Endpoint, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, root = server
    shelf = root / "shelves" / "clinic-a"
    data = os.urandom(1_000_000)
    monkeypatch.setattr(pump, "CHECKPOINT", 256 * 1024)
    monkeypatch.setattr(pump, "CHECKPOINT_SECONDS", 0)
    with connect(endpoint) as session:
        session.shelf("in").put(BATCH, io.BytesIO(data), len(data))
        assert (shelf / "in" / str(BATCH)).read_bytes() == data
        assert (shelf / "in" / str(BATCH)).stat().st_mode & 0o077 == 0
        assert session.shelf("in").names() == [BATCH]
        (shelf / "out" / str(RECEIPT)).write_bytes(b"receipt")
        sink = io.BytesIO()
        session.shelf("out").get(RECEIPT, sink, 100)
        assert sink.getvalue() == b"receipt"
        session.shelf("out").remove(RECEIPT)
        assert session.shelf("out").names() == []
        part = shelf / "in" / f"{'d' * 64}.batch.part"
        part.write_bytes(data[:600_000])
        os.chown(part, pwd.getpwnam("games").pw_uid, -1)
        moved: list[int] = []
        mark = Mark(512 * 1024)
        session.shelf("in").put(ShelfName("d" * 64, "batch"), io.BytesIO(data), len(data), moved.append, mark)
        assert sum(moved) == len(data) - 512 * 1024


def test_it_does_nothing_else(server: tuple[Endpoint, Path]) -> None:
    endpoint, root = server
    (root / "shelves" / "hospital-b" / "in" / str(BATCH)).write_bytes(b"theirs")
    with paramiko.Transport(endpoint[:2]) as transport:
        transport.connect(username="games", pkey=dial.paramiko_key(OURS.key))
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        assert sorted(client.listdir("/")) == ["in", "out"]
        for path in ("/etc/passwd", "../../hospital-b/in", f"/../hospital-b/in/{BATCH}", str(root)):
            with pytest.raises(OSError):
                client.stat(path)
        with client.open("in/x", "w") as file:
            file.write(b"x")
        for refused in (
            lambda: client.mkdir("in/y"),
            lambda: client.symlink("/etc/passwd", "in/y"),
            lambda: client.chmod("in/x", 0o777),
            lambda: client.truncate("in/x", 0),
            lambda: client.rename("in/x", "in/y"),
            lambda: client.rmdir("in"),
            lambda: client.open("/x", "w"),
        ):
            with pytest.raises(OSError):
                refused()
        client.remove("in/x")
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", endpoint.port), ("127.0.0.1", 1))
        with pytest.raises(paramiko.ChannelException):  # MaxSessions 1
            transport.open_session(timeout=10)
    with paramiko.Transport(endpoint[:2]) as transport:
        transport.connect(username="games", pkey=dial.paramiko_key(OURS.key))
        channel = transport.open_session(timeout=10)
        with pytest.raises(paramiko.SSHException):
            channel.get_pty()
    with paramiko.Transport(endpoint[:2]) as transport:
        transport.connect(username="games", pkey=dial.paramiko_key(OURS.key))
        channel = transport.open_session(timeout=10)
        channel.settimeout(10)
        channel.exec_command("id")  # ForceCommand: sftp answers instead, and knows no such packet
        assert b"uid=" not in channel.recv(1000)


def test_nobody_else_gets_in(server: tuple[Endpoint, Path]) -> None:
    endpoint, _ = server
    for user, key in (("games", THEIRS.key), ("man", OURS.key), ("root", OURS.key), ("nobody", OURS.key)):
        with pytest.raises(AccessDenied):
            connect(endpoint, user, key)
    with paramiko.Transport(endpoint[:2]) as transport:
        transport.start_client(timeout=10)
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_password("games", "x")
    with pytest.raises(TransitError):
        connect(endpoint._replace(port=free_port()))
    with connect(endpoint, "man", THEIRS.key) as session:
        assert session.shelf("out").names() == []
