"""A store with rows of two facilities, and a hand that asks it SQL through the whole of the sandbox."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from central_store import sql_rows
from central_store.settings import Store, open_store
from central_store.sql import Sandbox
from schemas import names
from tests.central_store.conftest import Place
from tests.kit.batches import digest, row, token

A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")
SECRET = "HOSPITAL B ONLY"


def fill(made_store: Place, root: Path) -> Place:
    """Four studies of clinic-a, one of hospital_b; a file twice, and a conflict."""
    shutil.copytree(made_store.root, root)
    place = Place(open_store(root), made_store.a, made_store.b)
    place.put(place.a, place.a.batch(
        [
            row(0, study=1, patient_id_tokens=[token("p1"), token("p1-issuer")]),
            row(1, study=1, patient_id_tokens=[token("p1")]),
            row(0, study=1, series=2, patient_id_tokens=[token("p1")], modality="SR", menu=None),
            row(0, study=2, study_date=date(2024, 2, 1), patient_id_tokens=[token("p2")]),
            row(0, study=3, study_date=None, modality="MR"),
            row(0, study=4, study_uid=None, series_uid=None),
        ],
        place.card,
    ))  # fmt: skip
    place.put(place.a, place.a.batch(
        [
            row(1, study=1, patient_id_tokens=[token("p1")]),
            row(0, study=2, source_digest=digest("another file of that instance")),
        ],
        place.card,
    ))  # fmt: skip
    place.put(place.b, place.b.batch(
        [row(0, study=9, menu=SECRET, institution=SECRET, patient_id_tokens=[token("secret")])], place.card
    ))  # fmt: skip
    assert place.work().stored == 3
    return place


@dataclass
class Asker:
    """Asks SQL as a facility that may see the rows of these owners."""

    store: Store
    sandbox: Sandbox
    owners: tuple[names.FacilityName, ...] = (A,)

    def table(self, sql: str) -> pa.Table:
        """The answer's table; raises `Refused`."""
        with sql_rows.reading(self.store.layout, self.owners, 96) as files:
            done = self.sandbox.run(sql, files)
        table = pq.read_table(io.BytesIO(done.table))
        assert table.num_rows == done.rows
        return table

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The answer's rows."""
        found: list[dict[str, Any]] = self.table(sql).to_pylist()
        return found


@contextmanager
def asking(
    place: Place, *owners: names.FacilityName, kind: type[Sandbox] = Sandbox, **settings: int
) -> Iterator[Asker]:
    """An asker with a sandbox of its own."""
    store = replace(place.store, settings=replace(place.store.settings, **settings))
    sandbox = kind(store.settings)
    try:
        yield Asker(store, sandbox, owners or (A,))
    finally:
        sandbox.close()
