"""Where grants lie: one file per owner and reader.

Guarantees: giving and revoking are repeatable; a revoked grant is gone when the call returns.
"""

from __future__ import annotations

from central_store import audit, facilities
from central_store.access import Grant
from central_store.layout import Layout
from schemas import names
from schemas.errors import FormatError, SettingsError
from schemas.messages import canonical
from schemas.names import FacilityName
from schemas.transit import durable


def give(layout: Layout, owner: FacilityName, reader: FacilityName) -> Grant:
    """Let `reader` see `owner`'s rows; raises `SettingsError` unless both are enrolled and differ."""
    if owner == reader:
        raise SettingsError("a facility sees its own rows without a grant")
    for name in (owner, reader):
        if facilities.load(layout, name) is None:
            raise SettingsError(f"{name} is not enrolled", hint="`fstore facilities` lists those that are.")
    data = canonical({"owner": owner, "reader": reader, "type": "grant", "version": 1})
    audit.record(layout, "grant", facility=owner, subject=reader, details=audit.operator())
    durable.publish(layout.grant(owner, reader), data, replace=True)
    return Grant(owner, reader)


def revoke(layout: Layout, owner: FacilityName, reader: FacilityName) -> bool:
    """Take a grant back; returns whether there was one."""
    path = layout.grant(owner, reader)
    if not path.exists():
        return False
    audit.record(layout, "revoke", facility=owner, subject=reader, details=audit.operator())
    durable.remove(path)
    return True


def given(layout: Layout) -> tuple[Grant, ...]:
    """All grants, sorted; raises `SettingsError` for a file that is none."""
    found = []
    for path in layout.grants.glob("*.json"):
        owner, _, reader = path.stem.partition(".")
        try:
            found.append(Grant(names.facility_name(owner), names.facility_name(reader)))
        except FormatError as error:
            raise SettingsError(f"grants/{path.name} is no grant") from error
    return tuple(sorted(found))
