-- Which batches have no event of their arrival: stored before there was a log, or since the last segment, or was the log cut off?
SELECT b.facility, b.sequence, b.batch_id, r.stored
FROM batches b LEFT JOIN receipts r USING (batch_id)
ANTI JOIN (SELECT subject AS batch_id FROM events WHERE kind = 'ingest') USING (batch_id)
ORDER BY ALL;
