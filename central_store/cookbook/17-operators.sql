-- What did operators do at the store, and which of them?
SELECT time, details->>'$.by' AS operator, kind, facility, "user", subject
FROM events WHERE details->>'$.by' IS NOT NULL ORDER BY sequence;
