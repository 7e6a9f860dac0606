"""`fstore serve`: the SFTP server in a process of its own beside the service in this one.

Guarantees: `ready` is called once both work; SIGTERM or Ctrl-C ends both within a second or two; if one
ends by itself the other does too, and `serve` raises. The SFTP process ends with this one even if this
one is killed: the pipe between them closes.

Leaves to others: SFTP (`central_store.sftp_server`), the loop (`central_store.service`).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from central_store import audit, carrying, peers, sftp_process
from central_store.service import Clock, Counts, Service
from central_store.settings import Store
from schemas.errors import SettingsError, TransitError

Address = tuple[str, int]


def serve(
    store: Store, clock: Clock, *, address: Address | None, ready: Callable[[Address | None], None]
) -> Counts:
    """Serve until SIGTERM or SIGINT; dial the peers meanwhile.

    Args:
        store: an opened store.
        clock: its time.
        address: where the SFTP server listens; None for a store behind another SFTP server.
        ready: called with the address in use.

    Raises:
        Busy: another process serves this store.
        SettingsError: the address cannot be used.
        TransitError: the SFTP server ended by itself.
    """
    service = Service(store, clock)

    def started(used: Address | None) -> None:
        audit.record(store.layout, "start", details=audit.operator())
        ready(used)

    with _stopping(service):
        if address is None:
            with _carrying(store):
                counts = service.run(lambda: started(None))
        else:
            with _carrying(store), _sftp(store.layout.root, address, service) as used:
                counts = service.run(lambda: started(used()))
    audit.record(store.layout, "stop", details=audit.operator())
    return counts


@contextmanager
def _stopping(service: Service) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        service.stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _carrying(store: Store) -> Iterator[None]:
    """A process that dials the peers, from when there is one to dial; begun again should it end by itself."""
    stopping = threading.Event()
    thread = threading.Thread(target=_keep_carrying, args=(store, stopping), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _keep_carrying(store: Store, stopping: threading.Event) -> None:
    context = get_context("spawn")
    level = logging.getLogger().level
    with ExitStack() as stack:
        process = None
        while not stopping.is_set():
            alive = process is not None and process.is_alive()
            if not alive and any(peer.dial for peer in peers.everyone(store.layout)):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=carrying.run, args=(store.layout.root, theirs, level), name="peers", daemon=True
                )
                process.start()
                theirs.close()
                stack.callback(_end, process, ours)
            stopping.wait(carrying.LOOK_SECONDS)


def _end(process: BaseProcess, ours: Connection) -> None:
    """It ends when our end of the pipe closes."""
    ours.close()
    process.join(6)
    if process.is_alive():
        process.kill()


@contextmanager
def _sftp(root: Path, address: Address, service: Service) -> Iterator[Callable[[], Address]]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    level = logging.getLogger().level
    process = context.Process(target=sftp_process.run, args=(root, address, theirs, level), name="sftp")
    process.start()
    theirs.close()

    def used() -> Address:
        try:
            answer = ours.recv()
        except EOFError:
            raise TransitError("the SFTP server did not start", hint="Its log line says why.") from None
        if isinstance(answer, str):
            raise SettingsError(answer, hint="Choose another --host or --port.")
        host, port = answer
        return host, port

    def guard() -> None:
        process.join()
        service.stop()

    watcher = threading.Thread(target=guard, daemon=True)
    watcher.start()
    try:
        yield used
        if not process.is_alive():
            raise TransitError("the SFTP server ended by itself", hint="Its log lines say why.")
    finally:
        ours.close()
        watcher.join(6)
        if process.is_alive():
            process.kill()
