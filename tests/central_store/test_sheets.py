"""Sheets of bundles: their files, how rows become one, and that batches make the bundles their parts give."""

from __future__ import annotations

import errno
import io
import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from central_store import bundles, bundling, mapped, sheets
from central_store.catalog import Catalog
from central_store.sheets import Asked, Sheet
from schemas import columns, names
from schemas.errors import Damaged
from tests.central_store.test_catalog_same import FACILITIES, SETTINGS, Made, any_row
from tests.kit.batches import digest


def bundle(part: int, study: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        each.name: [] if pa.types.is_list(each.type) else None for each in bundles.SCHEMA
    }
    return found | {
        "part": part, "study": study, "n_parts": 1, "first_object": f"{part:03}", "facility": "clinic-a",
        "study_uid": f"1.2.{study}", "object_bytes": 10, "dicom_bytes": 20, "n_instances": 2,
        "captured_at": datetime(2026, 1, 1, tzinfo=UTC), "sealed_identity": b"x",
    } | more  # fmt: skip


def sheet(*rows: dict[str, Any]) -> Sheet:
    return Sheet(sheets.coded(pa.Table.from_pylist([*rows], bundles.SCHEMA)))


def parts_of(one: Sheet) -> list[int]:
    return sorted(one.kept()["part"].to_pylist())


def test_what_was_written_comes_back_and_is_not_copied(tmp_path: Path) -> None:
    rows = [bundle(n, n // 2, modality=["CT"], study_date=date(2024, 1, n % 28 + 1)) for n in range(1000)]
    path = tmp_path / "one.sheet"
    crc = sheets.write(path, sheet(*rows))
    before = pa.total_allocated_bytes()
    found = sheets.read(path, crc)
    assert pa.total_allocated_bytes() - before < 4096
    assert sheets.plain(found.rows).to_pylist() == sheets.plain(sheet(*rows).rows).to_pylist()


@pytest.mark.parametrize("at", [0, 7, 0.3, 0.6, 0.9, -1])
def test_a_file_with_other_bytes_is_refused(tmp_path: Path, at: float) -> None:
    path = tmp_path / "one.sheet"
    crc = sheets.write(path, sheet(*(bundle(n, n) for n in range(50))))
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if isinstance(at, float) else at] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Damaged, match="other bytes"):
        sheets.read(path, crc)


@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_file_that_is_missing_or_short_is_refused(tmp_path: Path, left: int | None) -> None:
    path = tmp_path / "one.sheet"
    crc = sheets.write(path, sheet(bundle(1, 1)))
    data = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(data[:left])
    with pytest.raises(Damaged):
        sheets.read(path, crc)


@pytest.mark.parametrize("crc", [0, 1])
def test_an_empty_file_is_refused(tmp_path: Path, crc: int) -> None:
    (tmp_path / "one.sheet").touch()
    with pytest.raises(Damaged):
        sheets.read(tmp_path / "one.sheet", crc)


def test_a_disk_that_fails_is_an_error_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crc = sheets.write(tmp_path / "one.sheet", sheet(bundle(1, 1)))

    class Failing(io.FileIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(Path, "open", lambda path, *_args, **_more: Failing(path))
    with pytest.raises(OSError, match="the disk failed"):
        sheets.read(tmp_path / "one.sheet", crc)


def test_an_empty_sheet_is_a_file_too(tmp_path: Path) -> None:
    crc = sheets.write(tmp_path / "one.sheet", sheet())
    found = sheets.read(tmp_path / "one.sheet", crc)
    assert len(found.rows) == 0
    assert found.without([1]) is found
    owners = [names.facility_name("clinic-a")]
    for wanted in ({}, {"modality": ["CT*"]}, {"study_date": ["2024-01-01.."]}):
        assert len(found.matching(Asked(wanted, owners, None))) == 0
        assert len(found.matching(Asked(wanted, owners, [1]))) == 0


@pytest.mark.parametrize("seed", range(4))
def test_days_that_are_asked_for_are_found_wherever_they_lie(seed: int) -> None:
    rng, owners = random.Random(seed), [names.facility_name(f"clinic-{each}") for each in "abc"]

    def day() -> date | None:
        return rng.choice([None, date(1969, 12, 30), date(9999, 12, 31), date(2024, 1, rng.randint(1, 9))])

    rows = [
        bundle(n, n, facility=rng.choice(owners), study_date=day(), folded_modality=rng.choice(["ct", "mr"]))
        for n in range(300)
    ]
    one = sheet(*rows)
    lying = sheets.plain(one.rows).to_pylist()
    for _ in range(60):
        ends = [tuple(sorted(d for d in (day(), day()) if d)) for _ in range(rng.randint(1, 3))]
        spans = [(each[0], each[-1]) for each in ends if each] or [(date(2024, 1, 1), date(2024, 1, 1))]
        open_end = rng.random() < 0.3
        asked = [f"{first}..{'' if open_end else last}" for first, last in spans]
        mine = rng.sample(owners, rng.randint(1, 3))
        wanted = {"study_date": asked, "modality": ["CT"]} if rng.random() < 0.5 else {"study_date": asked}
        expected = [
            at
            for at, row in enumerate(lying)
            if row["facility"] in mine
            and ("modality" not in wanted or row["folded_modality"] == "ct")
            and row["study_date"]
            and any(
                first <= row["study_date"] and (open_end or row["study_date"] <= last)
                for first, last in spans
            )
        ]
        for studies in (None, [*range(300)]):
            found = one.matching(Asked(wanted, mine, studies))
            assert found.to_pylist() == expected
        if expected:
            said = one.columns(["part", "facility"], found).to_pylist()
            assert said == [{name: lying[at][name] for name in ("part", "facility")} for at in expected]


@pytest.mark.parametrize("days", [1, 3])
def test_studies_are_counted_whether_their_rows_lie_together_or_not(days: int) -> None:
    """Rows of one study that has several days have others between them."""
    rng = random.Random(days)
    rows = [
        bundle(n, n // 3, study_uid=f"1.{rng.random()}", study_date=date(2024, 1, 1 + n % days))
        for n in range(90)
    ]
    for row in rows:
        row["study_uid"] = rows[row["study"] * 3]["study_uid"]
    one = sheet(*rows)
    for count in (0, 1, 2, 40, 90):
        studies = one.rows["study"].take(pa.array(sorted(rng.sample(range(90), count)), pa.int64()))
        assert one.different(studies) == len({*studies.to_pylist()})


def test_rows_of_dropped_studies_do_not_count() -> None:
    one = sheet(*(bundle(n, n // 2) for n in range(8)))
    assert one.without([9]) is one
    assert parts_of(one.without([1, 1, 3])) == [0, 1, 4, 5]
    assert parts_of(one.without([1]).without([0])) == [4, 5, 6, 7]
    assert parts_of(sheets.joined([one.without([1]), sheet(bundle(9, 1))])) == [0, 1, 4, 5, 6, 7, 9]
    owners = [names.facility_name("clinic-a")]
    assert one.without([1]).matching(Asked({}, owners, None)).to_pylist() == [0, 1, 4, 5, 6, 7]
    assert one.without([1]).matching(Asked({}, owners, [1, 2])).to_pylist() == [4, 5]


def test_new_rows_are_put_together_with_those_of_their_study_and_key() -> None:
    old = sheet(
        bundle(1, 1, modality=["CT"], menu=["a"], **{bundles.SERIES: ["1.1"]}),
        bundle(2, 1, modality=["SR"]),
        bundle(3, 3, modality=["CT"]),
        bundle(4, 3, modality=["CT"]),
    )
    new = sheet(
        bundle(5, 1, modality=["CT"], menu=["b"], n_parts=2, **{bundles.SERIES: ["1.0", "1.1"]}),
        bundle(6, 1, modality=["CT"], study_date=date(2024, 1, 1)),
    )
    found = sorted(sheets.put_together(old, [new]).rows.to_pylist(), key=lambda each: each["part"])
    assert [(r["part"], r["n_parts"], r["n_instances"], r["object_bytes"]) for r in found] == [
        (1, 3, 4, 20), (2, 1, 2, 10), (3, 1, 2, 10), (4, 1, 2, 10), (6, 1, 2, 10),
    ]  # fmt: skip
    assert found[0]["menu"] == ["a", "b"]
    assert found[0][bundles.SERIES] == ["1.0", "1.1"]


def test_no_bundle_becomes_larger_than_the_most() -> None:
    rows = sheet(*(bundle(n, 1, modality=["CT"]) for n in range(100)))
    found = sheets.put_together(None, [rows])
    assert sorted(found.rows["n_parts"].to_pylist()) == [4, 32, 32, 32]


def test_the_first_value_is_that_of_every_part() -> None:
    """Else bundles, put together in another order, would answer something else."""
    for column, way in columns.at_level("study"):
        assert way != "first" or column in bundles.KEY or column.required, column.name


@pytest.mark.parametrize("few", [bundling.FEW, 0])
def test_a_batch_makes_the_bundles_that_its_parts_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(bundling, "FEW", few)
    made, rng, who = Made(tmp_path), random.Random(3), FACILITIES[0]
    with Catalog(made.layout, SETTINGS) as catalog:
        for number in range(6):
            rows = [any_row(rng) | {"source_digest": digest(f"{number} {n}")} for n in range(20)]
            catalog.follow(
                made.add(who, [each | {"menu": "ÄÖ", "institution": "KLINIK SÜD"} for each in rows])
            )
        new = [sheets.plain(each.kept()) for each in catalog.bundles()]
        given = {"low": 0, "high": 10**6, "but": []}
        said = catalog.table(bundles.OF_PARTS, given).select(bundles.SCHEMA.names).cast(bundles.SCHEMA)
    found = [pa.concat_tables(new).sort_by("first_object"), said.sort_by("first_object")]
    both = [bundles.merged(each, bundles.together(each)).drop_columns(["part"]) for each in found]
    assert sorted(map(str, both[0].to_pylist())) == sorted(map(str, both[1].to_pylist()))
    assert {each["folded_institution"] for each in both[0].to_pylist()} == {"klinik süd"}


def test_memory_of_mapped_files_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [bundle(n, n, sealed_identity=b"x" * 8000) for n in range(4000)]
    path = tmp_path / "one.sheet"
    crc = sheets.write(path, sheet(*rows))
    before, ballast = mapped.held(), mapped.Ballast()
    found = sheets.read(path, crc)
    size = path.stat().st_size
    assert mapped.held() - before < size // 4
    assert found.rows["sealed_identity"].to_pylist() == [b"x" * 8000] * 4000
    assert mapped.held() - before > size // 2
    monkeypatch.setattr(mapped, "LIMIT", 2 * size)
    ballast.drop(found.release)
    assert mapped.held() - before > size // 2
    monkeypatch.setattr(mapped, "LIMIT", size // 4)
    ballast.drop(found.release)
    assert mapped.held() - before < size // 8
    assert found.rows["sealed_identity"].to_pylist() == [b"x" * 8000] * 4000
