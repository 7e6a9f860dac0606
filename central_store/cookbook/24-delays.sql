-- How many minutes did it take from reading a file at the terminal to the store's receipt?
SELECT facility, date_trunc('month', stored) AS month, count(*) AS images,
    round(median(epoch(stored) - epoch(captured_at)) / 60, 1) AS half_within,
    round(quantile_cont(epoch(stored) - epoch(captured_at), 0.99) / 60, 1) AS nearly_all_within
FROM instances WHERE stored IS NOT NULL GROUP BY ALL ORDER BY ALL;
