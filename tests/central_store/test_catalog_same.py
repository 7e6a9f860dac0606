"""Whatever was ingested, in whatever order: the catalog is the rebuilt one, and a search is a plain scan."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from central_store import batches, bundles, quick, search
from central_store.batches import Batch
from central_store.catalog import Catalog
from central_store.layout import Layout
from central_store.settings import Settings
from central_store.sheets import plain
from schemas import columns, container, manifest, messages, names, query
from schemas.columns import LEVELS, Column, Level, Rollup
from tests.kit.batches import NOW, Facility, digest, request_id, row, token

SETTINGS = Settings(name="central", host="localhost", port=0)
FACILITIES = [Facility("clinic-a"), Facility("hospital_b")]
CARD = messages.StoreCard(
    store=names.facility_name("central"), host="localhost", port=1, host_key=FACILITIES[0].card.ssh_key,
    signing_key=FACILITIES[0].card.ssh_key, age_recipient=FACILITIES[0].card.age_recipient,
)  # fmt: skip


INSTITUTIONS = [None, "Klinik Süd", "klinik süd", "KLINIK\nSÜD", "Süd (1)"]


def any_row(rng: random.Random) -> dict[str, Any]:
    """Few values of everything, so that files come again, instances conflict and series are mixed."""
    study, series, number = rng.randrange(3), rng.randrange(2), rng.randrange(3)
    made = row(number, study=study, series=series)
    if rng.random() < 0.2:
        made["source_digest"] = digest(f"other {study} {series} {number}")
    if rng.random() < 0.1:
        made["study_uid"] = None
    if rng.random() < 0.1:
        made["series_uid"] = None
    made["study_date"] = rng.choice([None, date(2024, 1, 1) + timedelta(rng.randrange(4))])
    made["modality"] = rng.choice(["CT", "CT", "mr", None])
    made["menu"] = rng.choice(["Thorax", "thorax a", "Knee_%", None])
    made["patient_id_tokens"] = rng.sample([token(f"p{n}") for n in range(3)], rng.randrange(3))
    made["person_tokens"] = rng.sample([token(f"p{n}") for n in range(3)], rng.randrange(2))
    made["institution"] = INSTITUTIONS[(study + series + number) % len(INSTITUTIONS)]
    made["series_number"] = rng.choice([1, 2, None])
    made["transfer_syntax_uid"] = rng.choice(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
    made["sealed_identity"] = rng.choice([b"seal 1", b"seal 2"])
    return made


class Made:
    """A store's folders, and what was put there."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        for folder in (self.layout.manifests, self.layout.catalog.parent, self.layout.damaged):
            folder.mkdir(parents=True)
        self.batches: list[tuple[Batch, int]] = []

    def add(self, who: Facility, rows: Sequence[dict[str, Any]]) -> Batch:
        made = who.batch(rows, CARD)
        batch = Batch(names.facility_name(who.name), made.batch)
        self.layout.manifest(*batch).parent.mkdir(exist_ok=True)
        batches.stage(self.layout.manifest(*batch), made.table, made.statement)
        assert isinstance(made.statement.message, messages.Statement)
        self.batches.append((batch, made.statement.message.sequence))
        return batch

    def damage(self, batch: Batch) -> None:
        self.layout.damage(batch.batch).write_bytes(b"")

    def erase(self, batch: Batch) -> None:
        path = self.layout.tombstone(*batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def rows(self) -> list[dict[str, Any]]:
        """All rows, by a plain reading of the manifests."""
        rows = []
        for batch, sequence in self.batches:
            if self.layout.tombstone(*batch).exists():
                continue
            table = (self.layout.manifest(*batch) / container.TABLE).read_bytes()
            damaged = self.layout.damage(batch.batch).exists()
            for place, found in enumerate(manifest.from_parquet(table, facility=batch.facility).to_pylist()):
                rank = (damaged, sequence, batch.batch, found["object_sha256"], place)
                rows.append({**found, "batch_id": batch.batch, "rank": rank})
        return rows

    def standing(self) -> list[dict[str, Any]]:
        """The rows that stand in answers."""
        rows = self.rows()
        by_file: dict[Any, dict[str, Any]] = {}
        for found in sorted(rows, key=lambda r: r["rank"]):
            by_file.setdefault((found["facility"], found["source_digest"]), found)
        digests: dict[Any, set[str]] = {}
        for found in rows:
            digests.setdefault((found["facility"], found["sop_instance_uid"]), set()).add(
                found["source_digest"]
            )
        return [
            {**found, "conflict": len(digests[found["facility"], found["sop_instance_uid"]]) > 1}
            for found in by_file.values()
        ]


def asked(level: Level, conditions: dict[str, Any], **more: Any) -> messages.SearchRequest:
    return messages.SearchRequest(
        id=request_id(), facility="clinic-a", user="user.a", password="x", level=level, conditions=conditions,
        created=messages.rfc3339(NOW), **({"limit": 1000, "count_only": False} | more),
    )  # fmt: skip


def matches(column: Column, value: Any, wanted: Sequence[str]) -> bool:
    if column.search == "token":
        return bool(set(value) & set(wanted))
    if value is None:
        return False
    if column.search == "date":
        spans = [each.partition("..") for each in wanted]
        return any((a or "0") <= value.isoformat() <= (b or "9") for a, _, b in spans)
    if column.search == "text":
        import fnmatch

        return any(fnmatch.fnmatchcase(value.lower(), each.lower()) for each in wanted)
    return value in wanted


def naive(rows: list[dict[str, Any]], level: Level, conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """What the query language says, without SQL."""
    hits = [
        r for r in rows if all(matches(columns.by_name[n], r[n], w) for n, w in conditions.items())
    ]  # fmt: skip
    keys = {"study": ["facility", "study_uid"], "series": ["facility", "study_uid", "series_uid"],
            "instance": ["object_sha256", "batch_id"]}[level]  # fmt: skip
    groups: dict[Any, list[dict[str, Any]]] = {}
    for hit in sorted(hits, key=lambda r: r["object_sha256"]):
        groups.setdefault(tuple(hit[key] for key in keys), []).append(hit)
    found = [_answered(group, level) for group in groups.values()]
    return sorted(found, key=str)


def _answered(group: list[dict[str, Any]], level: Level) -> dict[str, Any]:
    answer = {c.name: _rolled(group, c, way, level) for c, way in columns.at_level(level)}
    if level == "study":
        answer["n_series"] = len({r["series_uid"] for r in group} - {None})
    if level == "instance":
        answer["conflict"] = group[0]["conflict"]
    else:
        answer["n_instances"] = len(group)
    return answer


def _rolled(group: list[dict[str, Any]], column: Column, way: Rollup, level: Level) -> Any:
    values = [r[column.name] for r in group]
    if level == "instance" or way == "key":
        return values[0]
    present = [value for value in values if value is not None]
    if way == "list":
        return sorted(set(present))
    if not present:
        return None
    return {"first": lambda: present[0], "min": lambda: min(present), "max": lambda: max(present),
            "sum": lambda: sum(present)}[way]()  # fmt: skip


def check_rows(made: Made, catalog: Catalog, request: Any, found: list[dict[str, Any]]) -> None:
    """Rows of a view are those of the search for everything."""
    built = query.build(request, [names.facility_name(who.name) for who in FACILITIES])
    wanted = catalog.table(built.rows, built.parameters, built.points).cast(built.schema).to_pylist()
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    assert sorted(map(str, wanted)) == sorted(map(str, naive(made.standing(), request.level, {})))


CONDITIONS: list[dict[str, Any]] = [
    {},
    {"patient_id_tokens": [token("p0")]},
    {"patient_id_tokens": [token("p0"), *(token(f"q{n}") for n in range(20))], "modality": ["CT"]},
    {"person_tokens": [token("p1")], "study_date": ["2024-01-02.."]},
    {"study_uid": ["1.2.1"], "modality": ["mr"]},
    {"series_uid": ["1.2.1.0", "1.2.0.1"]},
    {"menu": ["thorax*"]},
    {"menu": ["knee_%"], "study_date": ["..2024-01-02", "2024-01-04..2024-01-04"]},
    {"sop_instance_uid": ["1.2.1.0.1", "1.2.2.1.0"]},
    {"sop_instance_uid": ["1.2.1.0.1"], "modality": ["CT"], "patient_id_tokens": [token("p2")]},
    {"transfer_syntax_uid": ["1.2.840.10008.1.2"], "facility": ["clinic-a"]},
    {"study_date": ["2024-01-02..2024-01-03"]},
    {"study_date": ["2024-01-02.."], "modality": ["ct", "m*"], "facility": ["clinic-a", "hospital_b"]},
    {"modality": ["CT"]},
    {"institution": ["klinik?s*"], "modality": ["*T", "MR"]},
    {"institution": ["*süd", "Nord"]},
    {"institution": ["*(1)"]},
]
STATE = (
    "SELECT * FROM instances ORDER BY ALL",
    "SELECT * FROM conflicts ORDER BY ALL",
    "SELECT * FROM damaged ORDER BY ALL",
    "SELECT * FROM erased ORDER BY ALL",
    "SELECT * FROM batches ORDER BY ALL",
    "SELECT * EXCLUDE (part, study, series) FROM parts ORDER BY ALL",
    """SELECT count(DISTINCT study), count(DISTINCT series),
    count(DISTINCT (facility, coalesce(study_uid, '-'))),
    count(DISTINCT (facility, coalesce(study_uid, '-'), coalesce(series_uid, '-'))) FROM parts""",
)


def state(catalog: Catalog) -> list[list[tuple[Any, ...]]]:
    found = []
    for sql in STATE:
        rows = catalog.table(sql, {})
        found.append(list(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)))
    studies, series, *named = found[-1][0]
    assert [studies, series] == named
    return [*found, bundled(catalog)]


def bundled(catalog: Catalog) -> list[Any]:
    """What the bundles say of each study and key; which parts are together in one is not always the same."""
    rows = pa.concat_tables([plain(sheet.kept()) for sheet in catalog.bundles()]).sort_by("first_object")
    counted = catalog.table(
        "SELECT study, count(*) AS n_parts FROM parts WHERE n_instances > 0 GROUP BY study", {}
    )
    found = pa.TableGroupBy(rows, "study").aggregate([("n_parts", "sum")])
    assert sorted(
        zip(*(found[name].to_pylist() for name in ("study", "n_parts_sum")), strict=True)
    ) == sorted(zip(*(counted[name].to_pylist() for name in ("study", "n_parts")), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "MOST", 10**9)
        made = bundles.merged(rows, bundles.together(rows)).drop_columns(["part", "study"])
    return sorted(made.to_pylist(), key=str)


def check_searches(made: Made, catalog: Catalog, rng: random.Random) -> None:
    rows = made.standing()
    asking = itertools.product(CONDITIONS, LEVELS, [["clinic-a"], ["clinic-a", "hospital_b"]])
    for conditions, level, owners in rng.sample(list(asking), 32):
        mine = [r for r in rows if r["facility"] in owners]
        built = query.build(asked(level, conditions), [names.facility_name(name) for name in owners])
        answer = catalog.table(built.rows, built.parameters, built.points).cast(built.schema).to_pylist()
        whole = catalog.table(built.all_rows, built.parameters, built.points).cast(built.schema).to_pylist()
        assert whole == answer
        expected = naive(mine, level, conditions)
        assert sorted(answer, key=str) == expected, (conditions, level, owners)
        size = sum(r["object_bytes"] for r in expected)
        instances = sum(r.get("n_instances", 1) for r in expected)
        counts = catalog.row(built.counts, built.parameters, built.points)
        assert counts == (len(expected), instances, size), (conditions, level, owners)
        paged = query.build(
            asked(level, conditions, limit=2, offset=1), [names.facility_name(n) for n in owners]
        )
        page = catalog.table(paged.rows, paged.parameters, paged.points).cast(built.schema).to_pylist()
        assert page == answer[1:3]
        check_quick(catalog, level, conditions, owners, counts, answer)


PAGES: tuple[dict[str, Any], ...] = (
    {}, {"limit": 1}, {"limit": 2, "offset": 1}, {"limit": 3, "offset": 5}, {"offset": 1000},
    {"order": ["study_date", "study_uid:desc", "facility"]},
)  # fmt: skip

WAYS = ((quick.FEW, quick.SMALL), (quick.FEW, 0), (0, 0))
"""In one statement, in two, and as if all were much."""


def check_quick(
    catalog: Catalog, level: Level, conditions: dict[str, Any], owners: list[str], counts: Any, answer: Any
) -> None:
    """What is put together of packed parts is what DuckDB makes of their columns, whatever way it takes."""
    visible = [names.facility_name(name) for name in owners]
    counting = asked(level, conditions, count_only=True)
    if (made := quick.find(catalog, query.build(counting, visible), counting)) is not None:
        assert made == (*counts, None)
    assert (made is not None) == (level != "series" and bundles.hold(conditions))
    for (few, small), more in [*itertools.product(WAYS[::2], PAGES), (WAYS[1], {})]:
        request = asked(level, conditions, **more)
        built = query.build(request, visible)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quick, "FEW", few)
            patch.setattr(quick, "SMALL", small)
            made = quick.find(catalog, built, request)
        if more.get("order"):
            if level == "instance" or built.objects or not answer:
                assert made is None
                continue
            wanted = catalog.table(built.rows, built.parameters, built.points).cast(built.schema).to_pylist()
        elif built.objects and level != "instance":
            assert made is None
            continue
        else:
            first = more.get("offset", 0)
            wanted = answer[first : first + more.get("limit", 1000)]
        if built.studies and small:  # the way makes no difference to it
            whole = search._found(catalog, built, request, visible)
            assert whole.rows is not None
            assert (whole.matches, whole.instances, whole.bytes) == counts
            assert whole.rows.to_pylist() == wanted, (conditions, level, owners, more)
        if not few and made is None:
            assert level == "instance" or not wanted, "only then DuckDB is asked"
            continue
        assert made is not None and made.rows is not None
        assert made.rows.schema == built.schema
        assert made.rows.to_pylist() == wanted, (conditions, level, owners, few, more)
        assert (made.matches, made.instances, made.bytes) == counts


@pytest.mark.campaign("catalog", small=2, large=200)
def test_any_sequence_gives_the_rebuilt_catalog_and_the_scan(
    tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    for number in range(campaign_size):
        seed = f"{campaign_seed}.{number}"
        try:
            one_sequence(Made(tmp_path / str(number)), random.Random(seed))
        except BaseException:
            print("seed", seed)
            raise


def one_sequence(made: Made, rng: random.Random) -> None:
    sent = [
        made.add(rng.choice(FACILITIES), [any_row(rng) for _ in range(rng.randint(1, 7))])
        for _ in range(rng.randint(2, 7))
    ]
    rng.shuffle(sent)
    with Catalog(made.layout, SETTINGS, seal=4) as catalog:
        for number, batch in enumerate(sent):
            catalog.follow(batch)
            if rng.random() < 0.3:
                made.damage(rng.choice(sent))
            if rng.random() < 0.2:
                for path in made.layout.damaged.iterdir():
                    path.unlink()
            catalog.follow(rng.choice(sent[: number + 1]))
            if rng.random() < 0.2:
                made.erase(gone := rng.choice(sent[: number + 1]))
                catalog.erase(gone)
                catalog.erase(gone)
        check_searches(made, catalog, rng)
        followed = state(catalog)
    with Catalog(made.layout, SETTINGS, seal=4) as catalog:
        assert state(catalog) == followed
        catalog.rebuild()
        assert state(catalog) == followed
        check_searches(made, catalog, rng)


def test_a_bundle_is_small_whatever_a_facility_sends(tmp_path: Path) -> None:
    """Every image of a study is another menu; and the study comes in two batches."""
    made, who = Made(tmp_path), FACILITIES[0]
    rows = [row(n, menu=f"menu {n:03}", study_date=date(2024, 1, 1)) for n in range(140)]
    with Catalog(made.layout, SETTINGS) as catalog:
        for chosen in (rows[:100], rows[100:]):
            catalog.follow(made.add(who, chosen))
        sizes = [size for sheet in catalog.bundles() for size in sheet.kept()["n_instances"].to_pylist()]
        assert sum(sizes) == 140 and max(sizes) <= 32
        catalog.rebuild()
        sizes = [size for sheet in catalog.bundles() for size in sheet.kept()["n_instances"].to_pylist()]
        assert sorted(sizes) == [12, 32, 32, 32, 32]
        request = asked("study", {"study_date": ["2024-01-01.."]})
        found = quick.find(catalog, query.build(request, [names.facility_name(who.name)]), request)
        assert found is not None and found.rows is not None
        (study,) = found.rows.to_pylist()
        assert (study["n_instances"], study["n_series"]) == (140, 1)
        assert study["menu"] == [f"menu {n:03}" for n in range(140)]


def test_a_series_whose_first_batch_is_erased_is_one_series_when_more_of_it_comes(tmp_path: Path) -> None:
    made, who = Made(tmp_path), FACILITIES[0]
    rows = [row(n, study_date=date(2024, 1, 1)) for n in range(3)]
    with Catalog(made.layout, SETTINGS) as catalog:
        first, second = (made.add(who, [one]) for one in rows[:2])
        catalog.follow(first)
        catalog.follow(second)
        made.erase(first)
        catalog.erase(first)
        catalog.follow(made.add(who, rows[2:]))
        request = asked("study", {"study_date": ["2024-01-01.."]})
        found = quick.find(catalog, query.build(request, [names.facility_name(who.name)]), request)
        assert found is not None and found.rows is not None
        assert [(study["n_instances"], study["n_series"]) for study in found.rows.to_pylist()] == [(2, 1)]


def test_held_and_places_follow_any_number_of_runs(tmp_path: Path) -> None:
    """Runs are sealed and merged meanwhile; what is found stays the same."""
    made, rng, who = Made(tmp_path / "store"), random.Random(5), FACILITIES[0]
    rows = [
        row(n % 7, study=n // 50, series=n // 7 % 7) | {"source_digest": digest(f"{n}")} for n in range(400)
    ]
    with Catalog(made.layout, SETTINGS, seal=8) as catalog:
        for start in range(0, 400, 25):
            catalog.follow(made.add(who, rows[start : start + 25]))
            wanted = [digest(str(rng.randrange(400))) for _ in range(40)]
            known = {digest(str(n)) for n in range(start + 25)}
            assert set(catalog.held(names.facility_name(who.name), wanted)) == known & set(wanted)
        catalog.settle()
        runs = {path.name for path in made.layout.catalog.parent.glob("*.run")}
        assert 0 < len(runs) < 7 * 8
        objects = [r["object_sha256"] for r in made.standing()]
        stored = [names.object_id(name) for name in objects]
        for pack in (made.layout.pack(batch.batch) for batch, _ in made.batches):
            pack.parent.mkdir(parents=True, exist_ok=True)
            pack.touch()
        assert [at.object for at in catalog.places(stored, [names.facility_name(who.name)])] == stored
        assert catalog.places(stored, [names.facility_name("hospital_b")]) == []
    (made.layout.catalog.parent / "left.run").write_bytes(b"of a crash")
    with Catalog(made.layout, SETTINGS) as catalog:
        assert {path.name for path in made.layout.catalog.parent.glob("*.run")} == runs
    next(iter(made.layout.catalog.parent.glob("*.run"))).unlink()
    with Catalog(made.layout, SETTINGS) as catalog:
        assert catalog.totals() == {who.name: (16, 400)}
        assert len(catalog.held(names.facility_name(who.name), [digest(str(n)) for n in range(400)])) == 400
