"""Who finds what: conditions, levels, pages, grants, passwords, conflicts."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from central_store import grants, quick
from central_store.access import Grant, visible
from central_store.catalog import Catalog
from central_store.catalog_file import OutOfMemory
from central_store.refused import Refused
from central_store.search import search
from central_store.settings import open_store
from schemas import columns, conditions, messages, names, query
from schemas.columns import LEVELS
from schemas.errors import FormatError, SettingsError
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import NOW, digest, request_id, row, token

A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")
P1, P1_ISSUER, P2 = token("p1"), token("p1-issuer"), token("p2")


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Four studies of clinic-a, one of hospital_b; a file twice, and a conflict."""
    root = tmp_path_factory.mktemp("searched") / "store"
    shutil.copytree(made_store.root, root)
    place = Place(open_store(root), made_store.a, made_store.b)
    place.put(place.a, place.a.batch(
        [
            row(0, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1, P1_ISSUER]),
            row(1, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1, P1_ISSUER]),
            row(0, study=1, series=2, study_date=date(2024, 1, 31), patient_id_tokens=[P1], modality="SR",
                menu=None, body_part=None),
            row(0, study=2, study_date=date(2024, 2, 1), patient_id_tokens=[P2], menu="Knee 100%_a!"),
            row(0, study=3, study_date=None, patient_id_tokens=[P1], modality="MR", menu="ÄRZTE kopf"),
        ],
        place.card,
    ))  # fmt: skip
    place.put(place.a, place.a.batch(
        [
            row(1, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1]),
            row(0, study=2, study_date=date(2024, 2, 1), patient_id_tokens=[P2],
                menu="Knee 100%_a!", source_digest=digest("another file of that instance")),
        ],
        place.card,
    ))  # fmt: skip
    place.put(place.b, place.b.batch([row(0, study=1, patient_id_tokens=[P1])], place.card))
    assert place.work().stored == 3
    return place


def find(place: Place, level: str, conditions: dict[str, Any], owners: Any = (A,), **more: Any) -> Any:
    with Catalog(place.store.layout, place.store.settings) as catalog:
        request = place.search(place.a, level, conditions=conditions, **more)
        answer, table, _ = search(catalog, place.store.name, request, owners, NOW)
    rows = [] if table is None else pq.read_table(io.BytesIO(table)).to_pylist()
    return answer, rows


def uids(place: Place, conditions: dict[str, Any], **more: Any) -> list[str]:
    return [found["study_uid"] for found in find(place, "study", conditions, **more)[1]]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ["1.2.2", "1.2.1", "1.2.3"]),
        ({"patient_id_tokens": [token("p1")]}, ["1.2.1", "1.2.3"]),
        ({"patient_id_tokens": [token("p1-issuer"), token("nobody")]}, ["1.2.1"]),
        ({"patient_id_tokens": [token("p1").lower()]}, []),
        ({"patient_id_tokens": [token("p1")], "modality": ["mr"]}, ["1.2.3"]),
        ({"modality": ["ct", "mr"], "study_date": ["2024-01-01..2024-01-31"]}, ["1.2.1"]),
        ({"study_date": ["2024-02-01.."]}, ["1.2.2"]),
        ({"study_date": ["..2024-01-31"]}, ["1.2.1"]),
        ({"study_date": ["2024-01-31..2024-01-31", "2024-02-01..2024-02-01"]}, ["1.2.2", "1.2.1"]),
        ({"menu": ["thorax*"]}, ["1.2.1"]),
        ({"menu": ["THORAX ROUTIN?"]}, ["1.2.1"]),
        ({"menu": ["thorax"]}, []),
        ({"menu": ["*100%_a!"]}, ["1.2.2"]),
        ({"menu": ["*100__a!"]}, []),
        ({"menu": ["ärzte*"]}, ["1.2.3"]),
        ({"menu": ["Ärzte KOPF"]}, ["1.2.3"]),
        ({"menu": ["ärzte*", "knee 100%_a!"]}, ["1.2.2", "1.2.3"]),
        ({"study_uid": ["1.2.2"]}, ["1.2.2"]),
        ({"facility": ["clinic-a"]}, ["1.2.2", "1.2.1", "1.2.3"]),
        ({"facility": ["hospital_b"]}, []),
        ({"menu": ["'; DROP TABLE instances; --"]}, []),
    ],
)
def test_conditions(filled: Place, conditions: dict[str, Any], expected: list[str]) -> None:
    assert uids(filled, conditions) == expected


@pytest.mark.parametrize(
    "conditions",
    [
        {"nothing": ["x"]},
        {"object_bytes": ["1"]},
        {"sealed_identity": ["x"]},
        {"batch_id": ["x"]},
        {"duplicate": ["true"]},
        {'study_uid" OR 1=1 --': ["x"]},
        {"modality": []},
        {"modality": ["*"] * 101},
        *({"study_date": [value]} for value in ("", "..", "2024", "2024-01-01", "20240101..", "2024-02-30..",
                                                "2024-1-1..", "2024-W01-1..", "a..b")),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(filled: Place, conditions: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        find(filled, "study", conditions)


def test_levels_roll_up(filled: Place) -> None:
    answer, rows = find(filled, "study", {"study_uid": ["1.2.1"]})
    assert (answer.matches, answer.instances, answer.returned) == (1, 3, 1)
    (study,) = rows
    assert (study["n_series"], study["n_instances"], study["modality"]) == (2, 3, ["CT", "SR"])
    assert (study["menu"], study["body_part"]) == (["Thorax routine"], ["CHEST"])
    assert study["study_date"] == date(2024, 1, 31)
    assert study["dicom_bytes"] == 3000
    assert study["sealed_identity"] == b"sealed 1"
    answer, rows = find(filled, "series", {"study_uid": ["1.2.1"]})
    assert [(r["series_uid"], r["modality"], r["n_instances"]) for r in rows] == [
        ("1.2.1.1", "CT", 2), ("1.2.1.2", "SR", 1),
    ]  # fmt: skip
    answer, rows = find(filled, "instance", {"study_uid": ["1.2.1"]})
    assert (answer.matches, len(rows)) == (3, 3)
    assert all({"object_sha256", "object_bytes", "encoding", "sealed_identity"} <= set(r) for r in rows)


@pytest.mark.parametrize("level", LEVELS)
def test_an_answer_has_the_columns_of_its_level_and_no_token(filled: Place, level: str) -> None:
    _, rows = find(filled, level, {})
    assert list(rows[0]) == query.schema(level).names  # type: ignore[arg-type]
    assert not [name for name in rows[0] if columns.by_name.get(name, columns.COLUMNS[0]).search == "token"]


def test_the_same_file_sent_twice_is_one_row_and_other_bytes_are_two_flagged_ones(filled: Place) -> None:
    _, rows = find(filled, "instance", {})
    assert len(rows) == len({r["source_digest"] for r in rows}) == 6
    flagged = {r["sop_instance_uid"] for r in rows if r["conflict"]}
    assert flagged == {"1.2.2.1.0"}


@pytest.mark.parametrize("level", LEVELS)
def test_pages_fit_together(filled: Place, level: str) -> None:
    _, whole = find(filled, level, {}, owners=(A, B))
    paged: list[Any] = []
    while True:
        answer, rows = find(filled, level, {}, owners=(A, B), limit=2, offset=len(paged))
        assert answer.matches == len(whole)
        if not rows:
            break
        paged += rows
    assert paged == whole


@pytest.mark.parametrize("level", ["study", "series"])
@pytest.mark.parametrize("most", [1, 0])
def test_a_page_that_does_not_fit_into_memory_comes_in_slices_or_is_refused(
    filled: Place, monkeypatch: pytest.MonkeyPatch, level: str, most: int
) -> None:
    wanted: dict[str, Any] = {"owners": (A, B), "order": ["menu:desc"], "limit": 3, "offset": 1}
    usual = find(filled, level, {}, **wanted)
    read = Catalog.table

    def narrow(*given: Any) -> pa.Table:
        found = read(*given)
        if len(found) > most:
            raise OutOfMemory("the catalog needs more memory than it may use")
        return found

    monkeypatch.setattr(quick, "MANY", -1)  # everything is for DuckDB
    monkeypatch.setattr("central_store.search.SLICE", 1)
    monkeypatch.setattr(Catalog, "table", narrow)
    if most:
        assert find(filled, level, {}, **wanted)[1] == usual[1]
        assert len(usual[1]) == 3
    else:
        with pytest.raises(Refused, match="more memory") as caught:
            find(filled, level, {}, **wanted)
        assert caught.value.reason == "too-large"


def test_a_statement_that_needs_too_much_memory_is_an_error_of_its_own_and_harms_nothing(
    filled: Place,
) -> None:
    little = replace(filled.store.settings, catalog_memory_mb=32)
    with Catalog(filled.store.layout, little) as catalog:
        with pytest.raises(OutOfMemory) as caught:
            catalog.table("SELECT list(i) FROM range(50_000_000) numbers(i)", {})
        assert "catalog_memory_mb" in caught.value.hint
        assert caught.value.exit_code == SettingsError.exit_code
        assert catalog.row("SELECT count(*) FROM parts", {}) > (0,)


def test_counting_returns_no_table(filled: Place) -> None:
    answer, rows = find(filled, "instance", {}, count_only=True)
    assert (answer.matches, answer.instances, answer.returned, answer.table, rows) == (6, 6, 0, "", [])


@given(st.text(max_size=20), st.text(max_size=20))
def test_like_patterns_mean_the_text_itself(text: str, other: str) -> None:
    import duckdb

    text, other = text.replace("\0", "."), other.replace("\0", ".")
    plain = text.replace("*", "+").replace("?", "+")
    sql = "SELECT $1 LIKE $2 ESCAPE '!', $3 LIKE $2 ESCAPE '!'"
    same, different = duckdb.execute(sql, [plain, conditions.like(plain), other]).fetchall()[0]
    assert same
    assert different == (other == plain)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"))), st.sampled_from("abcd"))
def test_grants_reach_one_step(pairs: list[tuple[str, str]], asker: str) -> None:
    given_ = [Grant(names.facility_name(o), names.facility_name(r)) for o, r in pairs]
    expected = {asker} | {o for o, r in pairs if r == asker}
    assert visible(names.facility_name(asker), given_) == tuple(sorted(expected))


# -- asked through the shelf: passwords and grants -------------------------------------------------


def refusals(place: Place, who: Any, *requests: Any) -> list[str]:
    for request in requests:
        place.ask(who, request)
    assert place.work().refused == len(requests)
    found = [place.reply(who, f"{request.id}.refusal") for request in requests]
    return [f"{r.reason}: {r.explanation}" for r in found if isinstance(r, messages.Refusal)]


def test_without_the_right_password_there_is_one_answer(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    place.work()
    user_a, user_b = "user.clinic-a", "user.hospital_b"
    said = refusals(
        place, place.a,
        place.search(place.a, user=user_a, password="wrong"),
        place.search(place.a, user=user_a, password=""),
        place.search(place.a, user="nobody", password=PASSWORD),
        place.search(place.a, user=user_b, password=PASSWORD),
        place.search(place.a, conditions={"nothing": ("x",)}, password="wrong"),
        fetch_of(place, tuple(made.objects), user=user_a, password="wrong"),
        fetch_of(place, tuple(made.objects), user="nobody", password=PASSWORD),
    )  # fmt: skip
    assert len(said) == 7
    assert len(set(said)) == 1
    assert said[0].startswith("access-denied: ")
    (other,) = refusals(place, place.a, place.search(place.a, conditions={"nothing": ("x",)}))
    assert other.startswith("format: ")


def fetch_of(place: Place, objects: tuple[str, ...], **values: Any) -> messages.FetchRequest:
    asked: dict[str, Any] = {"facility": "clinic-a", "user": "user.clinic-a", "password": PASSWORD}
    return messages.FetchRequest(
        id=request_id(), objects=objects, created=messages.rfc3339(NOW), **(asked | values)
    )


def test_a_grant_opens_rows_and_objects_and_revoking_closes_them(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    place.work()

    def seen() -> tuple[int, int, int]:
        asked = place.search(place.b, "instance")
        wanted = fetch_of(
            place, (*made.objects, digest("unknown")), facility="hospital_b", user="user.hospital_b"
        )
        place.ask(place.b, asked)
        place.ask(place.b, wanted)
        assert place.work().answered == 2
        found, sent = (place.reply(place.b, f"{request.id}.answer") for request in (asked, wanted))
        assert isinstance(found, messages.SearchAnswer)
        assert isinstance(sent, messages.FetchAnswer)
        return found.matches, len(sent.objects), len(sent.missing)

    assert seen() == (0, 0, 2)
    grants.give(place.store.layout, B, A)  # the other way round gives nothing
    assert seen() == (0, 0, 2)
    grants.give(place.store.layout, A, B)
    assert seen() == (1, 1, 1)
    grants.revoke(place.store.layout, A, B)
    assert seen() == (0, 0, 2)


def test_a_damaged_object_is_left_out_and_the_others_travel(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    made = place.put(place.a, place.a.batch([row(0), row(1), row(2)], place.card))
    place.work()
    pack = place.store.layout.pack(made.batch)
    bad = next(iter(made.objects))
    data = made.plain.replace(made.objects[bad], made.objects[bad][:-1] + b"!")
    pack.unlink()
    pack.write_bytes(data)
    asked = fetch_of(place, tuple(made.objects))
    place.ask(place.a, asked)
    place.work()
    answer = place.reply(place.a, f"{asked.id}.answer")
    assert isinstance(answer, messages.FetchAnswer)
    assert (set(answer.objects), list(answer.missing)) == (set(made.objects) - {bad}, [bad])
    assert f"the bytes of object {bad}" in caplog.text


def test_an_answer_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from central_store import fetch

    made = place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    place.work()
    monkeypatch.setattr(fetch, "BATCH_BYTES", 2000)
    (said,) = refusals(place, place.a, fetch_of(place, tuple(made.objects)))
    assert said.startswith("too-large: ")
    single = fetch_of(place, (next(iter(made.objects)),))
    place.ask(place.a, single)
    assert place.work().answered == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("column", ["menu", "study_date", "object_bytes", "modality", "facility"])
def test_rows_come_in_the_order_asked_for(filled: Place, level: str, column: str) -> None:
    """By any column of the answer, both ways, in pages; nothing is lost, and what is missing comes last."""
    if column == "object_bytes" and level == "instance":
        column = "instance_number"
    _, usual = find(filled, level, {}, owners=(A, B))
    for way in ("", ":desc"):
        _, rows = find(filled, level, {}, owners=(A, B), order=[column + way])
        assert sorted(map(repr, rows)) == sorted(map(repr, usual))
        there = [r[column] for r in rows if r[column] is not None]
        assert there == sorted(there, reverse=bool(way))
        assert [r[column] for r in rows][len(there) :] == [None] * (len(rows) - len(there))
        pages = [find(filled, level, {}, owners=(A, B), order=[column + way], limit=2, offset=n)[1]
                 for n in range(0, len(rows), 2)]  # fmt: skip
        assert [r for page in pages for r in page] == rows


@pytest.mark.parametrize("order", ["nix", "menu:up", "patient_id_tokens", 'menu" DESC --', "", ":desc"])
def test_what_is_no_order_is_refused(filled: Place, order: str) -> None:
    with pytest.raises(FormatError):
        find(filled, "study", {}, order=[order])
