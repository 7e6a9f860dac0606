-- Where were wrong passwords tried, day by day? (A user name that does not exist is not written down.)
SELECT CAST(time AS DATE) AS day, facility, "user", count(*) AS times
FROM events WHERE kind = 'refusal' AND details->>'$.reason' IN ('access-denied', 'throttled') GROUP BY ALL ORDER BY ALL;
