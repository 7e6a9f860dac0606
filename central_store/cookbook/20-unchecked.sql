-- Which batches were not read and found right for more than some days, or never? How did the last check come out?
SELECT b.facility, b.sequence, b.batch_id, max(c.finished) AS last_checked, arg_max(c.outcome, c.finished) AS outcome
FROM batches b LEFT JOIN checks c USING (batch_id) GROUP BY ALL
HAVING last_checked IS NULL OR outcome <> 'ok' OR last_checked < getvariable('day') - to_days(getvariable('days'))
ORDER BY ALL;
