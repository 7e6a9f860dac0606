"""Real servers on loopback: the store's own SFTP server, OpenSSH's sshd, and a wire that can be cut.

    with embedded_server({"clinic": folder}, {"clinic": public_key_line}) as (host, port, host_key):
        with sftp.connect(host=host, port=port, user="clinic", key=key, host_key=host_key) as session: ...

OpenSSH knows only Unix accounts: there the user is `OPENSSH_USER` and the key picks the folder.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import keys

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
"""Path of OpenSSH's server, or None."""
OPENSSH_USER = pwd.getpwuid(os.getuid()).pw_name
_ROOT = Path(__file__).parents[2]


class Endpoint(NamedTuple):
    """Where a server listens, and its host key (`ssh-ed25519 AAAA…`)."""

    host: str
    port: int
    host_key: str


@contextmanager
def embedded_server(
    root_of_user: dict[str, Path],
    authorized: dict[str, str],
    *,
    fault: str = "",
    log: Path | None = None,
    host_key: Ed25519PrivateKey | None = None,
    **limits: float,
) -> Iterator[Endpoint]:
    """The store's server in a process of its own.

    Args:
        root_of_user: facility to its folder (with `in` and `out`; they are made if missing).
        authorized: facility to its public key line.
        fault: `fail-write:N`, `short-writes`, `fail-fsync`, `die-after-rename` (the session),
            `vanish-after-rename` (the server), `no-extensions` (a server of the bare draft), or one of
            `tests.kit.faulty`.
        log: file that gets the server's log.
        host_key: the server's key; a fresh one by default.
        limits: fields of `central_store.sftp_server.Limits`.
    """
    key = host_key or Ed25519PrivateKey.generate()
    plan = {
        "roots": {user: str(root) for user, root in root_of_user.items()},
        "keys": authorized,
        "host_key": keys.private_pem(key).decode(),
        "fault": fault,
        "limits": limits,
    }
    with (log or Path(os.devnull)).open("ab") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.servers"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
        )
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(plan).encode())
        process.stdin.close()
        try:
            line = process.stdout.readline()
            assert line, "the embedded server did not start"
            host, port = json.loads(line)
            yield Endpoint(host, port, keys.ssh_line(key.public_key()))
        finally:
            process.terminate()
            process.stdout.close()
            process.wait(20)


@contextmanager
def openssh_server(
    root_of_user: dict[str, Path], authorized: dict[str, str], *, host_key: Ed25519PrivateKey | None = None
) -> Iterator[Endpoint]:
    """OpenSSH's sshd with internal-sftp; each key starts in its facility's folder."""
    assert SSHD, "sshd is not installed"
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
    with TemporaryDirectory(prefix="sshd-") as folder:
        base = Path(folder)
        key = host_key or Ed25519PrivateKey.generate()
        (base / "host_key").write_bytes(keys.private_pem(key))
        (base / "host_key").chmod(0o600)
        lines = []
        for user, root in root_of_user.items():
            for name in ("in", "out"):
                (root / name).mkdir(parents=True, exist_ok=True)
            lines.append(f'restrict,command="internal-sftp -d {root}" {authorized[user]}\n')
        (base / "authorized_keys").write_text("".join(lines))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (base / "config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {base}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {base}/authorized_keys\nStrictModes no\n"
            "PermitRootLogin forced-commands-only\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
            "MaxStartups 100\nPrintMotd no\nUseDNS no\nLogLevel ERROR\n"
        )
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(base / "config")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, process)
            yield Endpoint("127.0.0.1", port, keys.ssh_line(key.public_key()))
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5) as probe:
            assert probe.recv(4) == b"SSH-"
            return
    raise AssertionError("sshd did not start")


@contextmanager
def cut_wire(target: Endpoint, *, up: int | None = None, down: int | None = None) -> Iterator[Endpoint]:
    """A wire to a server that breaks, once, after so many bytes up (to it) or down; whole after that."""
    listener = socket.create_server(("127.0.0.1", 0))
    breaks = [(up, down)]

    def carry() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            limits = breaks.pop() if breaks else (None, None)
            threading.Thread(target=_carry, args=(near, target, limits), daemon=True).start()

    threading.Thread(target=carry, daemon=True).start()
    try:
        yield target._replace(port=listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _carry(near: socket.socket, target: Endpoint, limits: tuple[int | None, int | None]) -> None:
    with near, socket.create_connection(target[:2]) as far, selectors.DefaultSelector() as selector:
        left = dict(zip((near, far), limits, strict=True))
        other = {near: far, far: near}
        for sock in other:
            selector.register(sock, selectors.EVENT_READ)
        with suppress(OSError):
            while True:
                for selected, _ in selector.select():
                    sock: Any = selected.fileobj
                    data = sock.recv(65536)
                    room = left[sock]
                    if room is not None:
                        data = data[:room]
                        left[sock] = room - len(data)
                    if not data:
                        return
                    other[sock].sendall(data)


# -- the embedded server's process -----------------------------------------------------------------


def _break(fault: str) -> None:
    """Make this process's system fail in one way: a fault, not a stand-in."""
    kind, _, number = fault.partition(":")
    real_write, real_rename, calls = os.pwrite, os.replace, [0]

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        calls[0] += 1
        if kind == "fail-write" and calls[0] == int(number):
            raise OSError(errno.ENOSPC, "no space left on device")
        return real_write(descriptor, data[: len(data) // 2 + 1] if kind == "short-writes" else data, offset)

    def replace(*args: Any, **named: Any) -> None:
        real_rename(*args, **named)
        if kind == "vanish-after-rename":
            os.kill(os.getppid(), signal.SIGKILL)
        if kind.endswith("after-rename"):
            os._exit(1)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    os.pwrite, os.replace = pwrite, replace
    if kind == "fail-fsync":
        os.fsync = fsync


def _main() -> None:
    import logging

    from central_store import sftp_server, sftp_session
    from tests.kit import faulty

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = json.load(sys.stdin)
    _break(plan["fault"])
    faulty.install(plan["fault"])
    if plan["fault"] == "no-extensions":
        sftp_session.EXTENSIONS = ()

    def shelf_of(user: str, line: str) -> Path | None:
        known = plan["keys"].get(user)
        return Path(plan["roots"][user]) if known is not None and keys.ssh_key(known) == line else None

    sftp_server.serve(
        host="127.0.0.1",
        port=0,
        host_key=plan["host_key"].encode(),
        shelf_of=shelf_of,
        ready=lambda address: print(json.dumps(address), flush=True),
        stop=threading.Event(),
        limits=sftp_server.Limits(**plan["limits"]),
    )


if __name__ == "__main__":
    _main()
