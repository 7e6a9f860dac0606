"""The process of the embedded SFTP server, as `central_store.serving` starts it.

Guarantees: it ends when the service's end of the pipe closes, however that came about; whoever logs in
reaches the shelf of the facility whose enrolled key they hold, and new enrolments count at once. It loads
neither DuckDB nor anything else of the service: every connection is a fork of it.

Leaves to others: SFTP (`central_store.sftp_server`).
"""

from __future__ import annotations

import functools
import typing
from multiprocessing.connection import Connection
from pathlib import Path

from central_store import facilities, logs, peers
from central_store.layout import Layout
from central_store.settings import Settings, open_store
from schemas.names import facility_name

if typing.TYPE_CHECKING:  # paramiko is for this process, not for the one that starts it
    from central_store.sftp_server import Limits

_MIB = 1 << 20


def shelf_of(layout: Layout, user: str, key: str) -> Path | None:
    """The shelf of the facility, or the peer, whose enrolled key this is, or None."""
    name = facility_name(user)
    card, peer = facilities.load(layout, name), peers.load(layout, name)
    known = card.ssh_key if card else peer.card.signing_key if peer else None
    return layout.shelves / name if known == key else None


def limits_of(settings: Settings) -> Limits:
    """What the operator allows."""
    from central_store.sftp_server import Limits

    return Limits(
        sessions=settings.sessions,
        facility_sessions=settings.facility_sessions,
        waiting=settings.waiting_logins,
        login_seconds=settings.login_seconds,
        idle_seconds=settings.idle_seconds,
        packet_seconds=settings.packet_seconds,
        attempts=settings.key_attempts,
        failed_logins=settings.failed_logins,
        pause_seconds=settings.pause_seconds,
        handles=settings.open_files,
        file_bytes=settings.file_mib * _MIB,
        shelf_bytes=settings.shelf_mib * _MIB,
        shelf_files=settings.shelf_files,
        reserve_bytes=settings.reserve_mib * _MIB,
    )


class _Closed:
    """Set when the other end of the pipe is gone."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def is_set(self) -> bool:
        return self._pipe.poll()


def run(root: Path, address: tuple[str, int], pipe: Connection, level: int) -> None:
    """Serve at `address`; tells the address in use, or what is wrong, through the pipe."""
    from central_store import sftp_server

    logs.log_to_stderr(level)
    store = open_store(root)
    try:
        sftp_server.serve(
            host=address[0],
            port=address[1],
            host_key=store.keys.host,
            shelf_of=functools.partial(shelf_of, store.layout),
            ready=pipe.send,
            stop=_Closed(pipe),
            limits=limits_of(store.settings),
        )
    except BrokenPipeError:
        return  # the service is gone: nobody to serve for
    except OSError as error:
        pipe.send(f"cannot listen on {address[0]} port {address[1]}: {error.strerror}")
