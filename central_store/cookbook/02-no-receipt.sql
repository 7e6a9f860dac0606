-- What is missing a receipt?
SELECT b.facility, b.sequence, b.batch_id, b.created FROM batches b ANTI JOIN receipts r USING (batch_id) ORDER BY ALL;
