"""People who may search: one account per file, an Argon2id password hash in each.

Guarantees: a password is kept only as Argon2id (RFC 9106 section 4, second recommended option: 3 passes,
64 MiB, 4 lanes) in PHC text; an unknown user, an account of another facility and a wrong password cost
the same work and give the same answer. A right password is remembered for a few minutes in this process, as a
keyed digest bound to the stored hash, so that the parts of one fetch do not each pay for it. Whoever guesses
waits longer and longer (`central_store.guesses`), and that too is the same for every name.

Leaves to others: where a password comes from (`central_store.cli`), what an account may see
(`central_store.access`).
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from central_store import audit, facilities, guesses
from central_store.layout import Layout
from central_store.replies import Refused
from central_store.secret_files import read_secret
from schemas import names
from schemas.errors import AccessDenied, FormatError, SettingsError
from schemas.messages import canonical
from schemas.names import FacilityName, UserName
from schemas.transit import durable

log = logging.getLogger("central_store")

ITERATIONS, MEMORY_KIB, LANES, LENGTH, SALT = 3, 64 * 1024, 4, 32, 16
GOOD_LENGTH = 8
"""A shorter password works and is warned of (NIST SP 800-63B section 5.1.1.2)."""
REMEMBER_SECONDS = 300.0
_REMEMBER_MOST = 1000

_NOBODY = f"$argon2id$v=19$m={MEMORY_KIB},t={ITERATIONS},p={LANES}${'A' * 22}${'A' * 43}"
"""A hash no password has: verified for users that do not exist."""


class Account(NamedTuple):
    """A person at a facility."""

    user: UserName
    facility: FacilityName
    phc: str


def _bytes(password: str) -> bytes:
    # One person's keyboard composes an accented letter, another's does not (RFC 8265 section 4.2.2: NFC).
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def add(layout: Layout, user: UserName, facility: FacilityName, password: str) -> Account:
    """Make an account, or give an existing one of the same facility a new password.

    Raises:
        SettingsError: the facility is not enrolled, the name differs from another one there only in letter
            case, or the password is empty.
    """
    if facilities.load(layout, facility) is None:
        raise SettingsError(f"{facility} is not enrolled", hint="`fstore facilities` lists those that are.")
    if not password:
        raise SettingsError("a password is not empty", hint="Give one of 8 characters or more.")
    for other in everyone(layout):
        if (other.facility, other.user.lower()) == (facility, user.lower()) and other.user != user:
            raise SettingsError(
                f"{other.user} is there already", hint="`fstore account list` shows the accounts."
            )
    salt = secrets.token_bytes(SALT)
    hasher = Argon2id(salt=salt, length=LENGTH, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB)
    account = Account(user, facility, hasher.derive_phc_encoded(_bytes(password)))
    data = canonical(account._asdict() | {"type": "account", "version": 1})
    durable.make_dirs(layout.account(facility, user).parent)
    known = layout.account(facility, user).exists()
    audit.record(layout, "account", facility=facility, user=user, details=audit.operator(new=not known))
    durable.publish(layout.account(facility, user), data, mode=0o600, replace=True)
    guesses.forget(layout, facility, user)
    return account


def remove(layout: Layout, facility: FacilityName, user: UserName) -> bool:
    """Remove an account; returns whether there was one."""
    path = layout.account(facility, user)
    if not path.exists():
        return False
    audit.record(layout, "account-removed", facility=facility, user=user, details=audit.operator())
    durable.remove(path)
    return True


def load(layout: Layout, facility: FacilityName, user: UserName) -> Account | None:
    """An account, or None; raises `SettingsError` for a broken or readable-by-others file."""
    path = layout.account(facility, user)
    name = f"accounts/{facility}/{user}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(read_secret(path, name=name))
        account = Account(
            names.user_name(found["user"]), names.facility_name(found["facility"]), found["phc"]
        )
        right = account[:2] == (user, facility) and isinstance(account.phc, str)
        right = right and canonical(found) == canonical(account._asdict() | {"type": "account", "version": 1})
    except (ValueError, TypeError, KeyError, FormatError) as error:
        raise SettingsError(f"{name} is no account of this version") from error
    if not right:
        raise SettingsError(f"{name} is no account of this version")
    return account


def everyone(layout: Layout) -> tuple[Account, ...]:
    """All accounts, sorted by facility and user."""
    paths = sorted(layout.accounts.glob("*/*.json"))
    found = (
        load(layout, names.facility_name(path.parent.name), names.user_name(path.stem)) for path in paths
    )
    return tuple(account for account in found if account is not None)


class Doorman:
    """Checks passwords for one process.

    Args:
        layout: the store.
        clock: monotonic seconds.
    """

    def __init__(self, layout: Layout, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, float] = {}

    def check(self, facility: FacilityName, user: UserName, password: str, now: float) -> None:
        """Return if the account is this facility's and the password fits.

        Args:
            facility: whose shelf the request lay on.
            user: as the request names it.
            password: as it was typed.
            now: seconds since 1970.

        Raises:
            AccessDenied: it does not fit, or there is no such account.
            Refused: too many did not fit; nothing was checked.
        """
        account = load(self._layout, facility, user)
        phc = _NOBODY if account is None else account.phc
        text, clock = _bytes(password), self._clock()
        mark = hmac.digest(self._key, b"\0".join((phc.encode(), user.encode(), text)), "sha256")
        if self._known.get(mark, 0.0) > clock:
            return
        known = guesses.load(self._layout, facility)
        if (left := guesses.wait(known, user, now)) > 0:
            raise Refused("throttled", f"too many wrong passwords: try again in {left + 1:.0f} seconds")
        try:
            Argon2id.verify_phc_encoded(text, phc)
        except InvalidKey:
            known = guesses.after_failure(known, user, now)
            guesses.keep(self._layout, facility, known)
            name, left = "(unknown)" if account is None else user, guesses.wait(known, user, now)
            log.warning(
                "wrong password facility=%s user=%s failures=%d wait=%d",
                facility, name, known[user].failures, left,
            )  # fmt: skip
            raise AccessDenied("the user name or the password is wrong") from None
        if user in known:
            guesses.forget(self._layout, facility, user)
        if len(self._known) >= _REMEMBER_MOST:
            self._known.clear()
        self._known[mark] = clock + REMEMBER_SECONDS
