-- Which grants were in force at the end of a day?
SELECT facility AS owner, subject AS reader, max(time) AS since
FROM events WHERE kind IN ('grant', 'revoke') AND time < getvariable('day') + INTERVAL 1 DAY
GROUP BY ALL HAVING arg_max(kind, sequence) = 'grant' ORDER BY ALL;
