"""How fast images came from the store lately: what `fsync query --estimate` counts with.

Guarantees: nothing but two numbers is kept, in `fetch-speed.json` of the home; a file that cannot be read
counts as none. Small fetches say little about a line and are not remembered.
"""

from __future__ import annotations

import json
from pathlib import Path

from schemas.messages import canonical
from schemas.transit import durable

SMALLEST = 4 << 20
"""Bytes of the smallest fetch that counts."""
_NAME = "fetch-speed.json"


def remember(home: Path, count: int, seconds: float) -> None:
    """Keep what a fetch measured: bytes that came from the store, and the time it took."""
    if count < SMALLEST or seconds <= 0:
        return
    data = canonical({"bytes": count, "milliseconds": max(1, round(seconds * 1000))})
    durable.publish(home / _NAME, data, mode=0o600, replace=True, lasting=False)


def measured(home: Path) -> float | None:
    """Bytes each second, as the last fetch that counts measured; None without any."""
    try:
        found = json.loads((home / _NAME).read_bytes())
        speed = found["bytes"] / found["milliseconds"] * 1000
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError):
        return None
    return speed if speed > 0 else None
