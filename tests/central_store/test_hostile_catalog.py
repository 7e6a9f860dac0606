"""A manifest that our reader takes and DuckDB does not: it must not stop the catalog, nor an auditor."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from central_store import batches, plain_reader
from central_store.batches import Batch
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


@pytest.fixture
def odd(place: Place, tmp_path: Path) -> Made:
    made = place.a.batch([row(n, menu="Thorax\0routine") for n in range(40)], place.card)
    return _with_table(place, made, _odd(made.table, place.a.name, tmp_path))


def test_it_is_refused_at_the_door(place: Place, odd: Made) -> None:
    """Or it would stop every query an auditor runs over `manifests/**`."""
    place.put(place.a, odd)
    place.put(place.b, place.b.batch([row(1)], place.card))
    counts = place.work()
    assert (counts.stored, counts.refused) == (1, 1)
    refusal = place.reply(place.a, f"{odd.batch}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert (refusal.reason, refusal.explanation) == ("format", "a manifest cannot be read by another program")


def test_what_says_something_else_there_is_refused(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    made = place.a.batch([row(n) for n in range(9)], place.card)
    path.write_bytes(made.table)
    table = manifest.from_parquet(made.table, facility=place.a.name)
    plain_reader.check(path, table)
    for other in (table.slice(1), table.take([1, 0, *range(2, 9)]), pa.concat_tables([table, table])):
        with pytest.raises(FormatError, match=r"something else|statistics"):
            plain_reader.check(path, other)


def test_a_catalog_that_meets_one_goes_on(place: Place, odd: Made) -> None:
    """One that was committed before it was looked for."""
    layout, batch = place.store.layout, Batch(place.a.card.facility, odd.batch)
    batches.stage(layout.manifest(*batch), odd.table, odd.statement)
    place.put(place.b, place.b.batch([row(1)], place.card))
    assert place.work().stored == 1
    with Catalog(layout, place.store.settings) as catalog:
        for step in (lambda: catalog.follow(batch), catalog.rebuild):
            step()
            assert catalog.totals() == {place.a.name: (1, 40), place.b.name: (1, 1)}
            sizes = catalog.row(
                "SELECT sum(object_bytes) FROM instances WHERE contains(menu, $m)", {"m": "\0"}
            )
            assert sizes == (sum(map(len, odd.objects.values())),)
            for found in catalog.places([names.object_id(name) for name in odd.objects], [batch.facility]):
                assert odd.plain[found.offset : found.offset + found.length] == odd.objects[found.object]
