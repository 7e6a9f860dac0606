"""Addresses that failed to log in too often have to pause.

Guarantees: after `failures` failed logins from one address, each less than `pause` seconds after the one
before, connections from it are refused until `pause` seconds passed without another; what is remembered is
bounded, however many addresses call. An IPv6 address counts as its /64: a caller has all of that.

Leaves to others: what counts as a failure, and the clock (`central_store.sftp_server`).
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress

MOST = 10_000
"""Addresses remembered; the one that failed longest ago is forgotten first."""


class Addresses:
    """Failed logins by address.

    Args:
        failures: failed logins after which an address pauses.
        pause: seconds.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self._failures, self._pause = failures, pause
        self._known: dict[str, tuple[int, float]] = {}  # by address: failures, time of the last; oldest first

    def failed(self, address: str, now: float) -> bool:
        """A login failed; returns whether a pause begins with it."""
        key = _network(address)
        count, last = self._known.pop(key, (0, now))
        count = 1 if now - last > self._pause else count + 1
        self._known[key] = count, now
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return count == self._failures

    def pausing(self, address: str, now: float) -> bool:
        """Whether connections from this address are refused now."""
        count, last = self._known.get(_network(address), (0, now))
        return count >= self._failures and now - last <= self._pause


def _network(address: str) -> str:
    with suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address):
            if found.ipv4_mapped is not None:
                return str(found.ipv4_mapped)
            return str(ipaddress.ip_network((found, 64), strict=False))
    return address
