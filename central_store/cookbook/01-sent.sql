-- Who sent what, and when was it stored?
SELECT b.facility, b.sequence, b.created AS sent, r.stored, b.objects, b.bytes, b.batch_id
FROM batches b LEFT JOIN receipts r USING (batch_id)
ORDER BY b.facility, b.sequence, b.batch_id;
