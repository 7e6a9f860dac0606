-- Which peer was handed how many batches of whom, day by day?
SELECT CAST(time AS DATE) AS day, details->>'$.peer' AS peer, facility, count(DISTINCT subject) AS batches
FROM events WHERE kind = 'replicate' GROUP BY ALL ORDER BY ALL;
