-- How does the store grow, by facility and modality, month by month?
SELECT facility, modality, date_trunc('month', stored) AS month, count(DISTINCT study_uid) AS studies, count(*) AS images,
    sum(object_bytes) AS bytes
FROM instances GROUP BY ALL ORDER BY ALL;
