"""A manifest that the strict reader takes and DuckDB's own does not must not stop the catalog."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import duckdb
import pytest

from central_store.catalog import Catalog
from schemas import container, envelope, manifest, messages, names, ustar
from schemas.errors import FormatError
from tests.central_store.conftest import Place
from tests.kit.batches import Made, row, tar_of


def _odd(table: bytes, facility: str, folder: Path) -> bytes:
    """A table with a changed footer that `manifest` reads and DuckDB does not."""
    rng, path = random.Random(2), folder / "odd.parquet"
    footer = len(table) - 8 - int.from_bytes(table[-8:-4], "little")
    for _ in range(3000):
        changed = bytearray(table)
        changed[rng.randrange(footer, len(table) - 8)] ^= 1 << rng.randrange(8)
        try:
            manifest.from_parquet(bytes(changed), facility=facility)
        except FormatError:
            continue
        path.write_bytes(changed)
        try:
            duckdb.connect().execute(f"CREATE TABLE t AS FROM '{path}'")
        except duckdb.Error:
            return bytes(changed)
    raise AssertionError("DuckDB reads all of them now: this test can go")


def _with_table(place: Place, made: Made, table: bytes) -> Made:
    batch = names.BatchId(hashlib.sha256(table).hexdigest())
    old = made.statement.message
    assert isinstance(old, messages.Statement)
    values = {
        key: getattr(old, key) for key in ("facility", "sequence", "previous", "objects", "bytes", "created")
    }
    statement = container.sign(messages.Statement(**values, batch=batch), place.a.key)
    plain = container.head_bytes(statement, table) + tar_of(list(made.objects.values())) + ustar.END
    sealed = envelope.seal_bytes(plain, [place.card.age_recipient])
    return Made(batch, sealed, plain, statement, table, made.objects)


def test_a_footer_only_duckdb_stumbles_over(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = place.a.batch([row(n, menu="Thorax\0routine") for n in range(40)], place.card)
    odd = place.put(place.a, _with_table(place, made, _odd(made.table, place.a.name, tmp_path)))
    place.put(place.b, place.b.batch([row(1)], place.card))
    assert place.work().stored == 2
    assert "catalog" not in caplog.text
    assert not list(place.store.layout.journal.iterdir())
    with Catalog(place.store.layout, place.store.settings) as catalog:
        for _ in range(2):
            assert catalog.totals() == {place.a.name: (1, 40), place.b.name: (1, 1)}
            sizes = catalog.row(
                "SELECT sum(object_bytes) FROM instances WHERE menu = $m", {"m": "Thorax\0routine"}
            )
            assert sizes == (sum(map(len, odd.objects.values())),)
            places = catalog.places([names.object_id(name) for name in odd.objects], [place.a.card.facility])
            pack = place.store.layout.pack(odd.batch).read_bytes()
            for found in places:
                assert pack[found.offset : found.offset + found.length] == odd.objects[found.object]
            catalog.rebuild()
