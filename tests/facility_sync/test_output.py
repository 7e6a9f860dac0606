"""Printing: aligned, safe, and the same facts in every form."""

import csv
import io
import json
from datetime import date

import pytest

from facility_sync import output
from facility_sync.reasons import explain
from facility_sync.report import Line, Report


def test_a_table_is_aligned_in_columns_of_a_terminal():
    text = output.table(
        [{"name": "山田^太郎", "n": 7}, {"name": "DOE", "n": 12345}], {"name": "patient", "n": "images"}
    )
    lines = text.splitlines()
    assert lines[0] == "patient    images"
    assert len({output.width(line) for line in lines[1:]}) == 1
    assert lines[2].endswith("     7")


def test_control_characters_of_a_header_never_reach_the_terminal():
    assert "\x1b" not in output.table([{"a": "\x1b[31mred\r\n"}], {"a": "a"})
    assert output.plain("a\x1b[2Jb") == "a\N{REPLACEMENT CHARACTER}[2Jb"


def test_csv_quotes_and_disarms_formulas():
    text = output.to_csv([{"a": 'x,"y"', "b": "=1+1", "c": date(2024, 1, 2)}], ["a", "b", "c"])
    assert list(csv.reader(io.StringIO(text)))[1] == ['x,"y"', "'=1+1", "2024-01-02"]


def test_json_is_one_document():
    assert json.loads(output.to_json({"d": date(2024, 1, 2), "b": b"\x01"})) == {"d": "2024-01-02", "b": "01"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (14_200_000, "14.2 MB")]
)
def test_sizes(count, text):
    assert output.size(count) == text


def test_a_report_names_every_file_that_is_not_stored():
    report = Report(found=3, taken=1, stored=1)
    report.refused.append(Line("/data", "notes.txt", "not-a-file"))
    report.waiting.append(Line("/data", "b.dcm", "settling"))
    text = output.report_text(report)
    assert "notes.txt" in text
    assert "b.dcm" in text
    assert explain("settling")[0] in text
    assert not report.complete
    document = report.to_json()
    assert [line["path"] for line in document["refused"] + document["waiting"]] == ["notes.txt", "b.dcm"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_rewrites_one_line_on_a_terminal_and_leaves_none():
    stream = Terminal()
    meter = output.Meter(stream=stream)
    meter._last = -1e9
    meter.step("read", 1_000_000)
    meter.close()
    assert stream.getvalue() == "\r\x1b[Kread 1.0 MB\r\x1b[K"


def test_progress_is_lines_elsewhere_and_silent_when_quiet():
    stream = io.StringIO()
    meter = output.Meter(stream=stream)
    meter._last = -1e9
    meter.step("stored", 3)
    assert stream.getvalue() == "stored 3 images\n"
    quiet = output.Meter(quiet=True, stream=stream)
    quiet._last = -1e9
    quiet.step("stored", 3)
    assert stream.getvalue() == "stored 3 images\n"
