-- Which devices sent images, when first and last, and what could not be read in their headers?
SELECT facility, manufacturer, model, station, min(study_date) AS first, max(study_date) AS last, count(*) AS images,
    count(*) FILTER (len(flags) > 0) AS with_flags
FROM instances GROUP BY ALL ORDER BY ALL;
