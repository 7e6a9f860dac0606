"""Rows for a catalog of any size, distributed like real archives: for `scripts/bench/search`.

The series are those of the public Imaging Data Commons index (PyPI `idc-index-data`): how many images each
has, its modality, body part, description, device and study, and which patient's it is. Fewer rows are a
sample of its patients; more are copies with other UIDs, patients and dates. Collections become facilities.
Series arrive by month of the study, facility by facility, in batches of a thousand images.

They are put into the catalog's own tables by its own connection, and their keys into its look-ups by its own
code: what a search reads is what an ingest leaves. Only reading manifests one by one is left out. Nothing of
what `scripts/bench/search` measures uses this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from central_store import catalog_tables as tables
from central_store import packed
from central_store.catalog import Catalog
from central_store.keys import OBJECTS, key_sql
from schemas import columns
from schemas.conditions import ENTITIES, TOKEN

CHUNK = 4_000
"""Parts that are loaded in one transaction, unless they have more than `MOST` objects."""
MOST = 250_000

_SERIES = """
CREATE TABLE slices AS
WITH indexed AS (
    SELECT *, hash(PatientID) % 1000000 / 1e6 AS share,
        'facility-' || lpad((hash(collection_id) % 60)::VARCHAR, 2, '0') AS facility,
        coalesce(try_cast(StudyDate AS DATE), DATE '2005-01-01' + (hash(PatientID) % 5000)::INT) AS day
    FROM read_parquet($index)
), copied AS (
    SELECT * EXCLUDE (day), copy, (day + (copy * 37)::INT)::DATE AS day,
        dense_rank() OVER (ORDER BY PatientID, copy) AS patient
    FROM indexed, range(8) r(copy) WHERE share < $fraction - copy
), cut AS (
    SELECT * EXCLUDE (instanceCount), least(1000, instanceCount - 1000 * piece)::BIGINT AS n,
        piece, date_trunc('month', day) AS month
    FROM copied, LATERAL (SELECT unnest(range(0, ((instanceCount + 999) // 1000)::BIGINT)) AS piece)
), batched AS (
    SELECT *, sum(n) OVER (PARTITION BY month, facility
        ORDER BY StudyInstanceUID, copy, SeriesInstanceUID, piece) // 1000 AS turn
    FROM cut
)
SELECT *, dense_rank() OVER (ORDER BY month, facility, turn) AS batch,
    1 + coalesce(sum(n) OVER (ORDER BY month, facility, turn, StudyInstanceUID, copy, SeriesInstanceUID, piece
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::BIGINT AS part
FROM batched"""
_PARTS = """
SELECT part, n AS objects, piece,
    min(part) OVER (PARTITION BY facility, StudyInstanceUID, copy) AS study,
    min(part) OVER (PARTITION BY facility, StudyInstanceUID, copy, SeriesInstanceUID) AS series,
    sha256(batch::VARCHAR) AS batch_id, batch, facility,
    StudyInstanceUID || '.' || copy AS study_uid, SeriesInstanceUID || '.' || copy AS series_uid,
    SOPClassUID AS sop_class_uid, TransferSyntaxUID AS transfer_syntax_uid, day AS study_date,
    TIME '08:00:00' AS study_time, Modality AS modality, NULL AS menu_code, NULL AS menu_scheme,
    SeriesDescription AS menu, upper(BodyPartExamined) AS body_part, NULL AS laterality,
    try_cast(SeriesNumber AS INTEGER) AS series_number, collection_id AS institution, NULL AS station,
    Manufacturer AS manufacturer, ManufacturerModelName AS model,
    ['1' || upper(substr(sha256('i' || patient), 1, 26)), '1' || upper(substr(sha256('j' || patient), 1, 26))]
        AS patient_id_tokens,
    ['1' || upper(substr(sha256('n' || patient), 1, 26))] AS person_tokens,
    ['1' || upper(substr(sha256('a' || StudyInstanceUID || copy), 1, 26))] AS accession_tokens,
    [substr(sha256(facility), 1, 16)] AS domains,
    from_hex(sha256('s' || patient || month) || sha256('t' || patient || month)
        || sha256('u' || patient || month) || sha256('v' || patient || month)) AS sealed_identity,
    n AS n_instances, greatest(1000, series_size_MB * 1e6 / n)::BIGINT AS each_bytes
FROM slices ORDER BY part"""
_PARTS_FILLED = """
SELECT * EXCLUDE (objects, each_bytes, batch, piece), sha256(part::VARCHAR) AS first_object,
    objects * each_bytes AS object_bytes, objects * each_bytes AS dicom_bytes,
    (study_date + INTERVAL 1 DAY)::TIMESTAMPTZ AS captured_at
FROM incoming"""
_FOLDED = ", ".join(f"{value} AS {name}" for name, value in tables.FOLDED.items())
_ADD_PARTS = f"""INSERT INTO parts BY NAME
SELECT *, {_FOLDED}, {packed.sql()} AS packed FROM ({_PARTS_FILLED}) ORDER BY part"""
_ADD_OBJECTS = """INSERT INTO objects BY NAME
SELECT part + i AS number, part, 4096 + i * (each_bytes + 1024) AS object_offset, false AS duplicate,
    sha256((part + i)::VARCHAR) AS object_sha256, each_bytes AS object_bytes, 'dicom+zstd' AS encoding,
    each_bytes * 2 AS dicom_bytes, sha256('d' || (part + i)) AS source_digest,
    (study_date + INTERVAL 1 DAY)::TIMESTAMPTZ AS captured_at,
    series_uid || '.' || (piece * 1000 + i) AS sop_instance_uid,
    study_date::TIMESTAMP + INTERVAL (i) SECOND AS acquisition_datetime,
    (piece * 1000 + i + 1)::INTEGER AS instance_number, 512 AS "rows", 512 AS "columns", 12 AS bits,
    []::VARCHAR[] AS flags
FROM incoming, LATERAL (SELECT unnest(range(objects)) AS i) ORDER BY number"""
_KEYS = " UNION ALL ".join(
    (
        *(f"SELECT '{kind}' AS kind, {key_sql(kind, kind)} AS key, number FROM fresh" for kind in OBJECTS),
        *(
            f"SELECT '{kind}', {key_sql(kind, kind)}, part FROM fresh_parts WHERE part = {number}"
            for kind, number in ENTITIES.items()
        ),
        *(
            f"SELECT DISTINCT '{TOKEN}', {key_sql(TOKEN, 'value')}, study "
            f"FROM (SELECT unnest({column.name}) AS value, study FROM fresh_parts)"
            for column in columns.tokens()
        ),
    )
)
_SORTED = f"SELECT kind, key, number::UBIGINT AS number FROM ({_KEYS}) ORDER BY kind, key"
_FRESH = (
    """CREATE OR REPLACE TEMP VIEW fresh AS
SELECT o.*, p.facility FROM objects o JOIN parts p ON p.part = o.part
WHERE o.number BETWEEN {low} AND {high} AND p.part BETWEEN {low} AND {high}""",
    "CREATE OR REPLACE TEMP VIEW fresh_parts AS SELECT * FROM parts WHERE part BETWEEN {low} AND {high}",
)


def index() -> Path:
    """The published index; raises `ImportError` without the `bench` extra."""
    import idc_index_data

    return Path(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)


def fill(catalog: Catalog, objects: int, work: Path, told: Callable[[int], None] = lambda _: None) -> int:
    """Fill an open catalog with about so many objects, or go on with that; returns how many.

    Args:
        catalog: an open one without rows, or one that a run like this left.
        objects: how many, about.
        work: a folder for what lies between.
        told: the number of objects, now and then.
    """
    path = work / f"parts-{objects}.parquet"
    if not path.exists():
        _slices(objects, work, path)
    connection = catalog._connection  # its own tables, by its own connection
    (done,) = connection.execute("SELECT coalesce(max(part), 0) FROM parts").fetchall()[0]
    file = pq.ParquetFile(path)
    for piece in (piece for chunk in file.iter_batches(batch_size=CHUNK) for piece in _bounded(chunk)):
        low = piece["part"][0].as_py()
        if low <= done:
            continue
        connection.register("incoming", piece)
        connection.execute("BEGIN")
        high = piece["part"][-1].as_py() + piece["objects"][-1].as_py() - 1
        connection.execute(_ADD_PARTS)
        connection.execute(_ADD_OBJECTS)
        for sql in _FRESH:
            connection.execute(sql.format(low=low, high=high))
        catalog._lookups.add(connection.sql(_SORTED).to_arrow_table())
        connection.execute(
            "INSERT INTO spans SELECT batch_id, min(part), sum(objects) FROM incoming GROUP BY batch_id"
        )
        connection.execute("COMMIT")
        catalog._lookups.kept()
        connection.unregister("incoming")
        catalog.settle()
        done = high
        told(done)
    connection.execute("DROP VIEW fresh")
    connection.execute("DROP VIEW fresh_parts")
    connection.execute(
        """INSERT INTO batches SELECT batch_id, any_value(facility), row_number() OVER (
            PARTITION BY any_value(facility) ORDER BY min(part)), '', sum(n_instances), sum(object_bytes),
            max(captured_at), max(captured_at) FROM parts GROUP BY batch_id"""
    )
    catalog._bundles.remake()
    connection.execute("CHECKPOINT")
    return done


def _bounded(chunk: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Pieces of it whose objects' keys fit the catalog's memory."""
    first, held = 0, 0
    for at, objects in enumerate(chunk["objects"].to_pylist()):
        if held and held + objects > MOST:
            yield chunk.slice(first, at - first)
            first, held = at, 0
        held += objects
    yield chunk.slice(first)


def _slices(objects: int, work: Path, path: Path) -> None:
    source, scratch = index(), work / "slices.duckdb"
    scratch.unlink(missing_ok=True)
    with duckdb.connect(str(scratch), config={"memory_limit": "4GB", "threads": 2}) as connection:
        (whole,) = connection.execute(
            "SELECT sum(instanceCount)::DOUBLE FROM read_parquet($index)", {"index": str(source)}
        ).fetchall()[0]
        connection.execute(_SERIES, {"index": str(source), "fraction": objects / whole})
        connection.execute(f"COPY ({_PARTS}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {CHUNK})")
    scratch.unlink()


def batch_of(number: int) -> str:
    """The id of a generated batch."""
    return hashlib.sha256(str(number).encode()).hexdigest()
