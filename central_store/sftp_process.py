"""The process of the embedded SFTP server, as `central_store.serving` starts it.

Guarantees: it ends when the service's end of the pipe closes, however that came about; whoever logs in
reaches the shelf of the facility whose enrolled key they hold, and new enrolments count at once. It loads
neither DuckDB nor anything else of the service: every connection is a fork of it.

Leaves to others: SFTP (`central_store.sftp_server`).
"""

from __future__ import annotations

import functools
from multiprocessing.connection import Connection
from pathlib import Path

from central_store import facilities, logs
from central_store.layout import Layout
from central_store.settings import open_store
from schemas.container import MAX_CONTENT
from schemas.envelope import sealed_size
from schemas.names import facility_name

_LARGEST = sealed_size(MAX_CONTENT, 64 * 1024)


def shelf_of(layout: Layout, user: str, key: str) -> Path | None:
    """The shelf of the facility whose enrolled key this is, or None."""
    card = facilities.load(layout, facility_name(user))
    if card is None or card.ssh_key != key:
        return None
    return layout.shelves / card.facility


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
            limits=sftp_server.Limits(file_bytes=_LARGEST),
        )
    except BrokenPipeError:
        return  # the service is gone: nobody to serve for
    except OSError as error:
        pipe.send(f"cannot listen on {address[0]} port {address[1]}: {error.strerror}")
