-- How much is stored protected (a DICOM file without identity), how much sealed whole?
SELECT facility, modality, if(encoding LIKE 'dicom%', 'protected', 'sealed whole') AS stored_as, count(*) AS images,
    sum(object_bytes) AS bytes, round(sum(object_bytes) / sum(dicom_bytes), 2) AS of_original
FROM instances GROUP BY ALL ORDER BY ALL;
