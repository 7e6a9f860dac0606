-- What was damaged, and when was it whole again?
SELECT q.facility, q.subject AS batch_id, q.time AS damaged, q.details->>'$.reason' AS reason, min(r.time) AS whole_again
FROM events q LEFT JOIN events r ON r.kind = 'repair' AND r.subject = q.subject AND r.sequence > q.sequence
WHERE q.kind = 'quarantine' GROUP BY ALL ORDER BY damaged;
