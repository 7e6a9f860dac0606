"""Questions with the line down, as a person asks them: identities, age, and what is refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.system.conftest import free_port


@pytest.fixture(scope="module")
def cut_off(full_site, tmp_path_factory):
    """A terminal like clinic-a's, whose store cannot be reached."""
    terminal = type(full_site.terminals["clinic-a"])(full_site, "cut-off")
    if not terminal.home.exists():
        shutil.copytree(full_site.terminals["clinic-a"].home, terminal.home)
        terminal.settings(store_port=free_port())
    return terminal


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
def test_answers_are_the_same_with_the_line_down(full_site, cut_off, words):
    online = full_site.terminals["clinic-a"].ask("query", *words, "--format", "json")
    offline = cut_off("query", "--offline", *words, "--format", "json")
    assert offline.status == 0, offline.err
    assert offline.out == online.out and "FAMILY2^GIVEN2" in offline.out
    assert re.search(r"Offline: what central had at 20.*, .*minutes ago\.", offline.err)


def test_programs_hear_how_old_an_answer_is(cut_off):
    done = cut_off("query", "--offline", "--patient-id", "PID-00001", "--count", "--json")
    assert done.json["matches"] == 2 and done.json["offline"] is True and done.json["partial"] == []
    assert json.loads(done.err.splitlines()[0])["store"] == "central"
    shown = cut_off("offline", "--show", "--json").json
    assert shown["facilities"] == ["clinic-a"] and shown["as_of"] == done.json["as_of"]


def test_what_needs_the_store_says_so(cut_off):
    done = cut_off("query", "--offline", "--user", "kimura")
    assert done.status == 2 and "--user has no meaning with --offline" in done.err
    done = cut_off("query", "--offline", "--sql", "COPY studies TO 'x.csv'")
    assert done.status == 14 and "this is not one SELECT" in done.err
    assert cut_off("offline").status == 11  # to bring rows, the line must be up
    assert cut_off("offline", "--forget").status == 0
    done = cut_off("query", "--offline")
    assert done.status == 10 and "keeps no rows yet" in done.err
