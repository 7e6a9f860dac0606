-- Who was refused, what, and why?
SELECT time, facility, "user", details->>'$.what' AS what, details->>'$.reason' AS reason, subject
FROM events WHERE kind = 'refusal' ORDER BY sequence;
