-- Which images did a facility send with different content under the same SOP Instance UID?
SELECT facility, study_uid, sop_instance_uid, count(DISTINCT source_digest) AS versions, min(captured_at) AS first_read,
    max(captured_at) AS last_read
FROM instances GROUP BY facility, study_uid, sop_instance_uid HAVING versions > 1 ORDER BY ALL;
