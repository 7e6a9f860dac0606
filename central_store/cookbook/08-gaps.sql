-- Which numbers are missing in a facility's sequence? (On their way, refused, or lost: ask the facility.)
SELECT facility, sequence AS missing
FROM (SELECT facility, unnest(range(min(sequence), max(sequence))) AS sequence FROM batches GROUP BY facility)
ANTI JOIN batches USING (facility, sequence)
ORDER BY ALL;
