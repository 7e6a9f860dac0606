"""The catalog's tables, and the statements that keep them: SQL text, from the column table only. Pure.

    objects     one row for each object: what it has of its own, and the number of its part
    parts       what a batch holds of one series: every column its objects share, their count and sums; texts
                folded, for searches; and all of it that answers show, packed (`central_store.packed`)
    sheets, renewed   where bundles lie, which lists of studies read in the place of parts
                (`central_store.bundling`)
    batches     one row each: facility, sequence, previous, counts, when it was stored
    spans       the numbers of its objects: they follow each other
    conflicts   SOP instances of which a facility sent different files
    damaged     batches whose pack is damaged: what lies in `damaged/`
    erased      batches with a tombstone: a line in `batches` and no rows, whose numbers are not given again
    changes     lines of the change feed that are not lasting in its file yet
    instances   a view: objects with all columns

A part is a roll-up that never changes but for its counts: a batch adds its own and touches no other. Its
number is that of its first object; `study` and `series` of a part are the numbers of the first part of that
study or series of the facility. Objects of a series that differ in a shared column are of different parts, so
a condition on a shared column holds for all objects of a part or for none, and a search that groups parts
finds what a scan of all rows would.
"""

from __future__ import annotations

from central_store import bundles, bundling, keys, lookups, packed, sheets
from schemas import columns, conditions
from schemas.columns import Column


def _names(chosen: tuple[Column, ...], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{column.name}"' for column in chosen)


SHARED, OWN = columns.shared(), columns.own()
TOTALS = columns.totals()
"""Own columns that a part sums up."""
_SHARED = _names(SHARED)
_WAYS = {"sum": "sum", "max": "max", "min": "min"}
_COUNTS = ", ".join(
    [
        "count(*) FILTER (NOT duplicate) AS n_instances",
        "min(object_sha256) FILTER (NOT duplicate) AS first_object",
        *(f'{_WAYS[c.rollup]}("{c.name}") FILTER (NOT duplicate) AS "{c.name}"' for c in TOTALS),
    ]
)
_TOTALS = ", ".join(["n_instances", "first_object", *(f'"{c.name}"' for c in TOTALS)])

FOLDED: dict[str, str] = {conditions.folded(c): f'lower("{c.name}")' for c in SHARED if c.search == "text"}
"""Columns of `parts` for searches by words, and what they are."""
_FOLDED, _FOLDS = ", ".join(FOLDED), ", ".join(FOLDED.values())

TABLES: tuple[str, ...] = (
    columns.duckdb_ddl(
        "objects",
        "number BIGINT NOT NULL",
        "part BIGINT NOT NULL",
        "object_offset BIGINT NOT NULL",
        "duplicate BOOLEAN NOT NULL",
        chosen=OWN,
    ),
    columns.duckdb_ddl(
        "parts",
        "part BIGINT NOT NULL",
        "study BIGINT NOT NULL",
        "series BIGINT NOT NULL",
        "batch_id VARCHAR NOT NULL",
        "n_instances BIGINT NOT NULL",
        "first_object VARCHAR",
        *(f'"{column.name}" {columns.duckdb_type(column)}' for column in TOTALS),
        *(f"{name} VARCHAR" for name in FOLDED),
        "packed VARCHAR USING COMPRESSION uncompressed",  # few are read at a time: none is unpacked for them
        chosen=SHARED,
    ),
    "CREATE INDEX part ON parts (part)",  # a few parts of millions are read without a scan
    """CREATE TABLE batches (
    batch_id VARCHAR PRIMARY KEY, facility VARCHAR NOT NULL, sequence BIGINT NOT NULL,
    previous VARCHAR NOT NULL, objects BIGINT NOT NULL, bytes BIGINT NOT NULL,
    created TIMESTAMP WITH TIME ZONE NOT NULL, stored TIMESTAMP WITH TIME ZONE
)""",
    "CREATE TABLE spans (batch_id VARCHAR NOT NULL, first BIGINT NOT NULL, rows BIGINT NOT NULL)",
    "CREATE TABLE conflicts (facility VARCHAR, sop_instance_uid VARCHAR)",
    "CREATE TABLE damaged (batch_id VARCHAR)",
    "CREATE TABLE erased (batch_id VARCHAR NOT NULL)",
    "CREATE TABLE changes (number BIGINT NOT NULL, line VARCHAR NOT NULL)",
    f"""CREATE VIEW instances AS SELECT
    {", ".join(f'{"p" if c in SHARED else "o"}."{c.name}"' for c in columns.COLUMNS)},
    p.batch_id, o.object_offset, o.duplicate
FROM objects o JOIN parts p ON p.part = o.part""",
    *lookups.DDL,
    *bundling.DDL,
)

NEXT = "SELECT coalesce(max(first + rows), 1) FROM spans"
KNOWN = f"""SELECT {", ".join([*conditions.ENTITIES, *conditions.ENTITIES.values()])} FROM parts
WHERE part IN (SELECT unnest($found::BIGINT[])) AND facility = $facility"""
"""The first parts of studies and series."""
ADD_OBJECTS = f"""INSERT INTO objects ({_names(OWN)}, number, part, object_offset, duplicate)
SELECT {_names(OWN)}, number, part, object_offset, false FROM incoming ORDER BY number"""
ADD_PARTS = f"""INSERT INTO parts ({_SHARED}, part, study, series, batch_id, {_TOTALS}, {_FOLDED}, packed)
SELECT {_SHARED}, part, study, series, $batch, {_TOTALS}, {_FOLDS}, {packed.sql()}
FROM incoming ORDER BY part"""
DERIVED = (
    packed.sql(),
    *(keys.key_sql(kind, kind) for kind in keys.KINDS),
    bundles.OF_PARTS,
    sheets.SHAPE,
    *FOLDED.values(),
)
"""How values of tables follow from others: a reader relies on it as on their shape."""
SEEN = "SELECT 1 FROM batches WHERE batch_id = ?"
ADD_BATCH = "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
ADD_SPAN = "INSERT INTO spans VALUES (?, ?, ?)"

MARKED = "CREATE OR REPLACE TEMP TABLE marked AS SELECT unnest($numbers::BIGINT[]) AS number"
MARKED_ALL = """CREATE OR REPLACE TEMP TABLE marked AS SELECT number FROM objects
WHERE hash(source_digest) IN (SELECT hash(source_digest) FROM objects GROUP BY ALL HAVING count(*) > 1)"""
FLIPPED = """CREATE OR REPLACE TEMP TABLE flipped AS SELECT * FROM (
    SELECT o.number, o.part, o.object_sha256, p.facility, p.batch_id, o.duplicate AS was,
        row_number() OVER (
            PARTITION BY p.facility, o.source_digest
            ORDER BY p.batch_id IN (SELECT batch_id FROM damaged), b.sequence, p.batch_id,
                o.object_sha256, o.object_offset) > 1 AS now
    FROM objects o JOIN parts p ON p.part = o.part JOIN batches b ON b.batch_id = p.batch_id
    WHERE o.number IN (SELECT number FROM marked)
) WHERE was <> now"""
FLIPPED_STUDIES = "SELECT DISTINCT study FROM parts WHERE part IN (SELECT part FROM flipped)"
FLIP: tuple[str, ...] = (
    "UPDATE objects SET duplicate = NOT duplicate WHERE number IN (SELECT number FROM flipped)",
    f"""UPDATE parts SET {", ".join(f"{name} = c.{name}" for name in _TOTALS.split(", "))}
FROM (SELECT part, {_COUNTS} FROM objects WHERE part IN (SELECT part FROM flipped) GROUP BY part) c
WHERE parts.part = c.part""",
    f"UPDATE parts SET packed = {packed.sql()} WHERE part IN (SELECT part FROM flipped)",
)
_DIFFER = "GROUP BY ALL HAVING count(DISTINCT source_digest) > 1"
CONFLICT = f"""INSERT INTO conflicts SELECT p.facility, o.sop_instance_uid
FROM objects o JOIN parts p ON p.part = o.part
WHERE o.number IN (SELECT unnest($numbers::BIGINT[])) AND p.facility = $facility {_DIFFER}
EXCEPT FROM conflicts RETURNING sop_instance_uid"""
CONFLICT_ALL = f"""INSERT INTO conflicts SELECT p.facility, o.sop_instance_uid
FROM objects o JOIN parts p ON p.part = o.part
WHERE hash(sop_instance_uid) IN (
    SELECT hash(sop_instance_uid) FROM objects GROUP BY ALL HAVING count(*) > 1) {_DIFFER}"""
ANY_CONFLICT = "SELECT 1 FROM conflicts LIMIT 1"
DISPUTED = """SELECT facility, sop_instance_uid FROM conflicts
WHERE sop_instance_uid IN (SELECT unnest($uids::VARCHAR[]))"""
DIGESTS_OF_BATCHES = """SELECT b.facility, list(DISTINCT o.source_digest) FROM batches b
JOIN spans s ON s.batch_id = b.batch_id JOIN objects o ON o.number BETWEEN s.first AND s.first + s.rows - 1
WHERE b.batch_id IN (SELECT unnest($batches::VARCHAR[])) GROUP BY b.facility"""

_ERASED = "o.number BETWEEN (SELECT first FROM spans WHERE batch_id = $batch) AND \
(SELECT first + rows - 1 FROM spans WHERE batch_id = $batch)"
ERASED = "SELECT 1 FROM erased WHERE batch_id = ?"
ADD_ERASED = "INSERT INTO erased VALUES (?)"
KEYS_OF_BATCH = f"SELECT DISTINCT source_digest, sop_instance_uid FROM objects o WHERE {_ERASED}"
ERASE: tuple[str, ...] = (
    "CREATE OR REPLACE TEMP TABLE gone AS SELECT part, study FROM parts WHERE batch_id = $batch",
    f"DELETE FROM objects o WHERE {_ERASED}",
    "DELETE FROM parts WHERE batch_id = $batch",
)
NEW_NUMBERS = {
    name: (
        f"""CREATE OR REPLACE TEMP TABLE moved_{number} AS SELECT {number} AS old, min(part) AS new FROM parts
WHERE {number} IN (SELECT part FROM gone) GROUP BY {number}""",
        f"UPDATE parts SET {number} = m.new FROM moved_{number} m WHERE parts.{number} = m.old",
    )
    for name, number in conditions.ENTITIES.items()
}
"""A study or series whose first part went is numbered by the first that is left: a later batch finds it."""
RENEWED = "SELECT study FROM gone UNION SELECT new FROM moved_study"
"""After an erasure: studies that are not what they were, by their old numbers and by the new ones."""
_NEW_KEYS = " UNION ALL ".join(
    (
        *(
            f"SELECT '{kind}' AS kind, {keys.key_sql(kind, f'p.{kind}')} AS key, m.new AS number "
            f"FROM moved_{number} m JOIN parts p ON p.part = m.new"
            for kind, number in conditions.ENTITIES.items()
        ),
        *(
            f"SELECT DISTINCT '{conditions.TOKEN}', {keys.key_sql(conditions.TOKEN, 'value')}, new FROM ("
            f"SELECT unnest(p.{name}) AS value, m.new FROM moved_study m JOIN parts p ON p.study = m.new)"
            for name in (c.name for c in columns.tokens())
        ),
    )
)
NEW_KEYS = f"SELECT kind, key, number::UBIGINT AS number FROM ({_NEW_KEYS}) ORDER BY kind, key"
NO_CONFLICTS = """DELETE FROM conflicts
WHERE facility = $facility AND sop_instance_uid IN (SELECT unnest($uids::VARCHAR[]))"""

HELD = """SELECT o.source_digest, min(p.batch_id) FROM objects o JOIN parts p ON p.part = o.part
WHERE o.number IN (SELECT unnest($found::BIGINT[])) AND p.facility = $facility
AND o.source_digest IN (SELECT unnest($wanted::VARCHAR[]))
AND p.batch_id NOT IN (SELECT batch_id FROM damaged) GROUP BY ALL"""
PLACES = "SELECT part, object_sha256, object_offset, object_bytes, encoding FROM objects WHERE "
WHOSE = "SELECT part, (batch_id, facility) FROM parts WHERE "
HEAD = """SELECT coalesce(max(sequence), 0), coalesce(arg_max(batch_id, sequence), '')
FROM batches WHERE facility = $facility"""
_WITH_ROWS = "batch_id NOT IN (SELECT batch_id FROM erased)"
INVENTORY = f"""SELECT facility, sequence, batch_id FROM batches
WHERE facility IN (SELECT unnest($owners::VARCHAR[])) AND {_WITH_ROWS}"""
OWNED = f"""SELECT facility, batch_id FROM batches
WHERE batch_id IN (SELECT unnest($batches::VARCHAR[])) AND facility IN (SELECT unnest($owners::VARCHAR[]))
AND {_WITH_ROWS}"""
FORKED = """SELECT 1 FROM batches a, batches b
WHERE a.batch_id = $batch AND b.facility = a.facility AND b.batch_id <> a.batch_id
AND (b.sequence = a.sequence
    OR b.sequence = a.sequence - 1 AND b.batch_id <> a.previous
    OR b.sequence = a.sequence + 1 AND b.previous <> a.batch_id)"""
PER_FACILITY = """SELECT facility, count(*), (
    SELECT count(*) FROM objects o JOIN parts p ON p.part = o.part WHERE p.facility = b.facility)
FROM batches b GROUP BY facility"""
ROWS_OF_BATCHES = """SELECT b.batch_id, coalesce(n, 0) FROM batches b LEFT JOIN (
    SELECT p.batch_id, count(*) AS n FROM objects o JOIN parts p ON p.part = o.part GROUP BY ALL
) c ON c.batch_id = b.batch_id"""

ANNOUNCED = """SELECT facility, batch_id, sequence, objects, bytes, strftime(stored, '%Y-%m-%dT%H:%M:%SZ')
FROM batches WHERE batch_id IN (SELECT unnest($batches::VARCHAR[])) ORDER BY facility, sequence, batch_id"""
CHANGED = """SELECT facility, batch_id, now, list(object_sha256 ORDER BY object_sha256) FROM flipped
GROUP BY ALL ORDER BY ALL"""
STAND_BEHIND = """SELECT p.facility, p.batch_id, true, list(object_sha256 ORDER BY object_sha256)
FROM objects o JOIN parts p ON p.part = o.part
WHERE o.duplicate AND p.batch_id IN (SELECT unnest($batches::VARCHAR[])) GROUP BY ALL ORDER BY ALL"""
CONFLICTS_OF = """SELECT DISTINCT o.sop_instance_uid FROM objects o JOIN parts p ON p.part = o.part
WHERE p.batch_id = $batch AND (p.facility, o.sop_instance_uid) IN (
    SELECT (facility, sop_instance_uid) FROM conflicts) ORDER BY 1"""
OWNER = "SELECT facility FROM batches WHERE batch_id = $batch"
NOTE = "INSERT INTO changes VALUES (?, ?)"
NOTED = "SELECT number, line FROM changes ORDER BY number"
FORGET = "DELETE FROM changes WHERE number <= ?"
