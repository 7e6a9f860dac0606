"""The change feed: whoever follows it knows what stands, through rebuilds and crashes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from central_store import changes
from central_store.catalog import Catalog
from central_store.cli.root import fstore
from schemas.errors import Damaged, SettingsError
from tests.central_store.conftest import Place
from tests.central_store.test_catalog_same import FACILITIES, SETTINGS, Made, any_row
from tests.kit.batches import row


def follow(made: Made, feed: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """What a program that reads the feed thinks stands: batch and object of each."""
    behind: set[tuple[str, str]] = set()
    everything = set()
    for change in feed:
        named = {(change["batch"], name) for name in change.get("objects", [])}
        if change["kind"] == "added":
            rows = [r for r in made.rows() if r["batch_id"] == change["batch"]]
            assert change["images"] == len(rows)
            everything |= {(change["batch"], r["object_sha256"]) for r in rows}
        elif change["kind"] == "superseded":
            assert not named & behind
            behind |= named
        elif change["kind"] == "standing":
            assert named <= behind
            behind -= named
    return everything - behind


def test_a_follower_knows_what_stands_and_a_rebuild_adds_nothing(tmp_path: Path) -> None:
    made, rng = Made(tmp_path / "store"), random.Random(2)
    with Catalog(made.layout, SETTINGS) as catalog:
        sent = [made.add(rng.choice(FACILITIES), [any_row(rng) for _ in range(5)]) for _ in range(8)]
        for number, batch in enumerate(rng.sample(sent, len(sent))):
            catalog.follow(batch)
            if number == 4:
                made.damage(batch)
        catalog.follow(sent[0])
        feed = list(changes.since(made.layout, 0))
        assert [change["number"] for change in feed] == list(range(1, len(feed) + 1))
        kinds = {change["kind"] for change in feed}
        assert {"added", "conflict", "superseded", "standing", "set-aside"} <= kinds <= set(changes.KINDS)
        assert follow(made, feed) == {(r["batch_id"], r["object_sha256"]) for r in made.standing()}
        catalog.rebuild()
        assert list(changes.since(made.layout, 0)) == feed
    with made.layout.changes.open("ab") as file:
        file.write(b'{"number":')  # torn by a crash
    assert list(changes.since(made.layout, 0)) == feed
    next(made.layout.damaged.iterdir()).unlink()
    late = made.add(FACILITIES[0], [any_row(rng) for _ in range(5)])
    with Catalog(made.layout, SETTINGS) as catalog:
        catalog.rebuild()  # it comes to the catalog by way of a rebuild
    more = list(changes.since(made.layout, len(feed)))
    assert [c["batch"] for c in more if c["kind"] == "added"] == [late.batch]
    assert [c["kind"] for c in more if c["kind"] in ("set-aside", "repaired")] == ["repaired"]


def test_lines_a_disk_refused_come_later_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "store")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Catalog(made.layout, SETTINGS) as catalog:
        first, second = (made.add(FACILITIES[0], [row(n)]) for n in range(2))
        with monkeypatch.context() as patched:
            patched.setattr(changes.os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                catalog.follow(first)
        catalog.follow(first)
        catalog.follow(second)
    assert [change["batch"] for change in changes.since(made.layout, 0)] == [first.batch, second.batch]
    with pytest.raises(SettingsError):
        list(changes.since(made.layout, 3))


def test_a_damaged_line_is_said(tmp_path: Path) -> None:
    made = Made(tmp_path / "store")
    made.layout.changes.write_bytes(b'{"number":1,"kind":"added"}\nrubbish\n')
    with pytest.raises(Damaged, match="line 2"):
        list(changes.since(made.layout, 0))


def test_the_command_goes_on_from_its_cursor(place: Place) -> None:
    for number in range(2):
        place.put(place.a, place.a.batch([row(number)], place.card))
        place.work()
    command = ["--root", str(place.root), "changes", "--json", "--since"]
    said = json.loads(CliRunner().invoke(fstore, [*command, "0"]).output)
    assert ([c["kind"] for c in said["changes"]], said["cursor"]) == (["added", "added"], 2)
    later = json.loads(CliRunner().invoke(fstore, [*command, "1"]).output)
    assert later["changes"] == said["changes"][1:]
    assert "cursor: 2" in CliRunner().invoke(fstore, ["--root", str(place.root), "changes"]).output


def test_the_kinds_in_the_docs_are_those_of_the_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / "auditors.md").read_text("utf-8")
    assert all(f"| `{kind}` | {meaning} |" in page for kind, meaning in changes.KINDS.items())
