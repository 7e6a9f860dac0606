-- What was stored at the end of a day, by facility and modality? Asked later, it is answered the same.
SELECT facility, modality, count(DISTINCT study_uid) AS studies, count(*) AS images, sum(object_bytes) AS bytes
FROM as_of(getvariable('day')) GROUP BY ALL ORDER BY ALL;
