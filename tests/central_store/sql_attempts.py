"""Attempts to get out of the sandbox for SQL: each is refused, or gives nothing but permitted rows.

`{file}`, `{pack}` and `{other}` are paths of a file with a canary, of the asker's own rows and of another
facility's rows; `{out}` is a path where nothing lies.
"""

from __future__ import annotations

FILES = """
SELECT * FROM '{file}'
SELECT * FROM "{file}"
SELECT * FROM read_csv('{file}')
SELECT * FROM read_csv_auto('{file}', header=false)
SELECT * FROM read_text('{file}')
SELECT * FROM read_blob('{file}')
SELECT * FROM read_json('{file}')
SELECT * FROM read_json_objects('{file}')
SELECT * FROM read_ndjson_objects('{file}')
SELECT * FROM read_parquet('{file}')
SELECT * FROM parquet_scan('{file}')
SELECT * FROM parquet_metadata('{file}')
SELECT * FROM parquet_schema('{file}')
SELECT * FROM parquet_kv_metadata('{file}')
SELECT * FROM parquet_file_metadata('{file}')
SELECT * FROM parquet_bloom_probe('{file}', 'a', 1)
SELECT * FROM sniff_csv('{file}')
SELECT * FROM read_duckdb('{other}')
SELECT * FROM glob('/*')
SELECT * FROM glob('{file}')
SELECT * FROM read_single_csv_file('{file}')
SELECT * FROM read_single_parquet_file('{other}')
SELECT * FROM 'https://127.0.0.1:1/x.parquet'
SELECT * FROM read_csv('/proc/self/environ')
SELECT * FROM read_text('/proc/1/environ')
SELECT * FROM read_blob('/proc/self/mem')
SELECT content FROM read_text(['{file}', '{file}'])
SELECT (SELECT content FROM read_text('{file}'))
SELECT * FROM studies WHERE menu = (SELECT content FROM read_text('{file}'))
SELECT * FROM studies, LATERAL (SELECT * FROM read_text('{file}'))
WITH "{file}" AS (SELECT 1) SELECT * FROM "{file}"
SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) a, "{file}" b
SELECT * FROM '{other}'
SELECT * FROM "{other}"
"""

WRITES = """
COPY studies TO '{out}'
COPY (SELECT 1) TO '{out}' (FORMAT parquet)
COPY studies FROM '{file}'
WITH a AS (COPY (SELECT 1) TO '{out}') SELECT 1
WITH a AS (COPY (SELECT 1) TO '{pack}') SELECT 1
WITH a AS (COPY (SELECT 1) TO '{other}') SELECT * FROM studies
WITH a AS MATERIALIZED (COPY (SELECT 1) TO '{out}' (FORMAT csv)) SELECT * FROM a
SELECT * FROM (COPY (SELECT 1) TO '{out}')
WITH a AS (INSERT INTO f0.rows SELECT * FROM f0.rows RETURNING *) SELECT * FROM a
WITH a AS (DELETE FROM f0.rows RETURNING *) SELECT * FROM a
WITH a AS (UPDATE f0.rows SET menu = 'x' RETURNING *) SELECT * FROM a
WITH a AS (DELETE FROM batches) SELECT 1
WITH a AS (MERGE INTO f0.batches USING studies ON true WHEN MATCHED THEN DELETE) SELECT 1
WITH a AS (CREATE TABLE x (i INT)) SELECT 1
WITH a AS (DROP VIEW studies) SELECT 1
INSERT INTO batches VALUES (1)
UPDATE batches SET sequence = 1
DELETE FROM batches
TRUNCATE batches
CREATE TABLE x AS SELECT 1
CREATE OR REPLACE VIEW studies AS SELECT 1
CREATE MACRO f(x) AS x
CREATE TEMP TABLE t AS SELECT * FROM studies
ALTER TABLE batches ADD COLUMN x INT
DROP TABLE f0.rows
EXPORT DATABASE '{out}'
IMPORT DATABASE '{out}'
CHECKPOINT
FORCE CHECKPOINT
VACUUM
ANALYZE
EXPLAIN ANALYZE SELECT * FROM studies
EXPLAIN COPY studies TO '{out}'
SELECT write_log('x')
SELECT * FROM enable_profiling(save_location => '{out}')
"""

DATABASES = """
ATTACH '{other}' AS x
ATTACH '{other}' AS x (READ_ONLY)
DETACH f0
USE f0
WITH a AS (ATTACH '{other}' AS x) SELECT 1
SELECT * FROM f0.rows
SELECT * FROM f0.main.rows
SELECT * FROM f0.studies
SELECT * FROM main.studies
SELECT * FROM memory.main.studies
SELECT * FROM f0.version
SELECT * FROM f1.rows
SELECT * FROM rows
SELECT * FROM conflicts
SELECT * FROM version
SELECT * FROM system.information_schema.tables
SELECT * FROM information_schema.tables
SELECT * FROM information_schema.columns
SELECT * FROM pg_catalog.pg_class
SELECT * FROM pg_class
SELECT * FROM sqlite_master
SELECT * FROM duckdb_tables
SELECT * FROM duckdb_tables()
SELECT * FROM duckdb_views()
SELECT * FROM duckdb_columns()
SELECT * FROM duckdb_databases()
SELECT * FROM pragma_database_list
SELECT * FROM pragma_table_info('studies')
SELECT * FROM pragma_show('studies')
SELECT * FROM seq_scan('f0.rows')
SELECT * FROM query('SELECT * FROM f0.rows')
SELECT * FROM query_table('f0.rows')
SELECT * FROM query_table(['studies', 'f0.rows'])
SELECT * FROM histogram('f0.rows', menu)
SELECT * FROM histogram_values(f0.rows, menu)
SELECT * FROM summary((SELECT 1))
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM duckdb_settings()'))
PRAGMA json_execute_serialized_sql('x')
SELECT json_serialize_plan('SELECT 1')
SELECT json_deserialize_sql('x')
WITH duckdb_settings AS (SELECT * FROM duckdb_settings) SELECT * FROM duckdb_settings
SELECT * FROM (WITH duckdb_settings AS (SELECT 1) SELECT * FROM duckdb_settings) a, duckdb_settings b
WITH studies AS (SELECT 1 AS x) SELECT * FROM studies
WITH RECURSIVE duckdb_views AS (SELECT * FROM duckdb_views UNION ALL SELECT * FROM duckdb_views) FROM duckdb_views
WITH "rows.x" AS (SELECT 1) SELECT * FROM "rows.x"
SHOW TABLES
SHOW ALL TABLES
SHOW DATABASES
DESCRIBE studies
DESCRIBE SELECT * FROM studies
SUMMARIZE studies
SELECT * FROM (DESCRIBE studies)
SELECT * FROM (SUMMARIZE studies)
SELECT * FROM (SHOW TABLES)
FROM studies AT (VERSION => 1)
SELECT current_database()
SELECT current_database
SELECT current_schema
SELECT current_schemas(true)
SELECT current_catalog
SELECT in_search_path('f0', 'main')
PIVOT studies ON modality USING count(*)
SELECT * FROM studies PIVOT (count(*) FOR modality IN ('CT'))
SELECT nextval('x')
SELECT currval('x')
SELECT pg_get_viewdef(1)
SELECT * FROM storage_info('f0.rows')
SELECT * FROM studies UNION ALL BY NAME SELECT * FROM f0.rows
SELECT * FROM studies s JOIN f0.rows r USING (study_uid)
SELECT (SELECT max(menu) FROM f0.rows)
SELECT * FROM studies WHERE EXISTS (SELECT 1 FROM f0.rows)
SELECT x.* FROM (VALUES (1)) v(i), LATERAL (SELECT * FROM f0.rows) x
"""

SETTINGS = """
SELECT getenv('CANARY')
SELECT getenv('HOME')
SELECT current_setting('temp_directory')
SELECT current_setting('memory_limit')
SELECT getvariable('x')
SELECT * FROM duckdb_settings()
SELECT * FROM duckdb_settings
SELECT * FROM duckdb_secrets()
SELECT * FROM which_secret('s3://x', 's3')
SELECT * FROM duckdb_variables()
SELECT * FROM duckdb_extensions()
SELECT * FROM duckdb_functions()
SELECT * FROM duckdb_memory()
SELECT * FROM duckdb_logs
SELECT * FROM duckdb_logs()
SELECT * FROM duckdb_temporary_files()
SELECT * FROM duckdb_prepared_statements()
SELECT * FROM duckdb_external_file_cache()
SELECT * FROM duckdb_profiling_settings()
SELECT * FROM pragma_version()
SELECT * FROM pragma_platform()
SELECT * FROM pragma_user_agent()
SELECT version()
SELECT current_query()
SELECT txid_current()
SELECT current_user
SELECT session_user
SELECT user
SELECT pg_conf_load_time()
SELECT inet_server_addr()
SET enable_external_access = true
SET lock_configuration = false
SET memory_limit = '100GB'
SET VARIABLE x = 1
RESET memory_limit
PRAGMA enable_external_access
PRAGMA database_list
PRAGMA memory_limit='100GB'
CALL pragma_version()
CALL enable_logging()
INSTALL httpfs
LOAD httpfs
CREATE SECRET s (TYPE s3)
CREATE PERSISTENT SECRET s (TYPE s3)
PREPARE p AS SELECT 1
EXECUTE p
DEALLOCATE p
SELECT $1
SELECT ?
SELECT $name
BEGIN
COMMIT
SELECT 1; SELECT * FROM f0.rows
SELECT 1; COPY studies TO '{out}'
SELECT 1; ATTACH '{other}' AS x; SELECT * FROM x.rows
SELECT setseed(0.5)
SELECT setval('x', 1)
SELECT * FROM register_external_resource('x')
SELECT * FROM truncate_duckdb_logs()
SELECT * FROM disable_logging()
"""

PYTHON = """
SELECT * FROM job
SELECT * FROM sql
SELECT * FROM connection
SELECT * FROM tree
SELECT * FROM sys
SELECT * FROM os
SELECT * FROM VIEWS
SELECT * FROM pandas_scan(1)
SELECT * FROM python_map_function(1)
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM arrow_scan_dumb(1, 2, 3)
SELECT * FROM python_arrow_scan(1, 2)
SELECT * FROM test_all_types()
SELECT * FROM test_vector_types(NULL::INT)
SELECT invoke(x -> x, 1)
SELECT cast_to_type(1, 'x')
SELECT 'x'::regclass
SELECT 1::nosuchtype
SELECT [1]::f0.main.t
SELECT 'x' COLLATE de
SELECT list_aggregate([1], 'sum')
SELECT sleep_ms(100000)
SELECT pg_sleep(100)
SELECT error('x')
SELECT 'a' AT TIME ZONE (SELECT max(menu) FROM f0.rows)
"""

BOMBS = """
SELECT count(*) FROM range(10000000000) a, range(10000000000) b
SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b
SELECT a.range FROM range(100000000) a
SELECT list(a.range) FROM range(10000000000) a
SELECT range(1000000000000)
SELECT len(range(2000000000))
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t
WITH RECURSIVE t(n) AS (SELECT 'x' UNION ALL SELECT n || n FROM t) SELECT max(len(n)) FROM t
SELECT repeat('x', 2000000000)
SELECT lpad('x', 2000000000, 'y')
SELECT rpad('x', 2000000000, 'y')
SELECT printf('%2000000000d', 1)
SELECT format('{{:2000000000}}', 1)
SELECT list_resize([1], 2000000000)
SELECT array_resize([1], 2000000000)
SELECT bar(1, 0, 1, 2000000000)
SELECT string_agg('0123456789', '0123456789') FROM range(1000000000)
SELECT max(replace(m, 'a', m)) FROM (SELECT string_agg('a', '') AS m FROM range(100000))
SELECT levenshtein(a, b) FROM (SELECT string_agg('a', '') AS a, string_agg('b', '') AS b FROM range(1000000))
SELECT 99999 ** 99999, factorial(1000)
SELECT regexp_replace(string_agg('a', ''), '(a*)*b', 'x') FROM range(10000000)
SELECT 'x' SIMILAR TO '(((((((((((((((((((((x{{1000}}){{1000}}){{1000}}))))))))))))))))))))'
SELECT count(*) FROM studies a, studies b, studies c, studies d, studies e, studies f, studies g, series h, series i, series j, series k, series l, series m, series n, instances o, instances p, instances q, instances r
SELECT DISTINCT a.range, b.range FROM range(100000) a, range(100000) b
SELECT row_number() OVER (ORDER BY a.range DESC) FROM range(1000000000) a
SELECT list_sort(list(a.range)) FROM range(100000000) a
SELECT histogram(a.range) FROM range(1000000000) a
SELECT md5(string_agg(a.range::VARCHAR, '')) FROM range(1000000000) a
SELECT list_reduce(range(100000000), lambda x, y: x + y)
SELECT [[x + y for x in range(100000)] for y in range(100000)]
SELECT a.range FROM range(1000000) a ORDER BY md5(a.range::VARCHAR)
SELECT string_agg(menu, '') FROM instances, range(1000000000)
"""


def built() -> list[str]:
    """Those too long to write out."""
    return [
        "SELECT " + ", ".join(f"{i} AS c{i}" for i in range(4000)),
        "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(3500))) + ")",
        "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(2_000_000))) + ")",
        "SELECT " + "(" * 9_000 + "1" + ")" * 9_000,
        "SELECT " + "-" * 3_000 + " 1",
        "SELECT " + "NOT " * 4_000 + "true",
        "SELECT " + "1 + " * 4_000 + "1",
        "SELECT " + "'a' || " * 2_500 + "'a'",
        "SELECT " + "[" * 5_000 + "1" + "]" * 5_000,
        "SELECT * FROM " + "(SELECT * FROM " * 1_000 + "studies" + ")" * 1_000,
        "SELECT " + "CASE WHEN true THEN " * 700 + "1" + " END" * 700,
        "SELECT " + "abs(" * 3_000 + "1" + ")" * 3_000,
        " UNION ALL ".join(["SELECT 1"] * 1_000),
        "WITH " + ", ".join(f"c{i} AS (SELECT * FROM instances)" for i in range(400)) + " SELECT 1 FROM c1",
        "WITH c0 AS (SELECT 1 AS x), "
        + ", ".join(f"c{i} AS (SELECT a.x FROM c{i - 1} a, c{i - 1} b)" for i in range(1, 60))
        + " SELECT count(*) FROM c59",
        "SELECT * FROM " + ", ".join(f"range(1000) r{i}" for i in range(200)),
        "SELECT '" + "x" * 30_000 + "'",
        "SELECT " + "x" * 19_000,
        "",
        " ",
        ";",
        "\0",
        "SELECT '\0'",
        "SELECT \ud800".encode("utf-8", "replace").decode(),
        "SELECT 1 /*",
        "SELECT 1 --",
        "SELECT $$x",
    ]


def lines(text: str) -> list[str]:
    """One attempt a line."""
    return [line for line in text.strip().splitlines() if line]
