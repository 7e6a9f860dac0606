-- Who had an account at the end of a day, and since when is the password in use?
SELECT facility, "user", min(time) AS first_made, max(time) AS password_since
FROM events WHERE kind IN ('account', 'account-removed') AND time < getvariable('day') + INTERVAL 1 DAY
GROUP BY ALL HAVING arg_max(kind, sequence) = 'account' ORDER BY ALL;
