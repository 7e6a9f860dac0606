"""What of a search stands in the audit log: enough to say for what, and nothing that may be an identity."""

from __future__ import annotations

import pytest

from central_store import audit_conditions
from schemas import columns
from tests.kit.batches import token

OWNERS = ("clinic-a",)
FITTING = {
    "patient_id_tokens": token("patient 1"), "person_tokens": token("person"), "study_uid": "1.2.840.10008.1",
    "study_date": "2026-11-01..2026-11-24", "modality": "CT", "facility": "clinic-a",
    "object_sha256": "0" * 64,
}  # fmt: skip
TYPED = ("YAMADA^TARO", "yamada", "12345678", "1234.5", "19700101", "CT ", "ct", "C*", "hospital_b",
         "1.2.3.04", token("x").lower(), token("x")[:-1], "2026-11-24", "correct horse")  # fmt: skip


def test_values_that_cannot_be_an_identity_are_written_down() -> None:
    asked = {name: (value,) for name, value in FITTING.items()}
    assert audit_conditions.conditions(asked, OWNERS) == {name: [value] for name, value in FITTING.items()}
    several = {"study_date": ("2026-11-01..", "..2026-10-01"), "modality": ("CT", "MR")}
    written = audit_conditions.conditions(several, OWNERS)
    assert written == {name: list(values) for name, values in several.items()}
    assert audit_conditions.counts(written | {"menu": 3}) == {"study_date": 2, "modality": 2, "menu": 3}


@pytest.mark.parametrize("name", [column.name for column in columns.searchable()])
def test_whatever_somebody_typed_is_only_counted(name: str) -> None:
    for text in TYPED:
        assert audit_conditions.conditions({name: (text,)}, OWNERS) == {name: 1}, text
        if name in FITTING:  # one such value, and the others are not written either
            assert audit_conditions.conditions({name: (FITTING[name], text)}, OWNERS) == {name: 2}
    many = (FITTING.get(name, "X"),) * (audit_conditions.MOST + 1)
    assert audit_conditions.conditions({name: many}, OWNERS) == {name: len(many)}


def test_of_sql_the_tokens_are_written_down() -> None:
    one, two = token("1"), token("2")
    sql = f"SELECT * FROM studies WHERE has_token('{one}') OR has_token('{two}') OR menu = '{one}' OR x = 'Y'"
    assert audit_conditions.tokens(sql) == [one, two]
    assert audit_conditions.tokens("SELECT 'YAMADA^TARO', 12345") == []
