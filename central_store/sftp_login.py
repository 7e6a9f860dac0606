"""Who may log in over SFTP: a facility with the key it was enrolled with, for sftp and nothing else.

Guarantees: only public keys, only Ed25519; the caller's `shelf_of` is asked at each login, so that a new
enrolment, or the end of one, counts at once; one line in the log for each login and each refusal; a facility
has as many sessions as `admit` allows. Shells, commands, forwarding and every other request are refused
(paramiko's default answers are no).
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from schemas import keys
from schemas.errors import FormatError, SyncError
from schemas.names import facility_name
from schemas.transit.ssh import paramiko

log = logging.getLogger("central_store.sftp")

ShelfOf = Callable[[str, str], Path | None]
"""User name and public key line (`ssh-ed25519 AAAA…`) to the facility's shelf folder, or None: refused."""


class Login(paramiko.ServerInterface):  # type: ignore[misc] # paramiko has no types
    """What paramiko asks about one connection; called in its thread.

    Args:
        shelf_of: who is enrolled.
        peer: address of the other side, for the log.
        transport: closed after too many attempts.
        attempts: keys that may be tried.
        admit: asked once with the facility's name whether it may have one more session.
        failed: told of each refused key.
    """

    def __init__(
        self,
        shelf_of: ShelfOf,
        peer: str,
        transport: paramiko.Transport,
        attempts: int,
        admit: Callable[[str], bool],
        failed: Callable[[], None],
    ) -> None:
        self._shelf_of, self._peer, self._transport, self._left = shelf_of, peer, transport, attempts
        self._admit, self._failed = admit, failed
        self._admitted = False
        self._who = ("", "")
        self.folder: Path | None = None
        self.channel: paramiko.Channel | None = None
        self.decided = threading.Event()

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        """Ways to log in."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Whether this key may log in as this user; paramiko checks the signature afterwards."""
        self.folder, self._who = None, _readable(username, key)
        try:
            self.folder = self._shelf_of(facility_name(username), self._who[1]) if self._who[1] else None
        except FormatError:
            pass  # a name that no facility can have
        except (SyncError, OSError) as error:
            log.error("enrolment could not be read: %s", type(error).__name__)
        except Exception:  # in paramiko's thread nobody else would hear of it
            log.exception("enrolment could not be read")
        if self.folder is not None:
            return int(paramiko.AUTH_SUCCESSFUL)
        self._left -= 1
        self._failed()
        log.warning("refused facility=%s key=%s from=%s", *self._described(), self._peer)
        if self._left <= 0:
            self._transport.close()
        return int(paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """One session channel for each connection."""
        if kind != "session" or self._admitted or chanid != 0 or self.folder is None:
            return int(paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)
        self._admitted = self._admit(self._who[0])
        if self._admitted:
            return int(paramiko.OPEN_SUCCEEDED)
        log.warning("refused: too many sessions, facility=%s from=%s", self._who[0], self._peer)
        return int(paramiko.OPEN_FAILED_RESOURCE_SHORTAGE)

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        """Sftp, once."""
        if name != "sftp" or self.channel is not None or self.folder is None:
            return False
        log.info("login facility=%s key=%s from=%s", *self._described(), self._peer)
        self.channel = channel
        self.decided.set()
        return True

    def _described(self) -> tuple[str, str]:
        user, line = self._who
        return user or "(unreadable)", keys.fingerprint(line) if line else "(not ed25519)"


def _readable(username: str, key: paramiko.PKey) -> tuple[str, str]:
    """User name and key line, each empty if it is not of the only kind there is."""
    try:
        user: str = facility_name(username)
    except FormatError:
        user = ""
    try:
        return user, keys.ssh_key("ssh-ed25519 " + base64.b64encode(key.asbytes()).decode("ascii"))
    except FormatError:
        return user, ""
