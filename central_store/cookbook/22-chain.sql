-- Is the audit log unbroken? `problem` is empty if it is; `first_event` is 1 unless older ones were left out, `withheld` 0 but in a facility's kit.
WITH lines AS (
    SELECT *,
        row_number() OVER (ORDER BY segment, row) + coalesce(
            (SELECT sequence FROM checkpoints WHERE segment = (SELECT min(segment) - 1 FROM events)), 0) AS place,
        lag(hash, 1, coalesce(
            (SELECT head FROM checkpoints WHERE segment = (SELECT min(segment) - 1 FROM events)),
            repeat('0', 64))) OVER (ORDER BY segment, row) AS before
    FROM events
), problems AS (
    SELECT segment, row, 'segment ' || segment || ', row ' || row || ': changed, or not the event that follows' AS problem
    FROM lines
    WHERE NOT coalesce(sequence = place AND previous = before AND (details IS NULL OR hash = sha256(previous
        || '{"details":' || details || ',"facility":"' || facility || '","kind":"' || kind || '","sequence":' || sequence
        || ',"subject":"' || subject || '","time":"' || strftime(make_timestamp(epoch_us(time)), '%Y-%m-%dT%H:%M:%S.%fZ')
        || '","user":"' || "user" || '"}')), false)
    UNION ALL
    SELECT segment, row, 'segment ' || segment || ', row ' || row || ': lines of the journal were damaged, and set aside'
    FROM events WHERE kind = 'journal-damaged'
    UNION ALL
    SELECT coalesce(c.segment, e.segment), NULL,
        'segment ' || coalesce(c.segment, e.segment) || ': it is not the one its checkpoint names'
    FROM (SELECT *, lead(segment, 1, segment + 1) OVER (ORDER BY segment) AS after FROM checkpoints) c
    FULL JOIN (
        SELECT segment, count(*) AS n, max(sequence) AS last, arg_max(hash, sequence) AS head, count(details) < n AS withheld
        FROM events GROUP BY segment) e ON e.segment = c.segment
    LEFT JOIN (
        SELECT CAST(parse_filename(filename, true) AS BIGINT) AS segment, sha256(content) AS digest
        FROM read_blob('audit/*.parquet')) f ON f.segment = c.segment
    LEFT JOIN (
        SELECT CAST(parse_filename(filename, true) AS BIGINT) AS segment, sha256(content) AS digest
        FROM read_blob('audit/*.json')) b ON b.segment = c.segment - 1
    WHERE NOT coalesce(
        (c.segment = (SELECT min(segment) - 1 FROM events) OR (
            (n, last, e.head) = (c.events, c.sequence, c.head) AND (withheld OR f.digest = c."table")))
        AND c.after = c.segment + 1 AND (b.digest IS NULL OR b.digest = c.previous)
        AND (b.digest IS NOT NULL OR c.segment <= (SELECT min(segment) FROM events)), false)
)
SELECT min(sequence) AS first_event, count(*) AS events, count(*) - count(details) AS withheld,
    arg_max(hash, sequence) AS head, (SELECT arg_min(problem, (segment, row)) FROM problems) AS problem
FROM events;
