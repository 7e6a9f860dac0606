-- Who searched for a patient? (By a token of the patient, which the facility makes: `SET VARIABLE token = '…'`.)
SELECT time, facility, "user", kind, details->>'$.level' AS level, CAST(details->>'$.returned' AS BIGINT) AS rows_shown
FROM events WHERE kind IN ('search', 'sql') AND contains(details, '"' || getvariable('token') || '"')
ORDER BY sequence;
