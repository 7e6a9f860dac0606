-- Which files were sent more than once, byte for byte the same?
SELECT facility, sop_instance_uid, count(*) AS times, list(batch_id ORDER BY sequence) AS batches,
    sum(object_bytes) - min(object_bytes) AS bytes_too_many
FROM instances GROUP BY facility, sop_instance_uid, source_digest HAVING times > 1 ORDER BY ALL;
