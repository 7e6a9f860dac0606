-- Which studies have an unusual number of images: four times more or less than is usual for the modality and facility?
WITH studies AS (
    SELECT facility, modality, study_uid, min(study_date) AS study_date, count(DISTINCT sop_instance_uid) AS images
    FROM instances GROUP BY facility, modality, study_uid)
SELECT facility, modality, study_uid, study_date, images, median(images) OVER (PARTITION BY facility, modality) AS usual
FROM studies QUALIFY images > 4 * usual OR images * 4 < usual ORDER BY ALL;
