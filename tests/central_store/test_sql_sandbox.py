"""No statement of SQL from outside leaves the sandbox, and the store lives on."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest

from central_store import sql_child
from central_store.refused import Refused
from central_store.sql import Sandbox
from tests.central_store.conftest import Place
from tests.central_store.sql_attempts import BOMBS, DATABASES, FILES, PYTHON, SETTINGS, WRITES, built, lines
from tests.central_store.sql_fuzz import Fuzz
from tests.central_store.sql_place import SECRET, A, Asker, B, asking, fill

CANARY = "canary-5f1d"
LIMITS = {"sql_seconds": 1, "sql_memory_mb": 64, "sql_mib": 1, "sql_rows": 1000}
MUST_REFUSE = [*lines(FILES), *lines(WRITES), *lines(DATABASES), *lines(SETTINGS), *lines(PYTHON)]
HANDS = 2


class Unchecked(Sandbox):
    """A sandbox whose first layer has a hole as large as it can be: every statement passes it."""

    command = (sys.executable, "-c", "from central_store import sql_child, sql_rules\n"
               "sql_rules.check = lambda *_: None\nsql_child.main()")  # fmt: skip


class Ground(NamedTuple):
    """A store with rows of two facilities, and paths to try."""

    place: Place
    paths: dict[str, str]
    folders: tuple[Path, Path]

    def state(self) -> dict[str, str]:
        """Every file and its digest; the locks aside."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in self.folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def try_all(self, statements: Sequence[str], kind: type[Sandbox] = Sandbox) -> list[str]:
        """The outcome of each statement, asked as the first facility; nothing has changed on the disk."""
        before = self.state()
        with ExitStack() as stack, ThreadPoolExecutor(HANDS) as hands:
            askers = [stack.enter_context(asking(self.place, kind=kind, **LIMITS)) for _ in range(HANDS)]

            def part(number: int) -> list[str]:
                return [outcome(askers[number], sql, self.paths) for sql in statements[number::HANDS]]

            parts = list(hands.map(part, range(HANDS)))
            assert askers[0].rows("SELECT count(*) AS n FROM studies") == [{"n": 4}]
        assert self.state() == before
        return [parts[number % HANDS][number // HANDS] for number in range(len(statements))]


def filled(sql: str, paths: dict[str, str]) -> str:
    for name, path in paths.items():
        sql = sql.replace(f"{{{name}}}", path)
    return sql


def outcome(asker: Asker, sql: str, paths: dict[str, str]) -> str:
    """`rows`, or the refusal's reason; nothing that is not permitted is in either."""
    sql = filled(sql, paths)
    began = time.monotonic()
    try:
        table = asker.table(sql)
        found, shown = "rows", str(table.to_pydict())
        assert table.num_rows <= LIMITS["sql_rows"], sql
    except Refused as error:
        found, shown = error.reason, str(error)
    for word in (CANARY, SECRET):
        assert word not in shown or (found == "rows" and word in sql), sql
    assert time.monotonic() - began < LIMITS["sql_seconds"] + 20, sql  # on a machine under load
    return found


@pytest.fixture(scope="module")
def ground(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    place = fill(made_store, tmp_path_factory.mktemp("sandbox") / "store")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "canary.csv").write_text(f"a\n{CANARY}\n")
    views = place.store.layout.views
    with asking(place, A, B) as both:  # the other facility's rows lie there, and can be asked by who may
        assert SECRET in str(both.rows("SELECT menu FROM studies"))
    os.environ["CANARY"] = CANARY
    yield Ground(
        place,
        {"file": f"{outside}/canary.csv", "out": f"{outside}/out",
         "pack": f"{views}/clinic-a.duckdb", "other": f"{views}/hospital_b.duckdb"},
        (place.root, outside),
    )  # fmt: skip
    del os.environ["CANARY"]


def test_the_rules_refuse_every_attempt(ground: Ground) -> None:
    assert len(set(MUST_REFUSE)) >= 200
    passed = []
    with duckdb.connect(config={"errors_as_json": True}) as connection:
        for sql in MUST_REFUSE:
            try:
                sql_child._check(connection, filled(sql, ground.paths))
                passed.append(sql)
            except Refused as error:
                assert error.reason == "sql-refused"
    assert passed == []


def sample(statements: Sequence[str], size: int, seed: int) -> list[str]:
    return random.Random(seed).sample(list(statements), min(size, len(statements)))


@pytest.mark.campaign("sql", small=12, large=10_000)
def test_the_sandbox_refuses_every_attempt(ground: Ground, campaign_size: int, campaign_seed: int) -> None:
    outcomes = set(ground.try_all(sample(MUST_REFUSE, campaign_size, campaign_seed)))
    assert outcomes <= {"sql-refused", "too-slow"}  # slow: on a machine under load


@pytest.mark.campaign("sql", small=12, large=10_000)
def test_what_gets_past_the_rules_finds_nothing(
    ground: Ground, campaign_size: int, campaign_seed: int
) -> None:
    ground.try_all(sample(MUST_REFUSE, campaign_size, campaign_seed), Unchecked)


@pytest.mark.campaign("sql", small=4, large=1_000)
def test_bombs_end_within_their_limits(ground: Ground, campaign_size: int, campaign_seed: int) -> None:
    some = sample([*lines(BOMBS), *built()], campaign_size, campaign_seed)
    assert set(ground.try_all(some)) <= {"rows", "sql-refused", "too-slow", "too-large"}


@pytest.mark.campaign("sql", small=30, large=20_000)
def test_no_statement_a_grammar_makes_gets_out(
    ground: Ground, campaign_size: int, campaign_seed: int
) -> None:
    fuzz = Fuzz(campaign_seed)
    outcomes = ground.try_all([fuzz.statement() for _ in range(campaign_size)])
    assert {"rows", "sql-refused"} <= set(outcomes) <= {"rows", "sql-refused", "too-slow", "too-large"}
    assert outcomes.count("rows") > campaign_size // 20  # it tries what runs, too
    print({name: outcomes.count(name) for name in sorted(set(outcomes))})
