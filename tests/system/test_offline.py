"""Questions with the line down, as a person asks them: identities, age, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from facility_sync import kept_state
from facility_sync.home import Home
from schemas.messages import rfc3339
from tests.kit.site import Terminal
from tests.system.conftest import free_port


@pytest.fixture(scope="module")
def cut_off(full_site, tmp_path_factory):
    """A terminal like clinic-a's, whose store cannot be reached."""
    terminal = type(full_site.terminals["clinic-a"])(full_site, "cut-off")
    if not terminal.home.exists():
        shutil.copytree(full_site.terminals["clinic-a"].home, terminal.home)
        terminal.settings(store_port=free_port())
    return terminal


@pytest.fixture
def as_of(cut_off: Terminal) -> str:
    """The rows were brought three hours and a minute ago: whatever was done on the shared site since."""
    folder = Home(cut_off.home).offline
    moment = rfc3339(datetime.now(UTC) - timedelta(hours=3, minutes=1))
    state = json.loads((folder / "state.json").read_bytes())
    (folder / "state.json").unlink()
    (folder / "state.json").write_text(json.dumps(state | {"as_of": moment}))
    return moment


@pytest.mark.parametrize(
    "words",
    [
        ("--patient-name", "fam*", "--level", "series", "--order", "menu:desc,series_uid"),
        (
            "--sql",
            "SELECT sealed_identity, study_date, n_instances FROM studies WHERE patient('PID-00002') ORDER BY 2",
        ),
    ],
)
def test_answers_are_the_same_with_the_line_down(full_site, cut_off, as_of, words):
    online = full_site.terminals["clinic-a"].ask("query", *words, "--format", "json")
    offline = cut_off("query", "--offline", *words, "--format", "json")
    assert offline.status == 0, offline.err
    assert offline.out == online.out and "FAMILY2^GIVEN2" in offline.out
    assert offline.err.splitlines()[0] == f"Offline: what central had at {as_of}, 3 hours ago."


def test_programs_hear_how_old_an_answer_is(cut_off, as_of):
    done = cut_off("query", "--offline", "--patient-id", "PID-00001", "--count", "--json")
    assert done.json["matches"] == 2 and done.json["offline"] is True and done.json["partial"] == []
    assert json.loads(done.err.splitlines()[0])["store"] == "central"
    shown = cut_off("offline", "--show", "--json").json
    assert shown["facilities"] == ["clinic-a"] and shown["as_of"] == done.json["as_of"] == as_of
    age = done.json["age_seconds"]
    assert timedelta(hours=3, minutes=1) <= timedelta(seconds=age) < timedelta(hours=4)


def test_status_says_how_old_the_rows_are(full_site, cut_off, as_of):
    folder = Home(cut_off.home).offline
    assert cut_off("status").out.splitlines()[-1] == f"Offline: what central had at {as_of}, 3 hours ago."
    rows = cut_off("status", "--json").json["rows"]
    assert (rows["store"], rows["as_of"], rows["partial"]) == ("central", as_of, [])
    assert 3 <= rows["age_seconds"] / 3600 < 4
    state = kept_state.load(folder)
    kept_state.save(folder, replace(state, partial=frozenset(state.marks)))
    assert cut_off("status").out.splitlines()[-1] == "Not all rows are here yet of: clinic-a."
    kept_state.save(folder, state)
    assert full_site.terminals["hospital-b"]("status", "--json").json["rows"] is None, "it keeps none"
    assert "Offline" not in full_site.terminals["hospital-b"]("status").out


def test_what_needs_the_store_says_so(cut_off):
    done = cut_off("query", "--offline", "--user", "kimura")
    assert done.status == 2 and "--user has no meaning with --offline" in done.err
    done = cut_off("query", "--offline", "--sql", "COPY studies TO 'x.csv'")
    assert done.status == 14 and "this is not one SELECT" in done.err
    assert cut_off("offline").status == 11  # to bring rows, the line must be up
    assert cut_off("offline", "--forget").status == 0
    done = cut_off("query", "--offline")
    assert done.status == 10 and "keeps no rows yet" in done.err
