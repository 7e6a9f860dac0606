"""The benchmark runs as its page says, with every installed tool, and its tables say what was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.servers import SSHD

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
sys.path.insert(0, str(BENCH))

import measure  # noqa: E402
import replicating  # noqa: E402
import table  # noqa: E402

OURS = ["fsync, embedded server", *(["fsync, OpenSSH"] if SSHD else [])]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "run"), *words], capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("bench") / "work"
    done = bench("--sets", "slices", "--studies", "1", "--slices", "3", "--repeat", "1", "--json",
                 "--work", str(work))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not work.exists(), "something was left behind"
    return json.loads(done.stdout)


@pytest.mark.campaign("bench", only=True)
def test_every_installed_tool_is_measured_both_ways(values):
    (slices,) = values["sets"]
    assert (slices["files"], slices["stored"]) == (3, 3)
    assert slices["stored_bytes"] == slices["bytes"] > 3 * 512 * 1024
    expected = list(OURS)
    if SSHD:
        expected += [
            label
            for label, program in (
                ("restic", "restic"),
                ("restic, compression off", "restic"),
                ("rclone copy", "rclone"),
                ("tar + sftp put", "sftp"),
            )
            if shutil.which(program)
        ]
    assert [row["tool"] for row in slices["rows"] if row["way"] == "put"] == expected
    back = [row["tool"] for row in slices["rows"] if row["way"] == "get"]
    assert back == [label for label in expected if label.startswith(("fsync", "restic"))]
    for row in slices["rows"]:
        assert row["seconds"] == pytest.approx(row["runs"][0], abs=0.001)
        assert row["client_cpu"] > 0
        assert row["client_peak"] > 1_000_000
        if row["tool"] in OURS:
            assert row["server_peak"] > 10_000_000


@pytest.mark.campaign("bench", only=True)
def test_the_page_takes_the_tables_between_its_marks(values):
    text = table.markdown(values)
    page = (ROOT / "docs" / "performance.md").read_text()
    changed = table.update(page, text)
    assert text.strip() in changed
    assert table.update(changed, text) == changed
    assert changed.partition(table.BEGIN)[0] == page.partition(table.BEGIN)[0]
    assert changed.partition(table.END)[2] == page.partition(table.END)[2]
    for broken in ("no marks", table.END + table.BEGIN, page + table.BEGIN):
        with pytest.raises(ValueError, match="marks"):
            table.update(broken, text)


@pytest.mark.campaign("bench", only=True)
def test_stores_are_measured(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts" / "bench" / "peers", "--mib", "2", "--logs", "--work", tmp_path / "work"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for what in (
        "first upload: `fsync sync` to the first store",
        "`fstore replicate` to the second store",
        "packs deleted: `fstore repair --from`",
        "`fstore check --read-data`",
    ):
        assert f"| {what} |" in done.stdout, done.stdout


def test_a_ratio_is_our_time_by_theirs():
    def row(tool: str, seconds: float, flush: float) -> dict:
        costs = dict.fromkeys(("client_cpu", "server_cpu", "client_peak", "server_peak"), 1)
        return {"way": "put", "tool": tool, "seconds": seconds, "flush": flush, **costs}

    item = {"name": "slices", "load": 2.0, "files": 8, "bytes": 4_000_000,
            "stored": 8, "stored_bytes": 4_000_000,
            "rows": [row("fsync, OpenSSH", 2.0, 0.0), row("restic", 4.0, 1.0)]}  # fmt: skip
    machine = dict.fromkeys(("measured", "cores", "processor", "system", "load_before", "cipher"), "")
    lines = table.markdown(
        {"command": "", "machine": machine | {"versions": {}}, "sets": [item]}
    ).splitlines()
    ours, restic = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith("| ") and " s |" not in line
    )
    assert ours[:5] == ["**fsync, OpenSSH**", "2.00", "0.00", "4", "2.0"]
    assert ours[-2:] == ["", ""]
    assert restic[-2:] == ["0.50", "0.40"]


def test_the_cost_of_a_command_is_that_of_its_whole_tree():
    burn = "import time; hog = bytearray(60_000_000)\nwhile time.process_time() < 0.4: pass"
    cost = measure.run(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    )
    assert 0.4 <= cost.client_cpu < 10
    assert cost.client_peak > 60_000_000
    with pytest.raises(measure.CommandFailed):
        measure.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".gitignore").write_text("*\n")  # a checkout has one too
    done = bench("--sets", "slices", "--work", str(tmp_path))
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "precious"]


def test_help_names_the_options():
    done = bench("--help")
    assert done.returncode == 0
    for word in ("--repeat", "--json", "--update-docs"):
        assert word in done.stdout


def test_growth_of_catching_up_is_told_and_the_table_fits_its_page():
    rows = [
        {"batches": size, "seconds": 0.5, "said": float(size), "messages": 19} for size in (1_000, 10_000)
    ]
    assert abs(replicating.exponent(rows, "seconds")) < 1e-9
    assert abs(replicating.exponent(rows, "said") - 1) < 1e-9
    machine = {"measured": "2026-01-01", "cores": 2, "processor": "p", "system": "s", "load_before": 0.1}
    cost = {"bytes": 10**6, "flush": 0.0, "client_cpu": 1.0, "server_cpu": 1.0}
    copied = [{"what": "upload", "seconds": 2.0, **cost}, {"what": "replicate", "seconds": 1.0, **cost}]
    values = {"machine": machine, "command": "c", "copy": copied, "catching_up": rows, "load_after": 0.1}
    text = replicating.markdown(values)
    assert "| replicate | 1 | 1.0 | 0.0 | 1.0 | 2.0 | 2.00 |" in text
    assert "Growth exponents: 0.00 for time, 1.00 for bytes." in text
    page = table.update(
        (ROOT / "docs" / "performance.md").read_text(), text, replicating.BEGIN, replicating.END
    )
    assert text.strip() in page
