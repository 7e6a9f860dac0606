"""Who may send here: enrolled facility cards, one file each.

Guarantees: a name never changes its key silently, and no two names differ only in letter case (they
would share a folder on some disks). A replaced card is kept, so that what its key signed stays provable.

Leaves to others: what a facility may read (`central_store.access`), people (`central_store.accounts`).
"""

from __future__ import annotations

import hashlib

from central_store import audit
from central_store.layout import Layout
from schemas import keys, names
from schemas.errors import FormatError, SettingsError
from schemas.messages import FacilityCard
from schemas.names import FacilityName
from schemas.transit import durable


def enrol(
    layout: Layout, card: FacilityCard, *, replace_key: bool = False, through: FacilityName | None = None
) -> None:
    """Take a facility in, at this store or `through` a peer; the same card again is a no-op.

    Raises:
        SettingsError: the name is taken by another key, or by a name in other letter case.
    """
    for other in enrolled(layout):
        if other != card.facility and other.lower() == card.facility.lower():
            raise SettingsError(f"the name {card.facility} differs from {other} only in letter case")
    if any(path.parent.name.lower() == card.facility.lower() for path in layout.peers.glob("*/card.json")):
        raise SettingsError(f"{card.facility} is the name of a peer")
    present = load(layout, card.facility)
    if present is not None and present != card:
        if not replace_key:
            raise SettingsError(
                f"{card.facility} is enrolled with another key",
                hint="If the facility changed its keys on purpose: enrol it with --replace-key.",
            )
        data = present.to_bytes()
        old = layout.former / f"{card.facility}.{hashlib.sha256(data).hexdigest()[:16]}.json"
        durable.publish(old, data, replace=True)
    for folder in (
        layout.inbound(card.facility), layout.outbound(card.facility),
        layout.quarantine(card.facility), layout.manifests / card.facility,
    ):  # fmt: skip
        durable.make_dirs(folder)
    if present != card:
        replaced = present is not None
        audit.record(
            layout, "enrol", facility=card.facility, subject=keys.fingerprint(card.ssh_key),
            details={"replaced": replaced, "peer": through} if through else audit.operator(replaced=replaced),
        )  # fmt: skip
        durable.publish(layout.card(card.facility), card.to_bytes(), replace=True)
    mark = layout.via(card.facility)
    if through is not None:
        durable.make_dirs(mark.parent)
        durable.publish(mark, through.encode("ascii"), replace=True)
    elif mark.exists():
        durable.remove(mark)


def via(layout: Layout, facility: FacilityName) -> FacilityName | None:
    """The peer that brought a facility; None for one that was enrolled here."""
    try:
        return names.facility_name(layout.via(facility).read_text("ascii"))
    except FileNotFoundError:
        return None


def load(layout: Layout, facility: FacilityName) -> FacilityCard | None:
    """A facility's card, or None when it is not enrolled; raises `SettingsError` for a broken file."""
    try:
        data = layout.card(facility).read_bytes()
    except FileNotFoundError:
        return None
    try:
        card = FacilityCard.from_bytes(data)
    except FormatError as error:
        raise SettingsError(f"facilities/{facility}.json: {error}") from error
    if card.facility != facility:
        raise SettingsError(f"facilities/{facility}.json is another facility's card")
    return card


def signers(layout: Layout, facility: FacilityName) -> tuple[str, ...]:
    """Every key that ever signed for a facility, the present one first."""
    card = load(layout, facility)
    found = [] if card is None else [card.ssh_key]
    for path in sorted(layout.former.glob(f"{facility}.*.json")):
        found.append(FacilityCard.from_bytes(path.read_bytes()).ssh_key)
    return tuple(found)


def enrolled(layout: Layout) -> tuple[FacilityName, ...]:
    """The names of all enrolled facilities, sorted."""
    found = []
    for path in layout.facilities.glob("*.json"):
        try:
            found.append(names.facility_name(path.stem))
        except FormatError as error:
            raise SettingsError(f"facilities/{path.name} is no facility's card") from error
    return tuple(sorted(found))
