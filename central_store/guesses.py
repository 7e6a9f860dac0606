"""How often passwords were guessed wrong, and how long the next try must wait.

    guesses/<facility>.json     user names given there: failures in a row, and the time of the last

Rules: five failures in a row cost nothing; each further one doubles the wait for that name, from one second
up to a quarter of an hour; a right password forgets them, as a day without a try does. Beside that, all
failures of a facility fill a bucket that loses one every ten seconds; while it holds more than sixty, no
password is checked there, so that changing names buys nothing. A name counts as it was given, whether or not
there is such an account.

Guarantees: the wait is kept on disk, so that neither a restart nor a service started by cron forgets it. A
clock set back ends a wait, it never makes one longer. A file that cannot be read counts as empty.

Leaves to others: checking passwords (`central_store.accounts`), the time.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple

from central_store.layout import Layout
from schemas.messages import canonical
from schemas.names import FacilityName, UserName
from schemas.transit import durable

FREE = 5
LONGEST = 900.0
"""Longest wait in seconds: at most 96 guesses a day (NIST SP 800-63B section 5.2.2 allows 100 in a row)."""
BUCKET, DRAIN = 60, 10.0
FORGET = 86400.0
_MOST = 1000
_ALL = ""
"""Stands for the facility among its users: no user name is empty."""


class Failed(NamedTuple):
    """Failures that count, and when the last one was, in seconds since 1970."""

    failures: float
    last: float


def delay(failures: float) -> float:
    """Seconds to wait after so many failures in a row."""
    return 0.0 if failures < FREE else min(LONGEST, 2.0 ** min(failures - FREE, 60))


def wait(known: dict[str, Failed], user: UserName, now: float) -> float:
    """Seconds until this name may be tried again; 0: now."""
    alone, together = known.get(user), known.get(_ALL)
    waits = []
    if alone is not None:
        waits.append((alone.last, delay(alone.failures)))
    if together is not None and together.failures > BUCKET:
        waits.append((together.last, min(LONGEST, (together.failures - BUCKET) * DRAIN)))
    return max((last + long - now for last, long in waits if 0 <= now - last < long), default=0.0)


def after_failure(known: dict[str, Failed], user: UserName, now: float) -> dict[str, Failed]:
    """What is known after one more failure; names nobody tried for a day are forgotten."""
    fresh = {name: failed for name, failed in known.items() if 0 <= now - failed.last < FORGET}
    together = fresh.pop(_ALL, Failed(0, now))
    fresh[user] = Failed(fresh.get(user, Failed(0, now)).failures + 1, now)
    most = sorted(fresh.items(), key=lambda item: item[1], reverse=True)[:_MOST]  # the most guessed stay
    return dict(most) | {_ALL: Failed(max(0.0, together.failures - (now - together.last) / DRAIN) + 1, now)}


def load(layout: Layout, facility: FacilityName) -> dict[str, Failed]:
    """What is known of a facility's failures."""
    with suppress(FileNotFoundError, AttributeError, TypeError, ValueError, RecursionError):
        found = json.loads(layout.guesses(facility).read_bytes())
        return {name: Failed(float(count), float(last)) for name, (count, last) in found.items()}
    return {}


def keep(layout: Layout, facility: FacilityName, known: dict[str, Failed]) -> None:
    """Keep it. Not fsynced: a power cut may forget the last failures."""
    path = layout.guesses(facility)
    durable.make_dirs(path.parent)
    data = {name: [round(failed.failures, 3), round(failed.last, 3)] for name, failed in known.items()}
    durable.publish(path, canonical(data), mode=0o600, replace=True, lasting=False)


def forget(layout: Layout, facility: FacilityName, user: UserName) -> None:
    """A right or a new password: the name starts anew."""
    known = load(layout, facility)
    if known.pop(user, None) is not None:
        keep(layout, facility, known)
