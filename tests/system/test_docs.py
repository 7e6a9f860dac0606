"""The docs are true: their commands run, their tables come from the code, every command is mentioned."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.kit import images
from tests.system.conftest import free_port

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def plain(text: str) -> list[str]:
    """Lines without what differs from run to run."""
    lines = (re.sub(r"[ -]+", " ", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def test_the_tour_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    text = (ROOT / "README.md").read_text("utf-8").split("## Five minutes")[1]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    shown = [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in plain(block)]
    assert len(shown) > 10
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    script = "set -e\n" + commands.replace("2222", str(free_port())).replace(
        "$PWD/.venv/bin", str(Path(sys.executable).parent)
    )
    done = subprocess.run(
        ["bash", "-mc", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    printed = plain(done.stdout)
    assert [line for line in shown if line not in printed] == []


def test_what_the_page_about_erasing_shows_goes_on_from_the_tour(tmp_path):
    tour = (ROOT / "README.md").read_text("utf-8").split("## Five minutes")[1]
    text = (ROOT / "docs" / "erasing.md").read_text("utf-8")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    commands, more = ("\n".join(re.findall(r"```sh\n(.*?)```", each, re.DOTALL)) for each in (tour, text))
    before, end = commands.split("kill %1;")
    script = f"set -e\n{before}\necho HERE\n{more}\nkill %1;{end}"
    script = script.replace("2222", str(free_port()))
    script = script.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    done = subprocess.run(
        ["bash", "-mc", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110,
        env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    printed = plain(done.stdout.split("HERE")[1])
    shown = [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in plain(block)]
    assert [line for line in shown if line not in printed] == [], printed
    assert any("erased for good" in line for line in printed)


def test_what_the_page_for_terminals_shows_with_one_file_runs(tmp_path):
    text = (ROOT / "docs" / "terminals.md").read_text("utf-8")
    shown = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 2
    images.write(tmp_path, 1, ImageType=["ORIGINAL", "PRIMARY"]).rename(tmp_path / "in.dcm")
    script = "set -ex\n" + "\n".join(["fsync init --facility clinic-a", *shown])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"FSYNC_HOME": str(tmp_path / "home"), "PATH": path},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "measured-pixels" in done.stdout
    assert "UNSEALED" in done.stdout
    assert "FAMILY1" not in done.stdout
    assert b"FAMILY1" not in (tmp_path / "protected.dcm").read_bytes()
    assert b"FAMILY1" in (tmp_path / "readable.dcm").read_bytes()


def test_tables_in_the_docs_come_from_the_code():
    done = subprocess.run(
        [sys.executable, "scripts/render_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def commands(group: click.Group, words: list[str]) -> list[list[str]]:
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.help, [*words, name]
        if isinstance(command, click.Group):
            found += commands(command, [*words, name])
        else:
            found.append([*words, name])
    return found


def every_command() -> list[list[str]]:
    from central_store.cli.root import fstore
    from facility_sync.cli.root import fsync

    return commands(fsync, ["fsync"]) + commands(fstore, ["fstore"])


def test_every_command_is_mentioned_in_the_docs():
    text = re.sub(r"--(root|home) \S+ ", "", "\n".join(path.read_text("utf-8") for path in DOCS))
    missing = [" ".join(words) for words in every_command() if " ".join(words) not in text]
    assert len(every_command()) > 20
    assert missing == []


def test_every_command_the_docs_show_exists():
    known = {" ".join(words) for words in every_command()}
    groups = {" ".join(words[:2]) for words in every_command()}
    text = re.sub(
        r"--(root|home) \S+ ", "", "\n".join(path.read_text("utf-8") for path in [*DOCS, ROOT / "DESIGN.md"])
    )
    for tool, verb, more in re.findall(r"\b(fsync|fstore) ([a-z]+)(?: ([a-z]+))?", text):
        if f"{tool} {verb}" in groups:
            assert (
                f"{tool} {verb}" in known
                or not more
                or f"{tool} {verb} {more}" in known
                or more in {"at", "and"}
            )


def test_every_link_leads_somewhere():
    for page in [*DOCS, *ROOT.glob("*.md"), ROOT / "schemas" / "FORMAT.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_exit_codes_are_one_table_and_every_class_has_one():
    from schemas import errors

    codes = [code for code, _, _ in errors.EXIT_CODES]
    assert len(codes) == len(set(codes))
    kinds = [errors.SyncError]
    while kinds:
        kind = kinds.pop()
        kinds += [sub for sub in kind.__subclasses__() if sub.__module__ == "schemas.errors"]
        assert kind.exit_code in codes
        assert (kind.__doc__ or "").strip()
    for tool in ("fsync", "fstore"):
        command = shutil.which(tool, path=str(Path(sys.executable).parent))
        assert command is not None
        text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
        assert all(re.search(rf"\b{code}\b", text) for code in codes)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + DOCS[1:], ids=lambda path: path.name)
def test_no_page_is_a_stub(path):
    assert len(path.read_text("utf-8").split()) > 40
