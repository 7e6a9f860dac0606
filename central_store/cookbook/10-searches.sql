-- Who searched, for what, and how much did it find? (Of values that may be an identity their number; of SQL, the names in it.)
SELECT time, facility, "user", kind, details->>'$.level' AS level,
    coalesce(json_keys(details, '$.conditions'), CAST(details->'$.names' AS VARCHAR[])) AS searched_by,
    details->>'$.conditions' AS conditions,
    CAST(details->>'$.matches' AS BIGINT) AS matches, CAST(details->>'$.returned' AS BIGINT) AS rows_shown
FROM events WHERE kind IN ('search', 'sql') ORDER BY sequence;
