"""A store under `tmp_path`, two enrolled facilities, and a hand that puts things on their shelves."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from central_store import accounts, facilities, settings
from central_store.service import Clock, Counts, Service
from schemas import messages, names
from tests.kit.batches import NOW, Facility, Made, request_id
from tests.kit.peering import Node

PASSWORD = "correct horse battery"


@dataclass
class Place:
    """A store in a folder, and the facilities that use it."""

    store: settings.Store
    a: Facility = field(default_factory=lambda: Facility("clinic-a"))
    b: Facility = field(default_factory=lambda: Facility("hospital_b"))

    @property
    def root(self) -> Path:
        return self.store.layout.root

    @property
    def card(self) -> messages.StoreCard:
        return self.store.card()

    def inbound(self, who: Facility) -> Path:
        return self.store.layout.inbound(names.facility_name(who.name))

    def outbound(self, who: Facility) -> Path:
        return self.store.layout.outbound(names.facility_name(who.name))

    def put(self, who: Facility, made: Made) -> Made:
        (self.inbound(who) / made.file).write_bytes(made.sealed)
        return made

    def work(self) -> Counts:
        """One pass of the real service, workers and all."""
        return Service(self.store, Clock(lambda: NOW, time.monotonic)).one_pass()

    def reply(self, who: Facility, name: str) -> messages.Message:
        return who.open((self.outbound(who) / name).read_bytes(), self.card)[0]

    def search(self, who: Facility, level: str = "study", **values: Any) -> messages.SearchRequest:
        asked: dict[str, Any] = {
            "id": request_id(), "facility": who.name, "user": f"user.{who.name}", "password": PASSWORD,
            "level": level, "conditions": {}, "count_only": False, "limit": 1000,
            "created": messages.rfc3339(NOW),
        }  # fmt: skip
        return messages.SearchRequest(**(asked | values))

    def ask(self, who: Facility, request: Any) -> None:
        (self.inbound(who) / f"{request.id}.request").write_bytes(who.request(request, self.card))


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store made once: accounts cost Argon2id."""
    root = tmp_path_factory.mktemp("made") / "store"
    place = Place(settings.init(root, name="central", host="127.0.0.1", port=2222))
    for who in (place.a, place.b):
        facilities.enrol(place.store.layout, who.card)
        user, facility = names.user_name(f"user.{who.name}"), names.facility_name(who.name)
        accounts.add(place.store.layout, user, facility, PASSWORD)
    return place


@pytest.fixture
def place(made_store: Place, tmp_path: Path) -> Place:
    """A fresh copy of that store."""
    shutil.copytree(made_store.root, tmp_path / "store")
    store = settings.open_store(tmp_path / "store")
    fresh = Place(store)
    fresh.a = Facility("clinic-a", made_store.a.key, made_store.a.identity)
    fresh.b = Facility("hospital_b", made_store.b.key, made_store.b.identity)
    return fresh


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facility]:
    """Two stores that are each other's peers, and a facility at the first."""
    folder, clinic = tmp_path_factory.mktemp("pair"), Facility("clinic-a")
    a, b = Node(folder / "a", "south"), Node(folder / "b", "north")
    a.enrol(clinic)
    a.knows(b)
    b.knows(a)
    for node in (a, b):
        node.close()
    return folder, clinic


@pytest.fixture
def pair(two_stores: tuple[Path, Facility], tmp_path: Path) -> Iterator[tuple[Node, Node, Facility]]:
    """A copy of them."""
    folder, known = two_stores
    for name in ("a", "b"):
        shutil.copytree(folder / name, tmp_path / name)
    a, b, clinic = Node(tmp_path / "a", "south"), Node(tmp_path / "b", "north"), dataclasses.replace(known)
    yield a, b, clinic
    a.close()
    b.close()
