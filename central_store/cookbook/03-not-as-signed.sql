-- Which batches do not verify: other bytes than signed, other counts, or a receipt that says something else?
-- Erased ones, whose tombstones lie in erased/, have no rows and are left out.
-- (Signatures: `ssh-keygen`, above.)
SELECT b.facility, b.batch_id,
    f.digest = b.batch_id AND b.signed_batch = b.batch_id AS manifest_is_the_signed_one,
    m.objects = b.objects AND m.bytes = b.bytes AND m.facilities = [b.facility] AS rows_are_as_signed,
    (r.facility, r.sequence, r.objects, r.bytes) = (b.facility, b.sequence, b.objects, b.bytes) AS receipt_says_the_same
FROM batches b
LEFT JOIN receipts r USING (batch_id)
LEFT JOIN (SELECT parse_path(filename)[-2] AS batch_id, sha256(content) AS digest
    FROM read_blob('manifests/*/*/manifest.parquet')) f USING (batch_id)
LEFT JOIN (SELECT batch_id, count(*) AS objects, sum(object_bytes) AS bytes, list(DISTINCT facility) AS facilities
    FROM instances GROUP BY ALL) m USING (batch_id)
WHERE b.batch_id NOT IN (SELECT parse_filename(file, true) FROM glob('erased/*/*.json'))
AND NOT coalesce(manifest_is_the_signed_one AND rows_are_as_signed AND receipt_says_the_same, false)
ORDER BY ALL;
