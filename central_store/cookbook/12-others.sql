-- Who saw another facility's rows?
SELECT o.owner, e.facility AS seen_by, "user", count(*) AS searches,
    sum(CAST(details->('$.rows."' || o.owner || '"') AS BIGINT)) AS rows_shown, min(time) AS first, max(time) AS last
FROM events e, unnest(json_keys(details, '$.rows')) AS o(owner)
WHERE kind = 'search' AND o.owner <> e.facility GROUP BY ALL ORDER BY ALL;
