"""SQL from outside: what it answers, to whom, and what it says when it does not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from central_store import grants
from central_store.catalog import Catalog
from central_store.refused import Refused
from central_store.search import search
from schemas import messages, names
from schemas.columns import LEVELS
from schemas.messages import SqlAnswer, SqlRequest
from schemas.views import VIEWS, token_columns
from tests.central_store.conftest import PASSWORD, Place
from tests.central_store.sql_place import SECRET, A, Asker, B, asking, fill
from tests.kit.batches import NOW, Facility, request_id, row, token


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return fill(made_store, tmp_path_factory.mktemp("sql") / "store")


@pytest.fixture(scope="module")
def asker(filled: Place) -> Iterator[Asker]:
    with asking(filled, sql_rows=50) as made:
        yield made


def searched(place: Place, level: str, owners: Any) -> list[dict[str, Any]]:
    with Catalog(place.store.layout, place.store.settings) as catalog:
        _, table, _ = search(catalog, place.store.name, place.search(place.a, level), owners, NOW)
    assert table is not None
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(table)).to_pylist()
    return found


def same_as_searching(place: Place, asker: Asker) -> None:
    """Every view of images holds what a search answers, and the tokens."""
    more = {column.name for column in token_columns()} | {"batch_id"}
    for level, view in zip(LEVELS, VIEWS, strict=False):
        table = asker.table(f"SELECT * FROM {view}")
        assert table.column_names == [column.name for column in VIEWS[view]]
        found = [{k: v for k, v in r.items() if k not in more} for r in table.to_pylist()]
        expected = searched(place, level, asker.owners)
        assert sorted(map(repr, map(sorted_row, found))) == sorted(map(repr, map(sorted_row, expected)))


def sorted_row(row: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(row.items())


@pytest.mark.parametrize("owners", [(A,), (B,), (A, B)])
def test_the_views_hold_what_a_search_answers(filled: Place, owners: Any) -> None:
    with asking(filled, *owners) as asker:
        same_as_searching(filled, asker)
        senders = asker.rows("SELECT DISTINCT facility FROM batches ORDER BY 1")
        assert [r["facility"] for r in senders] == list(owners)
        assert asker.rows(
            "SELECT count(*) AS n FROM receipts r JOIN batches b USING (batch_id, objects, bytes)"
        ) == [{"n": sum(2 if owner == A else 1 for owner in owners)}]


def test_the_rows_follow_new_batches_damage_and_loss(made_store: Place, tmp_path: Path) -> None:
    place = fill(made_store, tmp_path / "store")
    with asking(place) as asker:
        before = asker.rows("SELECT count(*) AS n FROM instances")
        place.put(place.a, place.a.batch([row(0, study=7), row(2, study=1), row(1, study=1)], place.card))
        assert place.work().stored == 1
        same_as_searching(place, asker)
        assert asker.rows("SELECT count(*) AS n FROM instances")[0]["n"] == before[0]["n"] + 2
        # The first of two batches with the same file is damaged: the other's row stands.
        first = asker.rows("SELECT batch_id FROM batches ORDER BY sequence LIMIT 1")[0]["batch_id"]
        notice = place.store.layout.damage(names.batch_id(first))
        notice.parent.mkdir(exist_ok=True)
        notice.write_bytes(b"{}")
        same_as_searching(place, asker)
        standing = asker.rows("SELECT batch_id FROM instances WHERE sop_instance_uid = '1.2.1.1.1'")
        assert standing[0]["batch_id"] != first
        # A file of rows that cannot be read, or of another shape, is made again.
        place.store.layout.view(A).write_bytes(b"no database")
        place.store.layout.view_state(A).unlink()
        same_as_searching(place, asker)


def test_a_facility_without_rows_has_empty_views(filled: Place) -> None:
    with asking(filled, names.facility_name("nobody")) as asker:
        for view in VIEWS:
            table = asker.table(f"SELECT * FROM {view}")
            assert table.num_rows == 0
            assert table.column_names == [column.name for column in VIEWS[view]]


def test_types_survive(asker: Asker) -> None:
    sql = (
        "SELECT study_date AS d, captured_at AS t, [1, 2] AS l, {'a': 'x'} AS s, 1.25::DECIMAL(9, 2) AS n, "
        "sealed_identity AS b, NULL AS z, TIME '01:02:03' AS c, true AS f, modality AS m FROM studies "
        "WHERE study_uid = '1.2.2'"
    )
    table = asker.table(sql)
    kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
    assert (kinds["d"], kinds["l"], kinds["n"]) == (pa.date32(), pa.list_(pa.int32()), pa.decimal128(9, 2))
    assert (kinds["s"], kinds["c"], kinds["b"]) == (
        pa.struct([("a", pa.string())]),
        pa.time64("us"),
        pa.binary(),
    )
    found = table.to_pylist()[0]
    assert (found["d"], found["m"]) == (date(2024, 2, 1), ["CT"])
    assert found["t"].astimezone(UTC) == NOW


USUAL = [
    "SELECT modality, count(*) AS n, sum(object_bytes) AS b FROM instances GROUP BY 1 ORDER BY n DESC LIMIT 3",
    "WITH big AS (SELECT * FROM studies WHERE n_instances > 1) SELECT study_uid, menu[1] AS menu FROM big",
    "SELECT s.study_uid, count(*) AS n FROM studies s JOIN series x USING (facility, study_uid) GROUP BY ALL",
    "SELECT date_trunc('month', study_date) AS m, count(*) FILTER (WHERE n_series > 1) AS n FROM studies GROUP BY 1",
    "SELECT *, row_number() OVER (PARTITION BY facility ORDER BY study_date) AS r FROM studies QUALIFY r = 1",
    "SELECT * EXCLUDE (sealed_identity) FROM series WHERE menu ILIKE '%thorax%' AND study_date > DATE '2020-01-01'",
    "FROM batches SELECT facility, sum(bytes) AS b GROUP BY facility HAVING b > 0",
    "SELECT unnest(modality) AS m, list_transform(menu, lambda x: upper(x)) AS u FROM studies",
    "SELECT study_uid FROM studies WHERE study_date BETWEEN DATE '2024-01-01' AND today() - INTERVAL 30 DAY",
    "SELECT count(DISTINCT patient_id_tokens) AS patients FROM studies WHERE 'CT' IN modality",
    "SELECT CASE WHEN modality = 'CT' THEN 'x' ELSE coalesce(menu, '-') END AS c FROM series UNION SELECT 'y'",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) AS s FROM t",
]


@pytest.mark.parametrize("sql", USUAL)
def test_what_people_ask_runs(asker: Asker, sql: str) -> None:
    assert asker.table(sql).num_rows > 0


@pytest.mark.parametrize(
    ("sql", "reason", "says"),
    [
        ("SELEC 1", "sql-refused", "this is not SQL, at character 1"),
        ("SELECT study_uid, nix FROM studies", "sql-refused", "no such column here"),
        ("SELECT 'äöü', nix FROM studies", "sql-refused", "at character 15"),
        ("SELECT version()", "sql-refused", "the function version is not allowed, at character 8"),
        ("SELECT * FROM patients", "sql-refused", "there are only the tables studies, series"),
        ("SELECT 'YAMADA'::DATE", "sql-refused", "a value is none of the type"),
        ("SELECT 1; SELECT 2", "sql-refused", "only one statement"),
        ("DELETE FROM studies", "sql-refused", "only one SELECT"),
        ("SELECT 1 AS a, 2 AS a", "sql-refused", "same name"),
        ("SELECT range FROM range(100)", "too-large", "more than 50 rows"),
    ],
)
def test_a_refusal_says_which_part_and_why_and_quotes_nothing(
    asker: Asker, sql: str, reason: str, says: str
) -> None:
    with pytest.raises(Refused) as caught:
        asker.table(sql)
    assert (caught.value.reason, says in str(caught.value)) == (reason, True), str(caught.value)
    assert "YAMADA" not in str(caught.value) and "nix" not in str(caught.value)


def ask(place: Place, who: Facility, sql: str, **values: Any) -> SqlRequest:
    asked: dict[str, Any] = {
        "id": request_id(), "facility": who.name, "user": f"user.{who.name}", "password": PASSWORD, "sql": sql,
        "created": messages.rfc3339(NOW),
    }  # fmt: skip
    request = SqlRequest(**(asked | values))
    place.ask(who, request)
    return request


def answered(place: Place, who: Facility, request: SqlRequest) -> list[dict[str, Any]]:
    sealed = (place.outbound(who) / f"{request.id}.answer").read_bytes()
    message, table, _ = who.open(sealed, place.card)
    assert isinstance(message, SqlAnswer) and table is not None and message.request == request.id
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(table)).to_pylist()
    assert message.returned == len(found)
    return found


def test_the_service_answers_refuses_and_lives_on(made_store: Place, tmp_path: Path) -> None:
    place = fill(made_store, tmp_path / "store")
    sql = f"SELECT study_uid FROM studies WHERE list_has_any(patient_id_tokens, ['{token('secret')}'])"
    own, foreign = ask(place, place.b, sql), ask(place, place.a, sql)
    wrong = ask(place, place.a, sql, password="wrong")
    bad = ask(place, place.a, "SELECT * FROM f0.rows")
    count = ask(place, place.a, "SELECT count(*) AS n FROM studies")
    counts = place.work()
    assert (counts.answered, counts.refused) == (3, 2)
    assert [r["study_uid"] for r in answered(place, place.b, own)] == ["1.2.9"]
    assert answered(place, place.a, foreign) == []
    assert answered(place, place.a, count) == [{"n": 4}]
    refusals = {r.id: place.reply(place.a, f"{r.id}.refusal") for r in (wrong, bad)}
    assert [getattr(refusals[r.id], "reason", "") for r in (wrong, bad)] == ["access-denied", "sql-refused"]
    assert list(place.inbound(place.a).iterdir()) == []

    grants.give(place.store.layout, B, A)
    granted = ask(place, place.a, "SELECT menu FROM studies WHERE facility = 'hospital_b'")
    place.work()
    assert answered(place, place.a, granted) == [{"menu": [SECRET]}]
    grants.revoke(place.store.layout, B, A)
    revoked = ask(place, place.a, "SELECT menu FROM studies WHERE facility = 'hospital_b'")
    place.work()
    assert answered(place, place.a, revoked) == []
