"""A store and a terminal answer the same, with the line up and with the line down; and what that costs.

Real sealed and signed messages on the shelves of a real store, without a network between.
"""

from __future__ import annotations

import io
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from central_store import grants, row_answers, search, sql_rows
from central_store.access import visible
from central_store.accounts import Doorman
from central_store.catalog import Catalog
from central_store.refused import Refused
from central_store.requests import Counter
from central_store.settings import Store, init, open_store
from facility_sync import bring_rows, exchange
from facility_sync.home import Home
from facility_sync.kept_rows import KeptRows
from facility_sync.offline import OfflineDesk
from schemas import messages, names
from schemas.errors import AccessDenied, Damaged, SealError, SettingsError
from schemas.transit.shelf import FolderShelf
from schemas.views import VIEWS
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, Facility, digest, request_id, row, token

A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")


class Answered(FolderShelf):
    """A store's `in` shelf that is looked at when something is put on it."""

    def __init__(self, line: Line) -> None:
        super().__init__(line.store.layout.inbound(A))
        self._line = line

    def put(self, name: Any, source: Any, size: int, progress: Any = None, mark: Any = None) -> None:
        super().put(name, source, size, progress)
        assert self._line.counter is not None
        self._line.counter.answer(self._line.card, name, self._line.now)
        answer = self._line.store.layout.outbound(A) / f"{name.id}.answer"
        self._line.sizes.append((size, answer.stat().st_size))


class Line:
    """A session with a store whose shelves are folders here."""

    def __init__(self, store: Store, home: Home, now: datetime = NOW) -> None:
        self.store, self.home, self.now = store, home, now
        self.card = home.card()
        self.sizes: list[tuple[int, int]] = []
        """Bytes of each request, and of its answer."""
        self.counter: Counter | None = None

    def shelf(self, folder: str) -> FolderShelf:
        return Answered(self) if folder == "in" else FolderShelf(self.store.layout.outbound(A))

    def bring(self) -> bring_rows.Brought:
        done = bring_rows.Brought()
        with Catalog(self.store.layout, self.store.settings) as catalog:
            self.counter = Counter(self.store, catalog, Doorman(self.store.layout, lambda: 0.0))
            self._bring(done)
        return done

    def _bring(self, done: bring_rows.Brought) -> None:
        bring_rows.bring(self.home, exchange.Desk(self.home, self.store.card(), self, {}), done)  # type: ignore[arg-type]


class Site:
    """A store, the terminal of clinic-a, and rows of hospital_b that clinic-a may see."""

    def __init__(self, root: Path, facilities: tuple[Facility, Facility] | None = None) -> None:
        self.root = root
        self.home = Home(root / "home")
        if facilities is None:
            self.home.create("clinic-a")
            a = Facility("clinic-a", self.home.ssh_key, self.home.age_identity)
            facilities = (a, Facility("hospital_b"))
            store = init(root / "store", name="central", host="127.0.0.1", port=2222)
            self.place = Place(store, *facilities)
            from central_store import facilities as enrolled

            for who in facilities:
                enrolled.enrol(store.layout, who.card)
            self.home.trust(store.card().to_bytes())
            grants.give(store.layout, B, A)
        else:
            self.place = Place(open_store(root / "store"), *facilities)
        self.line = Line(self.place.store, self.home)

    @property
    def store(self) -> Store:
        return self.place.store

    @property
    def kept(self) -> KeptRows:
        return KeptRows(self.home.offline)

    def send(self, who: Facility, *batches: list[dict[str, Any]]) -> names.BatchId:
        """Store batches of these rows; returns the last one's id."""
        made = [self.place.put(who, who.batch(rows, self.place.card)) for rows in batches]
        self.place.work()
        return made[-1].batch

    def owners(self) -> tuple[names.FacilityName, ...]:
        return visible(A, grants.given(self.store.layout))

    def online(self, *requests: messages.SearchRequest) -> list[tuple[Any, list[dict[str, Any]]]]:
        with Catalog(self.store.layout, self.store.settings) as catalog:
            found = [search.search(catalog, self.store.name, asked, self.owners(), NOW) for asked in requests]
        return [(told(answer), rows_of(table)) for answer, table, _ in found]

    def offline(self, request: messages.SearchRequest) -> tuple[Any, list[dict[str, Any]]]:
        answer, table = OfflineDesk(self.home).converse(request, request.id, messages.SearchAnswer, seconds=1)
        return told(answer), rows_of(table)

    def sql(self, statement: str) -> pa.Table:
        request = messages.SqlRequest(
            id=request_id(), facility=A, user="u", password="", sql=statement, created="2026-11-24T08:30:00Z"
        )
        _, table = OfflineDesk(self.home).converse(request, request.id, messages.SqlAnswer, seconds=1)
        return pq.read_table(io.BytesIO(table))

    def views(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All rows of every view, at the store and here."""
        with sql_rows.reading(self.store.layout, self.owners(), 96) as files, duckdb.connect() as there:
            there.execute("SET TimeZone = 'UTC'")
            for number, path in enumerate(files):
                there.execute(f"ATTACH '{path}' AS f{number} (READ_ONLY)")
            online = {}
            for view in VIEWS:
                parts = " UNION ALL ".join(f"SELECT * FROM f{n}.{view}" for n in range(len(files)))
                online[view] = there.sql(f"FROM ({parts}) ORDER BY ALL").to_arrow_table().to_pylist()
        return online, {view: self.sql(f"FROM {view} ORDER BY ALL").to_pylist() for view in VIEWS}

    def same(self, most: int = 3, *, views: bool = False) -> None:
        """Offline is what online is: searches, and the views of SQL."""
        asked = [
            self.place.search(self.place.a, level, conditions=conditions, **more)
            for level, conditions, more in ASKED[:most]
        ]
        for request, answer in zip(asked, self.online(*asked), strict=True):
            assert self.offline(request) == answer, request
        if not views:
            return
        online, offline = self.views()
        for view, rows in online.items():
            assert offline[view] == rows, view


def told(answer: messages.SearchAnswer) -> tuple[int, ...]:
    return answer.matches, answer.instances, answer.bytes, answer.returned


def rows_of(table: bytes | None) -> list[dict[str, Any]]:
    return [] if table is None else pq.read_table(io.BytesIO(table)).to_pylist()


P1, P2 = token("p1"), token("p2")
LEVELS = ("study", "series", "instance")
ASKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((level, {}, {}) for level in LEVELS),
    *((level, {"patient_id_tokens": [P1]}, {}) for level in LEVELS),
    ("study", {"patient_id_tokens": [P1, *(token(str(n)) for n in range(40))]}, {}),
    ("series", {"person_tokens": [token("nobody")]}, {}),
    *((level, {"study_uid": ["1.2.1", "1.2.2"]}, {}) for level in LEVELS),
    ("series", {"series_uid": ["1.2.1.2"]}, {}),
    *((level, {"sop_instance_uid": ["1.2.1.1.1", "1.2.2.1.0"]}, {}) for level in LEVELS),
    ("instance", {"modality": ["sr", "M*"], "facility": ["clinic-a"]}, {}),
    ("study", {"menu": ["*100%_a!", "thorax routine"]}, {"order": ("menu:desc", "facility")}),
    ("series", {"study_date": ["2024-02-01.."]}, {"order": ("series_number:desc",), "limit": 2}),
    ("study", {"study_date": ["..2024-01-31", "2024-03-01.."]}, {"count_only": True}),
    ("instance", {"facility": ["hospital_b"]}, {}),
    *((level, {}, {"limit": 2, "offset": offset}) for level in LEVELS for offset in (1, 50)),
]


def fill(site: Site) -> None:
    a, b, card = site.place.a, site.place.b, site.place.card
    first = [
        row(0, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1, token("p1-issuer")]),
        row(1, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1]),
        row(0, study=1, series=2, study_date=date(2024, 1, 31), modality="SR", menu=None, body_part=None),
        row(0, study=2, study_date=date(2024, 2, 1), patient_id_tokens=[P2], menu="Knee 100%_a!"),
        row(0, study=3, study_date=None, patient_id_tokens=[P1], modality="MR", menu="ÄRZTE kopf"),
        row(0, study=4, study_uid=None, series_uid=None),
    ]
    second = [
        row(1, study=1, study_date=date(2024, 1, 31), patient_id_tokens=[P1]),
        row(0, study=2, study_date=date(2024, 2, 1), menu="other", source_digest=digest("another file")),
    ]
    theirs = [row(0, study=1, patient_id_tokens=[P1]), row(0, study=9, menu="KNEE b")]
    site.place.put(b, b.batch(theirs, card))
    site.send(a, first, second)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("filled") / "site")
    fill(site)
    site.line.bring()
    return site


@pytest.fixture
def site(filled: Site, tmp_path: Path) -> Site:
    """A copy of it."""
    shutil.copytree(filled.root, tmp_path / "site")
    made = filled.place
    a, b = (Facility(f.name, f.key, f.identity, f.sequence, f.previous) for f in (made.a, made.b))
    return Site(tmp_path / "site", (a, b))


def test_answers_are_those_of_the_store(filled: Site) -> None:
    filled.same(len(ASKED), views=True)
    ((_, found),) = filled.online(filled.place.search(filled.place.a))
    assert len(found) >= 6  # there was something to compare


def test_only_what_changed_comes(site: Site) -> None:
    site.line.bring()
    ((asked, answered),) = site.line.sizes  # nothing new: one question, one answer
    assert asked < 4000 and answered < 4000  # mostly seals and tar blocks
    site.line.sizes.clear()
    batch = site.send(site.place.a, [row(n, study=11) for n in range(30)])
    done = site.line.bring()
    assert (done.batches, done.dropped, done.gone) == (1, 0, 0)
    manifest = (site.store.layout.manifest(A, batch) / "manifest.parquet").stat().st_size
    assert done.bytes == manifest and len(site.line.sizes) == 2
    assert sum(a + b for a, b in site.line.sizes) < manifest + 16_000
    site.same()


def test_a_revoked_grant_takes_its_rows_away(site: Site) -> None:
    assert site.kept.path(B).exists()
    grants.revoke(site.store.layout, B, A)
    assert site.line.bring().gone == 1
    assert not list(site.home.offline.glob("hospital_b*"))
    site.same()
    assert site.offline(site.place.search(site.place.a, conditions={"facility": ["hospital_b"]}))[0][0] == 0
    grants.give(site.store.layout, B, A)
    assert site.line.bring().batches == 1
    site.same()


def test_a_store_from_a_backup_and_another_store(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.root / "store", tmp_path / "backup")
    late = site.send(site.place.a, [row(0, study=1, series=3), row(5, study=20)])
    assert site.line.bring().batches == 1
    newer = site.root / "newer"
    (site.root / "store").rename(newer)
    shutil.copytree(tmp_path / "backup", site.root / "store")  # it does not know the last batch any more
    done = site.line.bring()
    assert (done.batches, done.dropped) == (0, 1)
    site.same(views=True)
    shutil.rmtree(site.root / "store")
    newer.rename(site.root / "store")
    assert (site.line.bring().batches, late in {k.batch for k in site.kept.known(A)}) == (1, True)
    site.same()


def test_dropping_a_batch_brings_back_what_it_stood_before(site: Site) -> None:
    first = site.kept.known(A)[0]
    site.kept.change(A, [], [first.batch], [])
    found = site.sql("SELECT batch_id FROM instances WHERE sop_instance_uid = '1.2.1.1.1'").to_pylist()
    assert len(found) == 1 and found[0]["batch_id"] != first.batch  # the same file, from the second batch
    assert site.sql("SELECT count(*) AS n FROM studies WHERE study_uid = '1.2.3'").to_pylist() == [{"n": 0}]


def test_a_damaged_batch_stands_behind(site: Site) -> None:
    first = min(site.kept.known(A))
    (site.store.layout.damaged).mkdir(exist_ok=True)
    (site.store.layout.damaged / f"{first.batch}.json").write_bytes(b"{}")
    done = site.line.bring()
    assert (done.batches, done.dropped) == (0, 0)
    site.same(views=True)


@pytest.mark.parametrize("how", ["flipped", "cut", "shape"])
def test_damaged_rows_are_refused_and_come_again(site: Site, how: str) -> None:
    path = site.kept.path(A)
    data = bytearray(path.read_bytes())
    if how == "flipped":
        for at in range(12288, len(data), 4096):  # in every block
            data[at + 1000] ^= 1
    elif how == "shape":
        with duckdb.connect(str(path)) as connection:
            connection.execute("UPDATE version SET shape = 'old'")
        data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    with pytest.raises(Damaged, match="kept here of clinic-a"):
        site.offline(site.place.search(site.place.a, "instance"))
    assert not path.exists()
    site.line.bring()
    site.same()


def test_a_state_that_says_more_than_is_there_is_not_believed(site: Site) -> None:
    site.kept.path(A).unlink()
    assert site.line.bring().batches == 2
    (site.home.offline / "state.json").write_text("{")
    with pytest.raises(SettingsError, match="keeps no rows yet"):
        OfflineDesk(site.home)
    done = site.line.bring()
    assert done.batches == 0  # they are here: only the state is written anew
    site.same()


def test_a_stop_leaves_the_old_age_and_the_next_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_answers, "PIECE_BYTES", 1)
    monkeypatch.setattr(bring_rows, "HAND_BYTES", 1)
    before = OfflineDesk(site.home).age(NOW)
    site.send(site.place.a, *([row(n, study=30 + n)] for n in range(3)))
    site.line.now = NOW + timedelta(hours=5)
    answered = site.line.shelf

    class Torn(Answered):
        def put(self, *args: Any, **more: Any) -> None:
            if len(site.line.sizes) == 3:
                raise SealError("the line broke")
            super().put(*args, **more)

    site.line.shelf = lambda folder: Torn(site.line) if folder == "in" else answered(folder)  # type: ignore[method-assign]
    with pytest.raises(SealError, match="the line broke"):
        site.line.bring()
    assert len(site.kept.known(A)) == 4
    age = OfflineDesk(site.home).age(NOW + timedelta(hours=6))
    assert (age.as_of, age.partial) == (before.as_of, (A,))
    site.line.shelf = answered  # type: ignore[method-assign]
    assert site.line.bring().batches == 1
    age = OfflineDesk(site.home).age(NOW + timedelta(hours=6))
    assert (age.seconds, age.partial) == (3600.0, ())
    site.same()


def test_long_lists_are_told_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_answers, "MOST_LISTED", 1)
    for path in site.home.offline.iterdir():
        path.unlink()
    assert site.line.bring().batches == 3
    site.same()


def test_a_store_may_keep_its_rows(site: Site) -> None:
    settings = site.root / "store" / "store.toml"
    settings.write_text(settings.read_text().replace("offline_rows = 1", "offline_rows = 0"))
    line = Line(open_store(site.root / "store"), site.home)
    with pytest.raises(Refused, match="gives no rows away"):
        line.bring()


def test_a_terminal_gets_no_batch_it_may_not_see(site: Site) -> None:
    (foreign,) = site.kept.known(B)
    grants.revoke(site.store.layout, B, A)
    with Catalog(site.store.layout, site.store.settings) as catalog:
        assert catalog.batches_of([foreign.batch], site.owners()) == []
        assert [batch.facility for batch in catalog.batches_of([foreign.batch], (A, B))] == [B]


STATEMENTS = (
    "COPY studies TO 'x.csv'",
    "SELECT 1; SELECT 2",
    "SELECT * FROM read_csv('/etc/passwd')",
    "DELETE FROM f0.rows",
    "WITH gone AS (DELETE FROM f0.rows RETURNING *) SELECT count(*) FROM gone",
    "SET threads = 1",
    "ATTACH '/tmp/other.duckdb'",
    "SELECT nix FROM studies",
)


def test_sql_here_reads_rows_and_nothing_else(filled: Site) -> None:
    for statement in STATEMENTS:
        with pytest.raises(AccessDenied):
            filled.sql(statement)
    assert filled.sql("SELECT count(*) AS n FROM instances").to_pylist()[0]["n"] > 0


def test_kept_rows_are_for_their_owner_alone(filled: Site) -> None:
    for path in filled.home.offline.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path.name
    assert OfflineDesk(filled.home).age(datetime.now(UTC)).store == "central"
