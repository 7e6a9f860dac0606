"""What the rows for questions with the line down are: from which store, as of when, which batches, how old.

    offline/state.json           the above
    offline/<facility>.duckdb    the rows (`facility_sync.kept_rows`)

Guarantees: quick to read, without the libraries that read rows; of a facility whose file is gone, nothing is
believed. Leaves to others: the rows, and keeping them and this in step (`facility_sync.kept_rows`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas import names, row_marks
from schemas.errors import FormatError
from schemas.messages import canonical
from schemas.names import BatchId, FacilityName
from schemas.row_marks import Mark
from schemas.transit import durable

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class State:
    """What is kept.

    Attributes:
        store: the store it is from.
        as_of: when that store was asked, in UTC; empty: never to the end.
        marks: of each facility, the marks that tell its batches.
        partial: facilities whose rows are not all here, or not as of then.
        damaged: batches whose rows stand behind others of the same file.
    """

    store: str = ""
    as_of: str = ""
    marks: Mapping[FacilityName, tuple[Mark, ...]] = field(default_factory=dict)
    partial: frozenset[FacilityName] = frozenset()
    damaged: frozenset[BatchId] = frozenset()

    def age(self, now: datetime) -> Age:
        """How old the rows are; only if there is an `as_of`."""
        return Age(
            store=self.store,
            as_of=self.as_of,
            seconds=max(0.0, (now.astimezone(UTC) - _moment(self.as_of)).total_seconds()),
            partial=tuple(sorted(self.partial)),
        )


@dataclass(frozen=True, kw_only=True)
class Age:
    """What answers rest on.

    Attributes:
        store: the store the rows are from.
        as_of: when it was asked, in UTC.
        seconds: how long ago that is.
        partial: facilities whose rows are not all here yet.
    """

    store: str
    as_of: str
    seconds: float
    partial: tuple[FacilityName, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "offline": True, "store": self.store, "as_of": self.as_of,
            "age_seconds": round(self.seconds), "partial": list(self.partial),
        }  # fmt: skip

    def remarks(self) -> list[str]:
        """For people."""
        said = [f"Offline: what {self.store} had at {self.as_of}, {_long(self.seconds)} ago."]
        if self.partial:
            said.append(f"Not all rows are here yet of: {', '.join(self.partial)}.")
        return said


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _long(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{int(seconds // size):,} {unit}s"
    return "less than two minutes"


def path_of(folder: Path, facility: FacilityName) -> Path:
    """The file with a facility's rows."""
    return folder / f"{facility}.duckdb"


def load(folder: Path) -> State:
    """What is kept; of a state that cannot be read, nothing is believed."""
    try:
        said = json.loads((folder / "state.json").read_bytes())
        if said["version"] != VERSION:
            return State()
        if said["as_of"]:
            _moment(said["as_of"])
        return State(
            store=str(said["store"]),
            as_of=str(said["as_of"]),
            marks={
                names.facility_name(owner): tuple(map(row_marks.mark, texts))
                for owner, texts in said["marks"].items()
                if path_of(folder, owner).exists()
            },
            partial=frozenset(map(names.facility_name, said["partial"])),
            damaged=frozenset(map(names.batch_id, said["damaged"])),
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, FormatError):
        return State()


def save(folder: Path, state: State) -> None:
    """Write it, lasting."""
    said = {
        "version": VERSION,
        "store": state.store,
        "as_of": state.as_of,
        "marks": {owner: [str(mark) for mark in marks] for owner, marks in state.marks.items()},
        "partial": sorted(state.partial),
        "damaged": sorted(state.damaged),
    }
    durable.make_dirs(folder)
    durable.publish(folder / "state.json", canonical(said), mode=0o600, replace=True)
