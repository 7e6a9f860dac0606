"""Gaps and forks in a facility's row of batches: everything is stored, and what is odd is shown."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from click.testing import CliRunner

from central_store import chain
from central_store.cli import root
from schemas import messages, names
from tests.central_store.conftest import Place
from tests.kit.batches import Facility, Made, digest, row


def said(sequence: int, name: str, previous: str) -> messages.Statement:
    return messages.Statement(
        facility=names.facility_name("a"), sequence=sequence, previous=previous and digest(previous),
        batch=names.batch_id(digest(name)), objects=1, bytes=1, created="2026-11-24T08:30:00Z",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row_of", "expected"),
    [
        ([], (0, 0)),
        ([(1, "a", ""), (2, "b", "a"), (3, "c", "b")], (0, 0)),
        ([(3, "c", "b"), (1, "a", ""), (2, "b", "a")], (0, 0)),
        ([(1, "a", ""), (3, "c", "b")], (1, 0)),
        ([(2**62 - 1, "a", "")], (2**62 - 2, 0)),
        ([(1, "a", ""), (2, "b", "a"), (2, "x", "a")], (0, 1)),
        ([(1, "a", ""), (1, "x", ""), (2, "b", "a"), (2, "y", "x")], (0, 2)),
        ([(1, "a", ""), (2, "b", "somebody")], (0, 1)),
        ([(0, "z", ""), (1, "a", "")], (0, 1)),
    ],
)
def test_what_a_row_of_statements_shows(
    row_of: list[tuple[int, str, str]], expected: tuple[int, int]
) -> None:
    assert chain.look(said(*one) for one in row_of) == expected


def status(place: Place, facility: str = "clinic-a") -> dict[str, Any]:
    shown = CliRunner().invoke(root.fstore, ["--root", str(place.root), "status", "--json"])
    return {line["facility"]: line for line in json.loads(shown.stdout)["facilities"]}[facility]  # type: ignore[no-any-return]


def send(place: Place, *made: Made) -> None:
    for one in made:
        place.put(place.a, one)
    counts = place.work()
    assert (counts.stored, counts.refused) == (len(made), 0)
    assert all((place.outbound(place.a) / f"{one.batch}.receipt").exists() for one in made)


def test_reorder_gap_and_replay(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "central_store")
    first, second, third = (place.a.batch([row(n)], place.card) for n in range(3))
    send(place, third)
    send(place, first)
    assert (status(place)["missing"], status(place)["forks"]) == (1, 0)
    receipt = (place.root / "manifests" / "clinic-a" / first.batch / "receipt.json").read_bytes()
    send(place, second)
    send(place, first)  # a replay: the same receipt again, nothing stored twice
    assert (place.root / "manifests" / "clinic-a" / first.batch / "receipt.json").read_bytes() == receipt
    assert place.reply(place.a, f"{first.batch}.receipt").to_bytes() == receipt
    line = status(place)
    assert (line["batches"], line["missing"], line["forks"]) == (3, 0, 0)
    assert "forked" not in caplog.text


def test_a_key_in_two_places_is_seen(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    first = place.a.batch([row(0)], place.card)
    copy = Facility(place.a.name, place.a.key, place.a.identity, place.a.sequence, place.a.previous)
    send(place, first, place.a.batch([row(1)], place.card))
    assert "forked" not in caplog.text
    mine, theirs = place.a.batch([row(2)], place.card), copy.batch([row(3)], place.card)
    send(place, mine, theirs)
    assert f"forked facility=clinic-a batch={theirs.batch}" in caplog.text
    line = status(place)
    assert (line["batches"], line["missing"]) == (4, 0)
    assert line["forks"] == 1, "a number that stands twice"
    assert status(place, "hospital_b")["forks"] == 0
    text = CliRunner().invoke(root.fstore, ["--root", str(place.root), "status"]).stdout
    assert "forks" in text.splitlines()[1]
