"""The audit with standard tools: silent about a sound store, and it finds each kind of damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from central_store import settings
from central_store.catalog import Catalog
from central_store.check import check
from schemas import container, messages, names, ustar
from tests.central_store.conftest import Place
from tests.central_store.test_erasure import bury, tombstone
from tests.kit.batches import Facility, Made, row

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit-with-standard-tools"
TOOLS = ("bash", "awk", "tar", "ssh-keygen", "zstd", "sha256sum")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")

BATCHES = 15


@pytest.fixture(scope="module")
def filled(made_store: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[Made]]:
    root = tmp_path_factory.mktemp("audited") / "store"
    shutil.copytree(made_store.root, root)
    a = Facility("clinic-a", made_store.a.key, made_store.a.identity)
    b = Facility("hospital_b", made_store.b.key, made_store.b.identity)
    place = Place(settings.open_store(root), a, b)
    made = [place.put(a, a.batch([row(n, study=s) for n in range(2)], place.card)) for s in range(BATCHES)]
    place.put(b, b.batch([row(0, study=99)], place.card))
    assert place.work().stored == BATCHES + 1
    return place, made


@pytest.fixture
def place(filled: tuple[Place, list[Made]], tmp_path: Path) -> Place:
    origin, _ = filled
    shutil.copytree(origin.root, tmp_path / "store")
    a = Facility("clinic-a", origin.a.key, origin.a.identity, origin.a.sequence, origin.a.previous)
    return Place(settings.open_store(tmp_path / "store"), a, origin.b)


def audit(place: Place) -> tuple[int, list[str], list[str]]:
    """Status, what differs, and the summary."""
    card = place.root.parent / "store.card"
    card.write_bytes(place.card.to_bytes() + b"\n")
    done = subprocess.run(
        [str(SCRIPT), str(place.root), str(card)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    found = [line.removeprefix("DIFFERENCE ") for line in lines if line.startswith("DIFFERENCE ")]
    return done.returncode, found, [line for line in lines if not line.startswith("DIFFERENCE ")]


def test_a_sound_store_has_no_difference_while_it_is_in_use_too(place: Place) -> None:
    with Catalog(place.store.layout, place.store.settings):
        status, found, summary = audit(place)
    assert (status, found) == (0, [])
    assert "catalog     not compared: the service is using it" in summary
    assert summary[-1] == "no difference"
    assert f"statements  {BATCHES + 1} signed by their facility" in summary
    assert f"receipts    {BATCHES + 1} signed by the store" in summary
    assert f"objects     {2 * BATCHES + 1} with the SHA-256 that is their name" in summary


def _edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _forget(catalog: Path, batch: str) -> None:
    with duckdb.connect(str(catalog)) as database:
        database.execute(
            "DELETE FROM objects WHERE number = (SELECT min(number) FROM objects "
            "WHERE part IN (SELECT part FROM parts WHERE batch_id = ?))", [batch],
        )  # fmt: skip


def _extra(data: bytes) -> bytes:
    """The first object once more, behind the last."""
    body = data[: -len(ustar.END)]
    return body + body[-2048 - 512 :] + ustar.END


def _receipt(folder: Path) -> messages.Receipt:
    return messages.Receipt.from_bytes((folder / "receipt.json").read_bytes())


def _damaged(place: Place, batch: str, data: bytes = b"{}") -> None:
    place.store.layout.pack(names.batch_id(batch)).unlink()
    place.store.layout.damaged.mkdir(exist_ok=True)
    (place.store.layout.damaged / f"{batch}.json").write_bytes(data)


# What the script says, and what was done to: the store, the batch's folder, its pack, its id.
DAMAGE: list[tuple[str, Callable[[Place, Path, Path, str], object]]] = [
    (
        "statement {folder}: not signed by its facility",
        lambda p, f, k, b: _edit(f / "statement.json.sig", _flip(60)),
    ),
    ("statement {folder}: not signed by its facility", lambda p, f, k, b: (f / "statement.json").unlink()),
    (
        "receipt {folder}: not signed by the store",
        lambda p, f, k, b: _edit(f / "receipt.json.sig", _flip(60)),
    ),
    (
        "receipt {folder}: not signed by the store",  # but by another store of the same name
        lambda p, f, k, b: _edit(
            f / "receipt.json.sig", lambda d: container.sign(_receipt(f), Facility("x").key).armor.encode()
        ),
    ),
    (
        "receipt {folder}: it does not say what the statement says",
        lambda p, f, k, b: _edit(f / "receipt.json", lambda d: d.replace(b'"objects":2', b'"objects":3')),
    ),
    (
        "manifest {folder}: its SHA-256 is not the batch's name",
        lambda p, f, k, b: _edit(f / "manifest.parquet", _flip(-700)),
    ),
    ("pack {pack}: 1 objects whose SHA-256 is not their name", lambda p, f, k, b: _edit(k, _flip(-1500))),
    ("pack {pack}: other members than the manifest's", lambda p, f, k, b: _edit(k, lambda d: d[:-2600])),
    ("pack {pack}: other members than the manifest's", lambda p, f, k, b: _edit(k, _extra)),
    (
        "pack {pack}: another manifest.parquet than the batch's folder",
        lambda p, f, k, b: _edit(k, _flip(600)),
    ),
    ("pack {pack}: it is missing", lambda p, f, k, b: k.unlink()),
    ("pack {pack}: it belongs to no batch", lambda p, f, k, b: shutil.rmtree(f)),
    (
        "catalog {batch}: 1 rows instead of 2, or other ones",
        lambda p, f, k, b: _forget(p.store.layout.catalog, b),
    ),
    ("damaged {folder}: its notice is not signed by the store", lambda p, f, k, b: _damaged(p, b)),
]


def test_each_kind_of_damage_is_found(place: Place, filled: tuple[Place, list[Made]]) -> None:
    """All at once, each in a batch of its own, so that none hides another."""
    expected, damaged = set(), set()
    for (line, damage), made in zip(DAMAGE, filled[1], strict=False):
        folder = place.store.layout.manifest(place.a.card.facility, made.batch)
        pack = place.store.layout.pack(made.batch)
        words = {"folder": folder, "pack": pack}
        below = {key: path.relative_to(place.root) for key, path in words.items()}
        expected.add(line.format(batch=made.batch, **below))
        damaged.add(made.batch)
        damage(place, folder, pack, made.batch)
    assert len(DAMAGE) < BATCHES
    status, found, summary = audit(place)
    assert status == 1
    assert expected - set(found) == set()
    assert [line for line in found if not any(batch in line for batch in damaged)] == []
    assert summary[-1] == f"{len(found)} differences"
    assert any(line.startswith("note: clinic-a has 2 numbers without a batch") for line in summary)


def test_a_damaged_pack_counts_until_it_is_made_up_for(
    place: Place, filled: tuple[Place, list[Made]]
) -> None:
    made = filled[1][3]
    _edit(place.store.layout.pack(made.batch), _flip(-1500))
    assert check(place.store, read_data=True).set_aside == [made.batch]
    status, found, _ = audit(place)
    folder = f"manifests/clinic-a/{made.batch}"
    assert (status, found) == (1, [f"damaged {folder}: files in no other batch: 2"])
    place.put(place.a, place.a.batch([row(n, study=3) for n in range(2)], place.card))
    assert place.work().stored == 1
    status, found, summary = audit(place)
    assert (status, found) == (0, [])
    assert "damaged     1 packs, 1 made up for" in summary
    assert "catalog     the same rows" in summary


def test_without_a_card_it_does_not_begin(place: Place) -> None:
    wrong = subprocess.run([str(SCRIPT), str(place.root), "/dev/null"], capture_output=True, check=False)
    assert wrong.returncode == 2


def test_of_an_erased_batch_its_tombstone_is_looked_at(
    place: Place, filled: tuple[Place, list[Made]]
) -> None:
    made = filled[1][3]
    bury(place, place.a, tombstone(place.a, made))
    place.work()
    status, found, summary = audit(place)
    assert (status, found) == (0, [])
    assert "erased      1 batches, each as its facility's tombstone wants it" in summary
    pack = place.store.layout.pack(made.batch)
    pack.write_bytes(b"put back")
    sig = place.store.layout.tombstone(names.facility_name("clinic-a"), made.batch).with_suffix(".json.sig")
    _edit(sig, _flip(60))
    folder = f"manifests/clinic-a/{made.batch}"
    assert audit(place)[1] == [
        f"erased {folder}: its tombstone does not name it, or is not signed by its facility",
        f"erased {folder}: its manifest or its pack is still there",
    ]
