"""Whether a file becomes a protected object or is sealed whole, and why.

Order: what the site demands (`seal_all`, `seal_body_parts`), what the pixels may show (`risk`), whether the
file can be followed to its end (`layout`). Guarantees: every file gets an answer with reasons; what is not
clearly without risk is sealed.

Leaves to others: the protected object (`protect`), which may still find the identity in what would be shown.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import BinaryIO, NamedTuple

from pydicom.dataset import Dataset

from facility_sync.identity import protect, risk
from facility_sync.identity.layout import Layout, read_layout
from facility_sync.identity.risk import Risk
from facility_sync.releases import Release
from schemas.errors import FormatError


class Rules(NamedTuple):
    """What a person at the facility decided; see the settings of these names."""

    releases: tuple[Release, ...] = ()
    seal_all: bool = False
    seal_body_parts: frozenset[str] = frozenset()


REASONS: dict[str, str] = {
    **risk.REASONS,
    **protect.REASONS,
    "not-proved": "It would not come back bit for bit as a protected object.",
    "seal-all": "The settings have every object sealed whole (`seal_all`).",
    "body-part": "The settings have this body part sealed whole (`seal_body_parts`).",
    "body-part-unknown": "The settings have a body part sealed whole, and it names none of the standard.",
}
"""Why a file is protected or sealed: code to meaning."""


class Decision(NamedTuple):
    """The answer; without a layout the file is sealed whole."""

    layout: Layout | None
    risk: Risk
    reasons: tuple[str, ...]


def layout_of(source: BinaryIO, size: int) -> Layout | None:
    """The layout of a file, or None when it cannot be followed to its end."""
    source.seek(0)
    try:
        return read_layout(source, size)
    except FormatError:
        return None


def decide(
    dataset: Dataset,
    body_part: str | None,
    layout: Layout | None,
    rules: Rules,
    *,
    unreadable: AbstractSet[int],
) -> Decision:
    """Decide about one file.

    Args:
        dataset: its header.
        body_part: as its row says.
        layout: from `layout_of`.
        rules: of the facility.
        unreadable: tags that are in the file and, since they could not be decoded, not in `dataset`.
    """
    if rules.seal_all:
        return Decision(None, Risk.UNKNOWN, ("seal-all",))
    if rules.seal_body_parts and (body_part is None or body_part in rules.seal_body_parts):
        return Decision(None, Risk.UNKNOWN, ("body-part" if body_part else "body-part-unknown",))
    if layout is None:
        return Decision(None, Risk.UNKNOWN, ("structure",))
    overlays = any(found.tag >> 24 == 0x60 for found in layout.front.elements)  # groups 60xx
    verdict = risk.judge(
        dataset,
        has_pixels=bool(layout.front.pixels_tag),
        overlays=overlays,
        releases=rules.releases,
        unreadable=unreadable,
    )
    return Decision(layout if verdict.risk is Risk.LOW else None, verdict.risk, verdict.reasons)
