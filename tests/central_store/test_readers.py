"""Auditors read with plain DuckDB, in processes of their own, while the store takes batches in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from central_store.service import Clock, Service
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, row

READER = """
import json, os, sys
import duckdb

root, stop = sys.argv[1:]
while True:
    last = os.path.exists(stop)
    with duckdb.connect(f"{root}/catalog/published.duckdb", read_only=True) as catalog:
        published = catalog.execute(
            "SELECT (SELECT count(*) FROM instances), (SELECT count(DISTINCT object_sha256) FROM instances), "
            "(SELECT sum(objects) FROM batches), (SELECT sum(n_instances) FROM studies)").fetchone()
    with duckdb.connect() as files:
        manifests = files.execute(
            f"SELECT count(*), count(DISTINCT object_sha256), count(DISTINCT filename) "
            f"FROM read_parquet('{root}/manifests/**/*.parquet', filename = true)").fetchone()
        bare = files.execute(f"SELECT count(*) FROM '{root}/manifests/**/*.parquet'").fetchone()
    print(json.dumps([[int(n) for n in published], manifests, bare[0]]), flush=True)
    if last:
        break
"""
BATCHES, ROWS = 5, 3


def test_readers_see_whole_batches_and_never_fewer_while_the_store_ingests(
    place: Place, tmp_path: Path
) -> None:
    def arrives(number: int) -> None:
        rows = [row(number * ROWS + at, study=number) for at in range(ROWS)]
        place.put(place.a, place.a.batch(rows, place.card))
        service = Service(place.store, Clock(lambda: NOW, time.monotonic))
        assert service.one_pass(publish=True).stored == 1

    arrives(0)
    stop = tmp_path / "stop"
    command = [sys.executable, "-I", "-c", READER, str(place.root), str(stop)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        looks = [json.loads(reader.stdout.readline())]
        for number in range(1, BATCHES):
            arrives(number)
        stop.touch()
        looks += [json.loads(line) for line in reader.stdout]
    assert reader.returncode == 0
    assert [len(set(published)) for published, _, _ in looks] == [1] * len(looks)
    assert all(rows == distinct == ROWS * batches for _, (rows, distinct, batches), _ in looks)
    for column in (
        [published[0] for published, _, _ in looks],
        [rows for _, (rows, _, _), _ in looks],
        [bare for _, _, bare in looks],
    ):
        assert column == sorted(column)
        assert set(column) <= set(range(ROWS, ROWS * BATCHES + 1, ROWS))
        assert len(set(column)) > 2, "nothing happened while they read"
        assert column[-1] == ROWS * BATCHES
