-- Which batches do not follow the one before: a number twice, or another predecessor? (The key is in use in two places.)
SELECT a.facility, a.sequence, a.batch_id, a.previous, b.batch_id AS other
FROM batches a JOIN batches b ON a.facility = b.facility AND a.batch_id <> b.batch_id
    AND (a.sequence = b.sequence OR (a.sequence = b.sequence + 1 AND a.previous <> b.batch_id))
ORDER BY ALL;
