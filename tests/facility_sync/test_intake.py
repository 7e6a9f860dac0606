"""Scanning and planning: every entry once, settled files only."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync import intake, plan, scan
from facility_sync.ledger import Entry, Ledger
from facility_sync.plan import Wanted
from facility_sync.report import Line, Report
from facility_sync.scan import Fact
from facility_sync.settings import Settings

NOW = 2_000_000_000 * 10**9


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "ct" / "deep").mkdir(parents=True)
    for name in ("a.dcm", "ct/b.dcm", "ct/deep/c.dcm"):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, ns=(0, NOW - 60 * 10**9))
    return folder


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    yield ledger
    ledger.close()


def look(source, ledger, report, sleep=lambda _: None, **settings):
    made = Settings(facility="clinic-a", sources=(str(source),), **settings)
    found = intake.wanted(made, ledger, report, sleep=sleep, now_ns=lambda: NOW)
    return [intake.below(item.fact.folder, item.fact.name) for item in found]


def test_every_file_is_found_once_in_order(source, ledger):
    report = Report()
    assert look(source, ledger, report) == ["a.dcm", "ct/b.dcm", "ct/deep/c.dcm"]
    assert report.found == 3


def test_a_known_file_is_not_taken_again_until_it_changes(source, ledger):
    status = (source / "a.dcm").stat()
    ledger.record(
        [Entry(str(source), "", "a.dcm", status.st_size, status.st_mtime_ns, batch="0a" * 32, held=True)]
    )
    report = Report()
    assert "a.dcm" not in look(source, ledger, report)
    assert report.known == 1
    (source / "a.dcm").write_bytes(b"longer")
    os.utime(source / "a.dcm", ns=(0, NOW - 60 * 10**9))
    assert "a.dcm" in look(source, ledger, Report())


def test_a_file_that_stands_still_while_we_wait_is_taken(source, ledger):
    os.utime(source / "a.dcm", ns=(0, NOW))
    waits: list[float] = []
    report = Report()
    assert look(source, ledger, report, sleep=waits.append) == ["ct/b.dcm", "ct/deep/c.dcm", "a.dcm"]
    assert waits == [5]
    assert report.waiting == []


def test_a_file_that_grows_while_we_wait_waits(source, ledger):
    os.utime(source / "a.dcm", ns=(0, NOW))
    report = Report()
    found = look(source, ledger, report, sleep=lambda _: (source / "a.dcm").write_bytes(b"xx"))
    assert "a.dcm" not in found
    assert report.waiting == [Line(str(source), "a.dcm", "settling")]


def test_a_file_that_goes_while_we_wait_is_reported(source, ledger):
    os.utime(source / "a.dcm", ns=(0, NOW))
    report = Report()
    look(source, ledger, report, sleep=lambda _: (source / "a.dcm").unlink())
    assert report.waiting == [Line(str(source), "a.dcm", "vanished")]


def test_a_time_in_the_future_has_not_settled(source, ledger):
    os.utime(source / "a.dcm", ns=(0, NOW + 10**15))
    assert look(source, ledger, Report())[-1] == "a.dcm"


def test_links_and_pipes_are_reported_and_no_loop_traps_the_walk(source, ledger):
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    (source / "linked.dcm").symlink_to(source / "a.dcm")
    report = Report()
    assert look(source, ledger, report) == ["a.dcm", "linked.dcm", "ct/b.dcm", "ct/deep/c.dcm"]
    assert {line.path: line.reason for line in report.waiting} == dict.fromkeys(
        ("loop", "dangling", "pipe"), "not-a-file"
    )


def test_a_missing_source_is_reported(tmp_path, ledger):
    report = Report()
    assert look(tmp_path / "unmounted", ledger, report) == []
    assert report.waiting == [Line(str(tmp_path / "unmounted"), ".", "unreadable")]
    assert not report.complete


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_reported(source, ledger):
    (source / "ct").chmod(0)
    report = Report()
    look(source, ledger, report)
    (source / "ct").chmod(0o700)
    assert [line.reason for line in report.waiting] == ["unreadable"]


def test_ignored_names_are_counted_and_passed_over(source, ledger):
    (source / "readme.txt").write_bytes(b"")
    report = Report()
    look(source, ledger, report, ignore=("*.txt",))
    assert (report.found, report.ignored) == (3, 1)


def test_names_that_are_no_text_are_found(source, ledger):
    name = os.fsdecode(b"\xff.dcm")
    (source / name).write_bytes(b"x")
    os.utime(source / name, ns=(0, 0))
    assert name in look(source, ledger, Report())


def test_a_survey_names_everything_that_is_not_stored(source, ledger):
    settings = Settings(facility="clinic-a", sources=(str(source),))
    report = intake.survey(settings, ledger)
    assert [line.reason for line in report.waiting] == ["new"] * 3
    assert report.found == 3


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 120))
def test_groups_keep_order_and_bounds(sizes, limit):
    wanted = [Wanted("s", Fact("", str(n), size, 0)) for n, size in enumerate(sizes)]
    groups = list(plan.group(wanted, batch_bytes=limit))
    assert [item for group in groups for item in group] == wanted
    for group in groups:
        assert group
        assert sum(item.fact.size for item in group) <= limit or len(group) == 1


def test_a_group_of_tiny_files_is_bounded():
    wanted = [Wanted("s", Fact("", str(n), 0, 0)) for n in range(plan.MAX_FILES + 1)]
    assert [len(group) for group in plan.group(wanted, batch_bytes=10)] == [plan.MAX_FILES, 1]


def test_look_sees_what_is_there_now(source):
    fact = scan.look(str(source), "ct", "b.dcm")
    assert fact is not None
    assert fact.size == 1
    assert scan.look(str(source), "ct", "none") is None
