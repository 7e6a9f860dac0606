"""Patterns of names, compared as tokens are made, on identities opened here."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from facility_sync import speed
from facility_sync.identity import tokens
from facility_sync.identity.domains import Keyring
from facility_sync.identity.wild_names import MOST, matches, resolve
from schemas.errors import SettingsError
from tests.kit.domains import domain

KEYRING = Keyring((domain(generations=2),))


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("YAM*", "YAMADA^TAROU", True), ("yam*", "Yamada^Tarou=山田^太郎", True), ("山*", "YAMADA^TAROU=山田^太郎", True),
        ("*", "X^Y", True), ("YAMADA^T*", "YAMADA^TAROU", True), ("YAMADA^J*", "YAMADA^TAROU", False),
        ("YAM?DA", "YAMADA^TAROU", True), ("YAM?", "YAMADA^TAROU", False), ("AM*", "YAMADA^TAROU", False),
        ("*ROU", "YAMADA^TAROU", True), ("müll*", "MULLER^EVA", True), ("ヤマ*", "X^Y==やまだ^たろう", True),
        ("O'N*", "ONEIL^A", True), ("[AB]*", "A^B", False), ("YAM*", "", False),
    ],
)  # fmt: skip
def test_a_pattern_is_compared_as_a_name(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) == fits


def person(name: str, number: str, born: str = "19700501", issuer: str = "") -> dict[str, Any]:
    return {"patient_name": name, "patient_id": number, "birth_date": born, "issuer": issuer}


ROWS: list[dict[str, Any] | None] = [
    person("YAMADA^TAROU", "1"), person("YAMADA^TAROU", "1"), person("YAMAMOTO^JIROU", "2", "19800101", "A"),
    person("SATO^EVA", "3"), person("ITO^JUN", "4", "unknown"), None,
]  # fmt: skip


def found(pattern: str, born: date | None = None, rows: Any = None) -> set[str]:
    made = resolve(pattern, born, [{"i": i} for i in (rows or ROWS)], lambda row: row["i"], KEYRING)
    assert list(made) == ["patient_id_tokens"]
    return set(made["patient_id_tokens"])


def ids(*pairs: tuple[str, str]) -> set[str]:
    return {token for pair in pairs for by in KEYRING.generations for token in tokens.patient_id(by, *pair)}


def test_patients_become_the_tokens_of_their_ids() -> None:
    assert found("YAM*") == ids(("1", ""), ("2", "A"))
    assert found("YAM*", date(1980, 1, 1)) == ids(("2", "A"))
    assert found("*^*", date(1970, 5, 1)) == ids(("1", ""), ("3", ""))


def test_nobody_too_many_and_no_id_are_said() -> None:
    many = [person("A^B", str(number)) for number in range(MOST + 1)]
    for pattern, rows in (("NOBODY*", ROWS), ("A*", many), ("C*", [person("C^D", "")])):
        with pytest.raises(SettingsError):
            found(pattern, rows=rows)


def test_the_speed_of_the_last_large_fetch_is_kept(tmp_path: Path) -> None:
    assert speed.measured(tmp_path) is None
    speed.remember(tmp_path, 100, 1.0)
    assert speed.measured(tmp_path) is None
    speed.remember(tmp_path, 20 << 20, 4.0)
    assert speed.measured(tmp_path) == pytest.approx((20 << 20) / 4)
    (tmp_path / "fetch-speed.json").write_bytes(b"{}")
    assert speed.measured(tmp_path) is None
