"""Wildcards in a patient's name: resolved on this terminal, on identities it opens itself.

    fsync query --patient-name "YAM*" --since 365d

asks the store for the studies the other conditions name, opens their sealed identities here, compares names,
and asks again with the tokens of the patients that fit.

Guarantees: neither the pattern nor a name leaves the terminal; the store sees tokens of patient IDs,
as in any other search; no list of names is kept anywhere. A name is compared as its token would be: width,
case, accents, hiragana or katakana make no difference. Patients of domains this terminal does not hold, and
those without an ID, are not found.

Price: as many rows travel as there are studies under the other conditions, about 200 bytes each.

Leaves to others: the search itself (`facility_sync.ask`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from facility_sync.identity import tokens
from facility_sync.identity.domains import Keyring
from schemas.errors import SettingsError

MOST = 3_000
"""Patients one pattern may mean: a request holds ten thousand tokens, and each patient has some."""


def is_wild(name: str) -> bool:
    """Whether a name is a pattern."""
    return "*" in name or "?" in name


def matches(pattern: str, name: str) -> bool:
    """Whether one of the writings of a name (groups divided by `=`) fits a pattern.

    Without `^` the pattern is compared with the family name alone, too.
    """
    wanted = _normal(pattern)
    for group in filter(None, name.split("=")[:3]):
        found = tokens.normal_name(group)
        if fnmatchcase(found, wanted) or (
            "^" not in pattern and fnmatchcase(found.partition("^")[0], wanted)
        ):
            return True
    return False


def _normal(pattern: str) -> str:
    """A pattern compared as a name; the wildcards stay, `[` means itself."""
    made, plain = [], ""
    for char in pattern + "*":
        if char in "*?^":
            made += [tokens.normal_name(plain), char]
            plain = ""
        else:
            plain += char
    return "".join(made[:-1]).replace("[", "[[]")


def _day(text: str) -> date | None:
    from schemas.extract import parse_day  # it loads pydicom: a fifth of a second that few questions need

    try:
        return parse_day(text)
    except ValueError:
        return None


def resolve(
    pattern: str,
    born: date | None,
    rows: Iterable[Mapping[str, Any]],
    opened: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    keyring: Keyring,
) -> dict[str, tuple[str, ...]]:
    """The condition that finds the patients a pattern means.

    Args:
        pattern: with `*` and `?`.
        born: only of this birth date.
        rows: study rows with sealed identities.
        opened: opens the identity of a row, or None.
        keyring: whose tokens.

    Raises:
        SettingsError: it means nobody, or too many.
    """
    patients: set[tuple[str, str]] = set()
    for row in rows:
        identity = opened(row)
        if identity is None or not matches(pattern, str(identity.get("patient_name") or "")):
            continue
        if born is None or _day(str(identity.get("birth_date") or "")) == born:
            patients.add((str(identity.get("patient_id") or ""), str(identity.get("issuer") or "")))
        if len(patients) > MOST:
            raise SettingsError("the name means too many patients", hint="Write more of it, or add --since.")
    by_id = {token for identifier, issuer in patients for by in keyring.generations
             for token in tokens.patient_id(by, identifier, issuer)}  # fmt: skip
    if patients and not by_id:
        raise SettingsError(
            "the patients of this name have no ID", hint="Give the whole name and --birth-date."
        )
    if not patients:
        raise SettingsError("no patient this terminal can read has such a name under these conditions")
    return {"patient_id_tokens": tuple(sorted(by_id))}
