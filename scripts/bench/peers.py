"""What people use instead, over the same sshd with the same cipher: restic, rclone, and sftp with a tar."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import measure
import sshd


class Road(NamedTuple):
    """How to reach the server."""

    server: sshd.Server
    key: Path
    place: Path


class Outcome(NamedTuple):
    """Costs of putting and, where the tool is compared in it, of getting back; files to compare, if any."""

    put: measure.Cost
    get: measure.Cost | None
    fetched: Path | None


@contextmanager
def road(work: Path) -> Iterator[Road]:
    """A server with a fresh host key and user key."""
    place = work / "remote"
    place.mkdir(parents=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True)
    with sshd.serve(work / "sshd", work / "host_key", {(work / "user_key.pub").read_text(): place}) as server:
        yield Road(server, work / "user_key", place)


def _ssh(road: Road) -> list[str]:
    return ["-F", "none", "-o", f"UserKnownHostsFile={road.server.known_hosts}", "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes", "-c", sshd.CIPHER, "-i", str(road.key)]  # fmt: skip


def sftp_command(road: Road) -> str:
    """What restic runs to reach the server."""
    words = ["ssh", "-p", str(road.server.port), *_ssh(road), f"{sshd.USER}@127.0.0.1", "-s", "sftp"]
    return " ".join(words)


def _restic(work: Path, source: Path, compression: str) -> Outcome:
    with road(work) as where:
        secret = {"RESTIC_PASSWORD": secrets.token_urlsafe(16), "RESTIC_CACHE_DIR": str(work / "cache")}
        words = [
            "restic",
            "-q",
            "-r",
            f"sftp:{sshd.USER}@127.0.0.1:{where.place}/repo",
            "-o",
            f"sftp.command={sftp_command(where)}",
        ]
        servers = [where.server.pid]
        measure.run([*words, "init", "--repository-version", "2"], env=secret)
        put = measure.run(
            [*words, "--compression", compression, "backup", "."], env=secret, servers=servers, cwd=source
        )
        fetched = work / "fetched"
        get = measure.run([*words, "restore", "latest", "--target", fetched], env=secret, servers=servers)
    return Outcome(put, get, fetched)


def _rclone(work: Path, source: Path) -> Outcome:
    with road(work) as where:
        flags: list[str | Path] = ["--sftp-host", "127.0.0.1", "--sftp-port", str(where.server.port),
                 "--sftp-user", sshd.USER, "--sftp-key-file", where.key,
                 "--sftp-known-hosts-file", where.server.known_hosts,
                 "--sftp-shell-type", "none", "--sftp-disable-hashcheck", "--config", os.devnull]  # fmt: skip
        put = measure.run(
            ["rclone", "-q", "copy", source, f":sftp:{where.place}/copy", *flags], servers=[where.server.pid]
        )
    return Outcome(put, None, where.place / "copy")


def _sftp(work: Path, source: Path) -> Outcome:
    with road(work) as where:
        tar = work / "all.tar"
        made = measure.run(["tar", "-C", source, "-cf", tar, "."])
        put = measure.run(
            ["sftp", "-q", "-b", "-", "-P", str(where.server.port), *_ssh(where), f"{sshd.USER}@127.0.0.1"],
            servers=[where.server.pid],
            stdin=f"put {tar} {where.place}/all.tar\n",
        )
        arrived = where.place / "all.tar"
        if arrived.stat().st_size != tar.stat().st_size:
            raise measure.CommandFailed("the tar arrived with another size")
    return Outcome(made + put, None, None)


PEERS: dict[str, tuple[str, Callable[[Path, Path], Outcome]]] = {
    "restic": ("restic", lambda work, source: _restic(work, source, "auto")),
    "restic, compression off": ("restic", lambda work, source: _restic(work, source, "off")),
    "rclone copy": ("rclone", _rclone),
    "tar + sftp put": ("sftp", _sftp),
}
"""Label to the program it needs and the run."""


def installed() -> list[str]:
    """Labels of the peers this machine has."""
    if sshd.SSHD is None or shutil.which("ssh-keygen") is None:
        return []
    return [label for label, (program, _) in PEERS.items() if shutil.which(program)]
