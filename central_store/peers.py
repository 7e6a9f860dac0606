"""The stores this one replicates with: each is a card, a road, and facilities its word counts for.

    peers/<name>/card.json     its card; the key on it signs what it says, and logs it in here
    peers/<name>/road.json     whether and where we dial it, and its facilities
    peers/<name>/log/          its log as far as we followed it (`central_store.receipt_log`)
    peers/<name>/settled       how many entries of that need no more looking at
    peers/<name>/passed        how many of them were passed on to our facilities (`central_store.replicas`)
    peers/<name>/checkpoints/  those of its audit log (`central_store.witness`)
    peers/<name>/alarms/       what it did that no honest, undamaged store does

Guarantees: a peer has a name no facility has (both are names of shelves), and never changes its key silently.
`removed` peers keep nothing but what they sent: batches are nobody's but their facility's.

Leaves to others: what is said (`central_store.talk`), how it travels (`central_store.carry`), what a peer's
word is worth for people (`central_store.people`).
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from central_store import audit, facilities
from central_store.layout import Layout
from schemas import keys, names
from schemas.errors import FormatError, SettingsError
from schemas.messages import StoreCard, canonical
from schemas.names import FacilityName
from schemas.transit import durable

log = logging.getLogger("central_store")

MOST_ALARMS = 100
"""Alarms of one peer that are kept."""
ANY = "*"
"""In place of facilities: all that are not enrolled here."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One store we replicate with.

    Args:
        card: what it is known by.
        host: where we dial it.
        port: its port there.
        dial: whether we dial it; if not, it dials us.
        facilities: those it may bring (`ANY`: all unknown here), and whose accounts and grants it may change.
    """

    card: StoreCard
    host: str
    port: int
    dial: bool = True
    facilities: tuple[str, ...] = (ANY,)

    @property
    def name(self) -> FacilityName:
        """Its name."""
        return self.card.store


def add(layout: Layout, peer: Peer, *, replace_key: bool = False) -> None:
    """Take a store as a peer, or change what is set for it.

    Raises:
        SettingsError: the name is a facility's, or another peer's with another key.
    """
    for other in (*facilities.enrolled(layout), *names_of(layout)):
        if other.lower() == peer.name.lower() and (other != peer.name or other not in names_of(layout)):
            raise SettingsError(f"the name {other} is taken")
    present = load(layout, peer.name)
    other_key = present is not None and present.card.signing_key != peer.card.signing_key
    if other_key and not replace_key:
        raise SettingsError(
            f"{peer.name} is a peer with another key",
            hint="If it changed its keys on purpose: add it with --replace-key.",
        )
    details = audit.operator(
        key=keys.fingerprint(peer.card.signing_key), host=peer.host, port=peer.port, dial=peer.dial,
        facilities=list(peer.facilities), replaced=present is not None,
    )  # fmt: skip
    audit.record(layout, "peer", subject=peer.name, details=details)
    if other_key:
        forget(layout, peer.name)  # its log was signed by the old key
    durable.make_dirs(layout.inbound(peer.name))
    durable.make_dirs(layout.outbound(peer.name))
    durable.make_dirs(layout.quarantine(peer.name))
    durable.make_dirs(layout.peer(peer.name))
    road = {"host": peer.host, "port": peer.port, "dial": peer.dial, "facilities": list(peer.facilities)}
    durable.publish(layout.peer(peer.name) / "road.json", canonical(road), replace=True)
    durable.publish(layout.peer(peer.name) / "card.json", peer.card.to_bytes(), replace=True)


def remove(layout: Layout, name: FacilityName) -> bool:
    """End it: no login, no shelf, nothing remembered; returns whether there was such a peer."""
    if load(layout, name) is None:
        return False
    audit.record(layout, "peer-removed", subject=name, details=audit.operator())
    durable.remove(layout.peer(name) / "card.json")
    shutil.rmtree(layout.peer(name))
    shutil.rmtree(layout.shelves / name, ignore_errors=True)
    return True


def forget(layout: Layout, name: FacilityName) -> None:
    """Forget a peer's log: the next round compares everything."""
    shutil.rmtree(layout.peer(name) / "log", ignore_errors=True)
    for cursor in ("settled", "passed"):
        (layout.peer(name) / cursor).unlink(missing_ok=True)


def settled(layout: Layout, name: FacilityName) -> int:
    """How many entries of a peer's log need no more looking at."""
    return _count(layout, name, "settled")


def passed(layout: Layout, name: FacilityName) -> int:
    """How many entries of a peer's log were passed on to facilities."""
    return _count(layout, name, "passed")


def _count(layout: Layout, name: FacilityName, what: str) -> int:
    try:
        return int((layout.peer(name) / what).read_bytes())
    except (FileNotFoundError, ValueError):
        return 0


ALARMS: dict[str, str] = {
    "rollback": "Its log is shorter than it was: it was put back from an old copy, or rebuilt.",
    "fork": "Its log is not the continuation of what it was: rebuilt, or it tells different stories.",
    "root": "Its log has not the root it signed.",
    "audit": "Its audit log is not the one it was: a checkpoint kept here is not in it.",
}
"""What no honest, undamaged store does."""


def alarm(layout: Layout, name: FacilityName, kind: str, now: datetime) -> None:
    """Record what a peer did, until a person clears it."""
    audit.record(layout, "peer-alarm", subject=name, details={"alarm": kind}, now=now)
    folder = layout.peer(name) / "alarms"
    durable.make_dirs(folder)
    if len(list(folder.iterdir())) < MOST_ALARMS:
        durable.publish(folder / f"{now:%Y%m%dT%H%M%S%f}Z.{kind}", b"", replace=True)
    log.error("alarm peer=%s kind=%s: %s", name, kind, ALARMS[kind])


def alarms(layout: Layout, name: FacilityName) -> list[tuple[str, str]]:
    """Time and kind of each, the oldest first."""
    found = sorted(path.name for path in (layout.peer(name) / "alarms").glob("*Z.*"))
    return [(item.partition(".")[0], item.partition(".")[2]) for item in found]


def clear(layout: Layout, name: FacilityName) -> int:
    """A person saw the alarms; returns how many there were."""
    found = list((layout.peer(name) / "alarms").glob("*Z.*"))
    if found:
        audit.record(layout, "peer-cleared", subject=name, details=audit.operator(alarms=len(found)))
    for path in found:
        durable.remove(path)
    return len(found)


def load(layout: Layout, name: FacilityName) -> Peer | None:
    """A peer, or None; raises `SettingsError` for a broken file."""
    folder = layout.peer(name)
    try:
        data = (folder / "card.json").read_bytes()
        road: Any = json.loads((folder / "road.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SettingsError(f"peers/{name}/road.json is not JSON") from error
    try:
        card = StoreCard.from_bytes(data)
        peer = Peer(card=card, **road | {"facilities": tuple(road["facilities"])})
        for facility in peer.facilities:
            if facility != ANY:
                names.facility_name(facility)
    except (FormatError, TypeError, KeyError) as error:
        raise SettingsError(f"peers/{name} is no peer of this version") from error
    if card.store != name:
        raise SettingsError(f"peers/{name}/card.json is another store's card")
    return peer


def names_of(layout: Layout) -> tuple[FacilityName, ...]:
    """The names of all peers, sorted."""
    found = []
    for path in layout.peers.glob("*/card.json"):
        try:
            found.append(names.facility_name(path.parent.name))
        except FormatError as error:
            raise SettingsError(f"peers/{path.parent.name} is no peer") from error
    return tuple(sorted(found))


def everyone(layout: Layout) -> tuple[Peer, ...]:
    """All peers, sorted by name."""
    found = (load(layout, name) for name in names_of(layout))
    return tuple(peer for peer in found if peer is not None)


def look_again(layout: Layout, name: FacilityName) -> None:
    """Let the next round look at every entry of a peer's log again: packs are gone here."""
    (layout.peer(name) / "settled").unlink(missing_ok=True)
    ask(layout, name)


def ask(layout: Layout, name: FacilityName) -> None:
    """Let the service ask a peer for news now."""
    durable.publish(layout.peer(name) / "ask", b"", replace=True, lasting=False)
