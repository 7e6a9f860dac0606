"""A person's word that a kind of device writes no text into its pixels: one entry of the settings.

Guarantees: a release names a class (or `ANY`), a manufacturer, a model, a person and a time; one that would
match devices that name neither manufacturer nor model cannot be made.

Leaves to others: what a release does (`identity.risk`), where it stands (`settings`), who may make one: the
person at the terminal (`cli.release`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from schemas import names
from schemas.errors import FormatError, SettingsError

ANY = "any"
"""As class: every one."""
_LIMITS = {"manufacturer": 64, "model": 64, "by": 100, "note": 500}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release; raises `SettingsError` if it cannot be one.

    Attributes:
        sop_class: SOP Class UID, or `ANY`.
        manufacturer: as the device writes it; case does not matter.
        model: the same.
        by: who released it.
        at: RFC 3339 time.
        note: why.
    """

    sop_class: str
    manufacturer: str
    model: str
    by: str
    at: str
    note: str = ""

    def __post_init__(self) -> None:
        for key, most in _LIMITS.items():
            text = getattr(self, key)
            if len(text) > most or not text.isprintable() or (key != "note" and not text.strip()):
                raise SettingsError(
                    f"`{key}` of a release is one line of at most {most} characters"
                    + ("" if key == "note" else ", and not empty"),
                    hint="`fsync release add --help` shows examples.",
                )
        try:
            if self.sop_class != ANY:
                names.uid(self.sop_class)
            datetime.strptime(self.at, "%Y-%m-%dT%H:%M:%S%z")
        except (FormatError, ValueError) as error:
            raise SettingsError(
                f"a release has a SOP Class UID or `{ANY}`, and a time like 2026-11-24T10:00:00Z",
                hint="`fsync release add --help` shows examples.",
            ) from error
