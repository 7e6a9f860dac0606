"""Who may see whose rows. Pure.

Guarantees: a facility sees its own rows and those of owners that granted it; nothing else is ever added,
and a grant is not passed on.

Leaves to others: where grants lie (`central_store.grants`), who asks (`central_store.accounts`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from schemas.names import FacilityName


class Grant(NamedTuple):
    """`owner` lets people of `reader` find and fetch what it stored."""

    owner: FacilityName
    reader: FacilityName


def visible(asker: FacilityName, grants: Iterable[Grant]) -> tuple[FacilityName, ...]:
    """The facilities whose rows `asker` may see, sorted; itself always among them."""
    return tuple(sorted({asker} | {grant.owner for grant in grants if grant.reader == asker}))
