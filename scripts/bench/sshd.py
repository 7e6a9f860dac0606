"""OpenSSH's sshd on loopback, for everybody alike: one cipher, each key in its own folder."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CIPHER = "aes128-gcm@openssh.com"
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
USER = pwd.getpwuid(os.getuid()).pw_name


class Server(NamedTuple):
    """A server that listens, and the files a client needs to trust it."""

    pid: int
    port: int
    known_hosts: Path


def free_port() -> int:
    """A port nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def serve(folder: Path, host_key: Path, start: Mapping[str, Path]) -> Iterator[Server]:
    """Serve until the block ends.

    Args:
        folder: for its configuration.
        host_key: private key file, Ed25519.
        start: public key line to the folder where its owner's sftp session starts.
    """
    assert SSHD, "sshd is not installed"
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "authorized_keys").write_text(
        "".join(
            f'restrict,command="internal-sftp -d {place}" {key.strip()}\n' for key, place in start.items()
        )
    )
    port = free_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin forced-commands-only\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
        f"Ciphers {CIPHER}\nMaxStartups 100\nPrintMotd no\nUseDNS no\nLogLevel ERROR\n"
    )
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", host_key], check=True, capture_output=True, text=True
    ).stdout
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {public}")
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "config"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield Server(process.pid, port, known)
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as probe:
                if probe.recv(4) == b"SSH-":
                    return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RuntimeError("sshd did not start")
