-- How many studies were made, by facility, month of photographing and modality?
SELECT facility, date_trunc('month', study_date) AS month, modality, count(DISTINCT study_uid) AS studies,
    count(*) AS images
FROM instances GROUP BY ALL ORDER BY ALL;
