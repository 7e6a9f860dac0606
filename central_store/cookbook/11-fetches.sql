-- Who was given images, how many, of whom?
SELECT time, e.facility, "user", o.owner, CAST(details->('$.objects."' || o.owner || '"') AS BIGINT) AS images,
    CAST(details->>'$.bytes' AS BIGINT) AS bytes_in_all
FROM events e, unnest(json_keys(details, '$.objects')) AS o(owner) WHERE kind = 'fetch' ORDER BY sequence, owner;
