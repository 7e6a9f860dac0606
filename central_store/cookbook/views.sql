-- Views over the files of a store, or of a folder that `fstore audit-kit` wrote. Start DuckDB there: duckdb -init views.sql
SET TimeZone = 'UTC';

-- The day that questions about a day speak of, how many days are long, and the token of a patient.
SET VARIABLE day = today();
SET VARIABLE days = 90;
SET VARIABLE token = '';

-- What facilities signed: one row for each batch.
CREATE OR REPLACE VIEW batches AS
SELECT parse_path(filename)[-2] AS batch_id, facility, sequence, previous, objects, bytes, created, batch AS signed_batch
FROM read_json('manifests/*/*/statement.json', filename = true, columns = {
    facility: 'VARCHAR', sequence: 'BIGINT', previous: 'VARCHAR', batch: 'VARCHAR', objects: 'BIGINT', bytes: 'BIGINT',
    created: 'TIMESTAMPTZ'});

-- What the store signed: since when a batch is durable.
CREATE OR REPLACE VIEW receipts AS
SELECT batch AS batch_id, facility, sequence, store, objects, bytes, stored
FROM read_json('manifests/*/*/receipt.json', columns = {
    batch: 'VARCHAR', facility: 'VARCHAR', sequence: 'BIGINT', store: 'VARCHAR', objects: 'BIGINT', bytes: 'BIGINT',
    stored: 'TIMESTAMPTZ'});

-- The rows of all manifests, with their batch, its number and when it was stored.
CREATE OR REPLACE VIEW instances AS
SELECT m.* EXCLUDE (filename), parse_path(m.filename)[-2] AS batch_id, r.sequence, r.stored
FROM read_parquet('manifests/*/*/manifest.parquet', filename = true) m
LEFT JOIN receipts r ON r.batch_id = parse_path(m.filename)[-2];

-- What was stored at the end of a day, each file once: the same answer whenever it is asked.
CREATE OR REPLACE MACRO as_of(day) AS TABLE
SELECT * FROM instances WHERE stored < CAST(day AS DATE) + INTERVAL 1 DAY
QUALIFY row_number() OVER (PARTITION BY facility, source_digest ORDER BY sequence, batch_id, object_sha256) = 1;

-- The audit log: its events, and the checkpoints the store signed.
CREATE OR REPLACE VIEW events AS
SELECT sequence, time, kind, facility, "user", subject, details, previous, hash,
    CAST(parse_filename(filename, true) AS BIGINT) AS segment, file_row_number + 1 AS row
FROM read_parquet('audit/*.parquet', filename = true, file_row_number = true);

CREATE OR REPLACE VIEW checkpoints AS
SELECT * FROM read_json('audit/*.json', columns = {
    segment: 'BIGINT', events: 'BIGINT', sequence: 'BIGINT', head: 'VARCHAR', "table": 'VARCHAR', previous: 'VARCHAR',
    created: 'TIMESTAMPTZ', store: 'VARCHAR'});

-- What checks found, batch by batch.
CREATE OR REPLACE VIEW checks AS
SELECT facility, batch AS batch_id, started, finished, bytes, outcome FROM read_parquet('checks/*.parquet');
