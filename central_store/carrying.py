"""The process that dials the peers, beside the service, as `central_store.serving` starts it.

Guarantees: it ends when the service's end of the pipe closes; a peer that was added or removed counts after a
few seconds. Log lines, nothing else, say what goes wrong: the service does not depend on it.

Leaves to others: what is carried (`central_store.carry`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from central_store import logs, peers
from central_store.peers import Peer
from central_store.settings import Store, open_store

LOOK_SECONDS = 2.0
"""Between looks at which peers there are."""


def run(root: Path, pipe: Connection, level: int) -> None:
    """Dial every peer that is to be dialled, until the pipe closes."""
    logs.log_to_stderr(level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides
    store = open_store(root)
    running: dict[Peer, list[threading.Thread]] = {}
    stops: dict[Peer, threading.Event] = {}
    try:
        while not pipe.poll(LOOK_SECONDS):
            wanted = {peer for peer in peers.everyone(store.layout) if peer.dial}
            for peer in set(running) - wanted:
                stops.pop(peer).set()
                del running[peer]
            for peer in wanted - set(running):
                stops[peer] = threading.Event()
                running[peer] = start(store, peer, stops[peer])
    finally:
        for stop in stops.values():
            stop.set()


def start(store: Store, peer: Peer, stopping: threading.Event) -> list[threading.Thread]:
    """Threads that carry to and from one peer until told to stop."""
    from central_store import carry  # paramiko: only where there is a peer to dial

    count, rate = store.settings.replicate_streams, carry.Rate(store.settings.replicate_kib_s * 1024)
    streams = [carry.Stream(store, replace(peer), number, count, rate) for number in range(count)]
    threads = [threading.Thread(target=one.run, args=(stopping,), daemon=True) for one in streams]
    for thread in threads:
        thread.start()
    return threads


@contextmanager
def carrying(store: Store, found: list[Peer]) -> Iterator[Callable[[], bool]]:
    """Dial these peers while the block runs; gives a function that says whether anybody still tries."""
    stopping = threading.Event()
    threads = [thread for peer in found for thread in start(store, peer, stopping)]
    try:
        yield lambda: any(thread.is_alive() for thread in threads)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(10)
