"""Searches that would take for ever, and texts that would be SQL."""

from __future__ import annotations

import dataclasses
import shutil
import time
from typing import Any

import pytest

from central_store.catalog import Catalog
from central_store.replies import Refused
from central_store.search import search
from central_store.settings import open_store
from schemas import container, envelope, messages, names, signature, ustar
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, request_id, row, token

A = names.facility_name("clinic-a")


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("searched") / "store"
    shutil.copytree(made_store.root, root)
    place = Place(open_store(root), made_store.a, made_store.b)
    place.put(place.a, place.a.batch(
        [row(n, menu="ab" * 500, patient_id_tokens=[token(f"p{n}")] * 32) for n in range(3000)], place.card,
        objects=[b"%d" % n for n in range(3000)],
    ))  # fmt: skip
    assert place.work().stored == 1
    return place


def found(place: Place, **asked: Any) -> int:
    with Catalog(place.store.layout, place.store.settings) as catalog:
        request = place.search(place.a, "instance", limit=1, **asked)
        return search(catalog, place.store.name, request, (A,), NOW)[0].matches


def test_a_search_has_a_time_limit_and_the_catalog_lives_on(filled: Place) -> None:
    store = dataclasses.replace(
        filled.store, settings=dataclasses.replace(filled.store.settings, search_seconds=1)
    )
    with Catalog(store.layout, store.settings) as catalog:
        for read in (catalog.row, catalog.table):
            started = time.monotonic()
            with pytest.raises(Refused, match="longer than this store allows") as caught:
                read("SELECT sum(hash(a.range + b.range)) AS s FROM range(10000000) a, range(10000000) b", {})
            assert caught.value.reason == "too-slow"
            assert time.monotonic() - started < 10
        assert catalog.totals() == {A: (1, 3000)}
        assert catalog.row("SELECT count(*) FROM instances", {}) == (3000,)


def test_ten_thousand_tokens_are_one_scan(filled: Place) -> None:
    started = time.monotonic()
    values = (*(token(f"nobody {n}") for n in range(9_999)), token("p7"))
    assert found(filled, conditions={"patient_id_tokens": values}) == 1
    assert found(filled, conditions={"patient_id_tokens": values[-1:]}) == 1
    assert time.monotonic() - started < 5


def test_patterns_of_nothing_but_wildcards_do_not_explode(filled: Place) -> None:
    started = time.monotonic()
    for pattern in (
        "*a?a" * 70 + "c",
        "*" * 299 + "c",
        "?" * 300,
        "*?" * 150,
        "!" * 300,
        "%" * 300,
        "_" * 300,
    ):
        assert found(filled, conditions={"menu": (pattern,) * 100}) == (3000 if pattern == "*?" * 150 else 0)
    assert time.monotonic() - started < 30


ODD = (
    "'; DROP TABLE instances; --",
    "' OR '1'='1",
    "\\",
    "$owners",
    "{}",
    "%s",
    "\0",
    "a\0b",
    "\u202e",
    "𝔸" * 150,
)


@pytest.mark.parametrize("column", ["menu", "study_uid", "patient_id_tokens", "facility"])
def test_a_text_is_never_sql(filled: Place, column: str) -> None:
    assert found(filled, conditions={column: ODD}) == 0
    assert found(filled, conditions={}, offset=2**62 - 1) == 3000


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a million tokens", {"conditions": {"patient_id_tokens": ["1" + "A" * 5] * 1_000_000}}),
        ("a hundred columns", {"conditions": {f"c{n}": ["x"] for n in range(100)}}),
        ("nested", {"conditions": {"menu": [[["x"]]]}}),
        ("a negative limit", {"limit": -1}),
        ("an offset beyond", {"offset": 2**63}),
        ("a limit that is none", {"limit": "1; DROP TABLE instances"}),
        ("a level that is none", {"level": "instances; --"}),
        ("a user that is none", {"user": "../../keys/signing_key"}),
        ("a long password", {"password": "x" * 2000}),
    ],
)
def test_a_request_no_terminal_would_write_is_refused(
    place: Place, what: str, change: dict[str, Any]
) -> None:
    """Signed by the facility itself: only the bytes are odd."""
    asked = place.search(place.a, id=request_id())
    values = {item.name: getattr(asked, item.name) for item in dataclasses.fields(asked)} | change
    data = messages.canonical(values | {"type": asked.TYPE, "version": 1})
    armor = signature.sign(place.a.key, signature.namespace(asked.TYPE), data)
    plain = container.head_bytes(container.Signed(asked, data, armor)) + ustar.END
    sealed = envelope.seal_bytes(plain, [place.card.age_recipient])
    (place.inbound(place.a) / f"{asked.id}.request").write_bytes(sealed)
    assert place.work().refused == 1
    refusal = place.reply(place.a, f"{asked.id}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert refusal.reason == "format", what
    assert "DROP" not in refusal.explanation
