"""A device is released: its images reach the store as protected DICOM files, those of another stay sealed."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
from pydicom.uid import ComputedRadiographyImageStorage

from tests.kit import images


def test_a_released_device_is_stored_readable_and_another_one_sealed(site, tmp_path):
    folder = tmp_path / "images"
    pixels = random.Random(1).randbytes(2048)
    cr = {"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR", "pixels": pixels}
    images.write(folder, 1, 1, 1, 1, **cr)
    images.write(folder, 1, 1, 1, 2, **cr, ManufacturerModelName="Model 8")
    images.write(folder, 1, 1, 1, 3, **cr, BurnedInAnnotation="YES")
    terminal = site.terminal("clinic-a", folder)
    terminal.settings(workers=1)
    done = terminal(
        "release", "add", "--sop-class", "ComputedRadiographyImageStorage",
        "--manufacturer", "MAKER", "--model", "Model 7", "--by", "Dr. Sato",
    )  # fmt: skip
    assert "UNSEALED" in done.out
    with site.serving():
        assert terminal("sync").status == 0
    tables = (site.root / "manifests").glob("*/*/manifest.parquet")
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    assert {row["instance_number"]: row["encoding"].split("+")[0] for row in rows} == {
        1: "dicom", 2: "age", 3: "age",
    }  # fmt: skip
    pack = next((site.root / "objects" / "packs").glob("*/*.tar")).read_bytes()
    assert pack.count(pixels) == 1
    assert b"FAMILY1" not in pack
