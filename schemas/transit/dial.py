"""An SSH connection to a store whose host key was pinned, with an sftp channel on it.

Guarantees: the server's key is compared with the pinned one before anything about us is sent; only
Ed25519 keys, on both sides; every step has a time limit, a peer that vanished or stopped reading included;
`AccessDenied` means that the server said no, never that the road broke while it was asked.

Leaves to others: what is said on the channel (`schemas.transit.pump`).

paramiko does the cryptography. Its defaults are changed where they cost: AES-GCM first (it has it last),
large windows (its 2 MiB are a ceiling of 50 MB/s at a round trip of 40 ms).
"""

from __future__ import annotations

import hmac
import io
import logging
import socket
import threading
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import keys
from schemas.errors import AccessDenied, HostKeyError, TransitError
from schemas.transit.pump import Lost, Pump
from schemas.transit.ssh import paramiko

WINDOW = 32 * 1024 * 1024
"""Bytes the other side may send before we have read them."""
SSH_PACKET = 128 * 1024
"""Largest SSH packet we take, in bytes of data."""

_KEEP = 15  # seconds between questions to a silent peer
_ENDS = 5.0  # seconds in which a thread ends whose socket was closed
_NO_ROOM = 4  # SSH_OPEN_RESOURCE_SHORTAGE, RFC 4254 section 5.1

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")


class TurnedAway(TransitError):
    """The store is there, but hung up or had no room for one more session: worth another try soon."""


# paramiko logs tracebacks of what it also raises; without a handler they would land on stderr
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class Link(NamedTuple):
    """A connection and the conversation on it."""

    transport: paramiko.Transport
    pump: Pump

    def close(self) -> None:
        """End the connection; nothing can fail here that matters."""
        hang_up(self.transport)


def hang_up(transport: paramiko.Transport) -> None:
    """Close a transport and stop the timer of its handshake: a process does not end before such a timer.

    In this order: its thread may be about to begin the handshake, and `close` does not wait for that.
    """
    transport.close()
    if transport.is_alive():
        transport.join(_ENDS)
    transport.packetizer.complete_handshake()


def paramiko_key(key: bytes | Ed25519PrivateKey) -> paramiko.Ed25519Key:
    """A private key as paramiko wants it; raises `FormatError`."""
    pem = keys.private_pem(keys.load_private(key) if isinstance(key, bytes) else key)
    return paramiko.Ed25519Key(file_obj=io.StringIO(pem.decode("ascii")))


def prefer(transport: paramiko.Transport) -> None:
    """Choose algorithms: fast and safe first, old ones not at all."""
    options = transport.get_security_options()
    options.ciphers = CIPHERS
    options.digests = MACS
    options.key_types = ("ssh-ed25519",)


def set_socket(sock: socket.socket, timeout: float) -> None:
    """Send small packets at once; give up on a peer that acknowledges nothing for `timeout` seconds.

    A silent peer is asked every few seconds whether it is still there.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # RFC 5482; Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))


def dial(
    host: str, port: int, user: str, key: paramiko.PKey, host_key: bytes, timeout: float,
    reach: float | None = None,
) -> Link:  # fmt: skip
    """Connect, check the server, log in, start sftp.

    Args:
        host: name or address.
        port: TCP port.
        user: SSH user name.
        key: ours.
        host_key: the pinned key's blob (RFC 8709 section 4).
        timeout: seconds for each step.
        reach: seconds for the TCP connection, if not the same.

    Raises:
        HostKeyError: the server is another one.
        AccessDenied: it does not know our key, or refuses it a session.
        TurnedAway: it has no room now, or the connection broke before it was ready.
        TransitError: no connection.
    """
    try:
        sock = socket.create_connection((host, port), timeout if reach is None else reach)
    except OSError as error:
        raise TransitError(f"no connection to the store: {error.strerror or 'it does not answer'}") from error
    set_socket(sock, timeout)
    transport = paramiko.Transport(sock, default_window_size=WINDOW, default_max_packet_size=SSH_PACKET)
    try:
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout
        prefer(transport)
        _greet(transport, host_key, timeout)
        _log_in(transport, user, key, timeout)
        channel = transport.open_session(timeout=timeout)
        channel.settimeout(timeout)
        watch = threading.Timer(timeout, transport.close)  # paramiko waits for this answer without end
        watch.start()
        try:
            channel.invoke_subsystem("sftp")
        finally:
            watch.cancel()
        return Link(transport, Pump(channel, timeout))
    except BaseException as error:
        hang_up(transport)
        if isinstance(error, paramiko.ChannelException):
            if error.code == _NO_ROOM:
                raise TurnedAway("the store has no room for one more session now") from error
            raise AccessDenied("the store refuses an sftp session to this terminal") from error
        if isinstance(error, (paramiko.SSHException, OSError, EOFError, Lost)):
            raise TurnedAway("the connection to the store broke before it was ready") from error
        raise


def _log_in(transport: paramiko.Transport, user: str, key: paramiko.PKey, timeout: float) -> None:
    """Show our key; a connection that breaks meanwhile is not a refusal."""
    answered = threading.Event()
    transport.auth_publickey(user, key, event=answered)
    if not answered.wait(timeout):
        raise TurnedAway("the store did not say in time whether it accepts this terminal's key")
    if transport.is_authenticated():
        return
    if not transport.is_active():
        raise TurnedAway("the connection to the store broke during the login")
    raise AccessDenied(
        "the store does not accept this terminal's key",
        hint="Ask the store's operator whether this facility is enrolled with this terminal's card.",
    )


def _greet(transport: paramiko.Transport, host_key: bytes, timeout: float) -> None:
    try:
        transport.start_client(timeout=timeout)
        shown = transport.get_remote_server_key().asbytes()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        if "host key" in str(error):
            raise HostKeyError(
                "the server has no Ed25519 host key: it is not the one that was trusted"
            ) from error
        raise TransitError("the server shares no algorithm with this program") from error
    if not hmac.compare_digest(shown, host_key):
        raise HostKeyError("the server's host key is not the one that was trusted")
