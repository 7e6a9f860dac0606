"""The store's own SFTP server: one command, nothing to configure, one process for each connection.

Guarantees: a facility sees its own `in` and `out` as the whole file system; a connection that misbehaves
costs at most its own process, which has limits on time, handles and memory; one facility cannot take the
sessions of the others, nor fill their disk; an address that fails to log in again and again has to pause;
when the server is told to stop, or dies, no process of it stays behind.

What counts over connections is counted in the parent. A child tells it through a socket of packets: `-` a
login failed, `+NAME` that facility wants a session (answered `y` or `n`), `.` its client said something,
and its end.

The parent accepts, and forks before any thread exists in it (`serve` refuses to start otherwise): a child
needs no import and is there in milliseconds, and OpenSSL and paramiko start fresh in it. Connections do
not share an interpreter, so they do not wait for each other's cryptography.

Leaves to others: SSH (paramiko), who is enrolled (`shelf_of`), what the files mean (`ingest`).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store.sftp_addresses import Addresses
from central_store.sftp_files import Files
from central_store.sftp_login import Login, ShelfOf, log
from central_store.sftp_quota import Quota
from central_store.sftp_session import Session
from schemas.errors import FormatError
from schemas.transit.dial import paramiko_key, prefer, set_socket
from schemas.transit.ssh import paramiko

WINDOW = 16 * 1024 * 1024
"""Bytes a client may send ahead: 125 MB/s at a round trip of 130 ms."""
SSH_PACKET = 256 * 1024
_LOOK = 0.25  # seconds between looks at `stop`
_PULSE = 0.2  # seconds: how precisely the parent knows when a client last said something
_WORDS = 256  # bytes: the longest thing a child says to the parent
_GRACE = 5.0  # seconds children have to end before they are killed


@dataclass(frozen=True)
class Limits:
    """What the server allows."""

    sessions: int = 160
    """Connections at once."""
    facility_sessions: int = 8
    """Sessions at once of one facility."""
    silent_seconds: float = 30
    """A session silent for so long gives way when its facility wants one too many: it is likely dead."""
    waiting: int = 64
    """Connections at once that have not logged in yet."""
    login_seconds: int = 20
    """Time from connecting to sftp."""
    idle_seconds: float = 600
    """Silence after which a session ends."""
    packet_seconds: float = 60
    """Time one SFTP packet may take: 256 KiB at most, so slower than 4 KiB/s is too slow."""
    attempts: int = 6
    """Keys a connection may try."""
    failed_logins: int = 30
    """Failed logins after which an address has to pause."""
    pause_seconds: float = 60
    """How long."""
    handles: int = 64
    """Open files of a session."""
    file_bytes: int = 320 * 1024 * 1024
    """Largest file: a sealed batch is 256 MiB and a little."""
    shelf_bytes: int = 64 * 1024 * 1024 * 1024
    """Bytes that may wait on one facility's shelf."""
    shelf_files: int = 20_000
    """Files that may wait there."""
    reserve_bytes: int = 0
    """Bytes of the disk that uploads leave free."""
    memory_bytes: int = 256 * 1024 * 1024
    """What the process of a connection may allocate."""


class Stop(Protocol):
    """Anything like `threading.Event`."""

    def is_set(self) -> bool:
        """Whether the server should end."""


@dataclass
class _Child:
    pid: int
    peer: str
    line: socket.socket
    facility: str = ""  # empty: not logged in yet
    heard: float = 0.0  # when its client last said something, give or take `_PULSE`


def serve(
    *,
    host: str,
    port: int,
    host_key: bytes | Ed25519PrivateKey,
    shelf_of: ShelfOf,
    ready: Callable[[tuple[str, int]], None],
    stop: Stop,
    limits: Limits = Limits(),
) -> None:
    """Serve until `stop` is set or SIGTERM or SIGINT arrives; then end every connection and return.

    Args:
        host: address to listen on; empty for all.
        port: TCP port; 0 for a free one.
        host_key: the server's Ed25519 key, an OpenSSH private key file's bytes or the key itself.
        shelf_of: called in a connection's own process at each login.
        ready: called once with the address, when connections are accepted.
        stop: looked at several times a second.
        limits: see `Limits`.

    Raises:
        RuntimeError: the process has other threads.
        FormatError: `host_key` is not an Ed25519 key.
        OSError: the address cannot be used.
    """
    if threading.active_count() != 1:
        raise RuntimeError("the server forks: call it from a process without other threads")
    key = paramiko_key(host_key)
    children: dict[int, _Child] = {}
    addresses = Addresses(limits.failed_logins, limits.pause_seconds)
    with _listen(host, port) as listener, _signals() as woken, selectors.DefaultSelector() as selector:
        gc.collect()
        gc.freeze()  # children do not copy pages just to count references
        selector.register(listener, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        ready(listener.getsockname()[:2])
        try:
            while not stop.is_set():
                events = {selected.fd for selected, _ in selector.select(_LOOK)}
                if woken in events:
                    return
                for number in events & children.keys():  # before new ones: they may make room
                    _hear(children, number, selector, addresses, limits)
                if listener.fileno() not in events:
                    continue
                with suppress(OSError):  # the client was gone before it was accepted
                    sock, address = listener.accept()
                    with sock:
                        if _room(children, addresses, limits, address[0]):
                            child = _fork(listener, sock, address[0], key, shelf_of, limits)
                            children[child.line.fileno()] = child
                            selector.register(child.line, selectors.EVENT_READ)
        finally:
            listener.close()
            _end(children)
            gc.unfreeze()


# -- the parent ------------------------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=128)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable on SIGTERM or SIGINT."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def wake(_number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(writer, b"!")

    former = {number: signal.signal(number, wake) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield reader
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _room(children: dict[int, _Child], addresses: Addresses, limits: Limits, peer: str) -> bool:
    if addresses.pausing(peer, time.monotonic()):  # said once, when the pause began
        return False
    waiting = sum(not child.facility for child in children.values())
    if len(children) < limits.sessions and waiting < limits.waiting:
        return True
    log.warning("refused: too many connections, from=%s", peer)
    return False


def _hear(
    children: dict[int, _Child],
    number: int,
    selector: selectors.BaseSelector,
    addresses: Addresses,
    limits: Limits,
) -> None:
    """A child failed to log in, asks for a session, or ended."""
    child = children[number]
    said = b""
    with suppress(ConnectionResetError):
        said = child.line.recv(_WORDS)
    if said.startswith(b"+"):
        _admit(children, child, said[1:].decode("ascii"), limits)
        with suppress(OSError):  # it is gone: its end comes next
            child.line.send(b"y" if child.facility else b"n")
        return
    late = False
    if said == b".":
        child.heard = time.monotonic()
        return
    if not said:
        selector.unregister(child.line)
        child.line.close()
        del children[number]
        _, status = os.waitpid(child.pid, 0)
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        if late:
            log.warning("refused: the login took too long, from=%s", child.peer)
        elif os.WIFSIGNALED(status):
            log.warning("a session ended badly, from=%s", child.peer)
    if (said or late) and addresses.failed(child.peer, time.monotonic()):
        log.warning("pausing: too many failed logins, from=%s", child.peer)


def _admit(children: dict[int, _Child], child: _Child, facility: str, limits: Limits) -> None:
    """Give a facility one more session if it has fewer than allowed, or one of them seems dead."""
    now = time.monotonic()
    others = [other for other in children.values() if other.facility == facility]
    if len(others) >= limits.facility_sessions:
        longest = min(others, key=lambda other: other.heard)
        if now - longest.heard < limits.silent_seconds:
            return
        log.info("a silent session gives way, facility=%s from=%s", facility, longest.peer)
        longest.facility = ""
        os.kill(longest.pid, signal.SIGTERM)
    child.facility, child.heard = facility, now


def _end(children: dict[int, _Child]) -> None:
    """End all children: first politely, then not. A killed one leaves what a power cut would leave."""
    for child in children.values():
        os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + _GRACE
    for child in children.values():
        while os.waitpid(child.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                break
            time.sleep(0.01)
        child.line.close()


def _fork(
    listener: socket.socket,
    sock: socket.socket,
    peer: str,
    key: paramiko.PKey,
    shelf_of: ShelfOf,
    limits: Limits,
) -> _Child:
    parent, (ours, theirs) = os.getpid(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        log.error("refused: no more processes, from=%s", peer)
        raise
    if pid == 0:
        listener.close()  # the address must be free again as soon as the parent is gone
        ours.close()
        _child(sock, peer, key, shelf_of, limits, parent, theirs)
    theirs.close()
    return _Child(pid, peer, ours)


# -- the child -------------------------------------------------------------------------------------


def _child(
    sock: socket.socket,
    peer: str,
    key: paramiko.PKey,
    shelf_of: ShelfOf,
    limits: Limits,
    parent: int,
    line: socket.socket,
) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limits.login_seconds)
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what matters has a line of its own
        _bound_memory(limits.memory_bytes)
        set_socket(sock, limits.packet_seconds)  # who is gone must not count as a session for long
        _session(sock, peer, key, shelf_of, limits, parent, line)
        code = 0
    except (FormatError, OSError, EOFError, paramiko.SSHException, MemoryError) as error:
        log.info("a session broke: %s, from=%s", type(error).__name__, peer)
    except Exception:
        log.exception("a session ended by a mistake in the program, from=%s", peer)
    finally:
        os._exit(code)  # the parent's cleaning up is not ours


def _session(
    sock: socket.socket,
    peer: str,
    key: paramiko.PKey,
    shelf_of: ShelfOf,
    limits: Limits,
    parent: int,
    line: socket.socket,
) -> None:
    told = 0.0

    def admit(facility: str) -> bool:
        line.send(b"+" + facility.encode("ascii"))
        return line.recv(1) == b"y"

    def failed() -> None:
        line.send(b"-")

    def pulse() -> None:
        nonlocal told
        if time.monotonic() - told > _PULSE:
            told = time.monotonic()
            line.send(b".")

    transport = paramiko.Transport(sock, default_window_size=WINDOW, default_max_packet_size=SSH_PACKET)
    transport.local_version = "SSH-2.0-fstore"
    transport.add_server_key(key)
    prefer(transport)
    login = Login(shelf_of, peer, transport, limits.attempts, admit, failed)
    transport.start_server(event=threading.Event(), server=login)
    while not login.decided.wait(0.5):
        if not transport.is_active():
            return
    signal.alarm(0)
    folder, channel = login.folder, login.channel
    if not isinstance(folder, Path) or channel is None:
        return
    quota = Quota(limits.shelf_bytes, limits.shelf_files, limits.reserve_bytes)
    files = Files(folder, max_handles=limits.handles, max_file=limits.file_bytes, quota=quota)
    session = Session(files, limits.handles)
    session.converse(
        channel,
        idle=limits.idle_seconds,
        packet=limits.packet_seconds,
        heard=pulse,
        wanted=lambda: os.getppid() == parent,
    )
    channel.close()
    transport.close()


def _bound_memory(more: int) -> None:
    """Limit what this process may allocate beyond what it has (Linux: `RLIMIT_DATA` counts all of it)."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        kib = int(next(line for line in lines if line.startswith("VmData:")).split()[1])
        resource.setrlimit(resource.RLIMIT_DATA, (kib * 1024 + more,) * 2)
