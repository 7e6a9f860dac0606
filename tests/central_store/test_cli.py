"""`fstore` as people and scripts use it: spellings, one JSON document, exit codes, no secret on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from schemas.errors import EXIT_CODES
from schemas.messages import StoreCard
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import Facility, row


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def fstore(*words: object, stdin: str = "", root: Path | None = None) -> Done:
    before = [] if root is None else ["--root", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "central_store", *before, *map(str, words)],
        input=stdin, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "FSTORE_ROOT"},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_store_is_set_up_from_the_command_line(tmp_path: Path) -> None:
    root = tmp_path / "store"
    made = fstore("init", "--host", "images.example.org", "--port", "2022", "--json", root=root)
    assert made.status == 0, made.err
    assert (made.json["store"], made.json["port"]) == ("central", 2022)
    card = StoreCard.from_bytes(fstore("card", root=root).out.rstrip("\n").encode())
    assert (card.store, card.host, card.port) == ("central", "images.example.org", 2022)

    for facility in (Facility("clinic-a"), Facility("hospital_b")):
        path = tmp_path / f"{facility.name}.card"
        path.write_bytes(facility.card.to_bytes() + b"\n")
        assert fstore("enrol", path, root=root).status == 0
    assert [line["facility"] for line in fstore("facilities", "--json", root=root).json] == [
        "clinic-a", "hospital_b",
    ]  # fmt: skip

    secret = tmp_path / "kimura.pw"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o644)
    add = ("account", "add", "kimura", "--facility", "clinic-a")
    loose = fstore(*add, "--password-file", secret, root=root)
    assert (loose.status, "hint:" in loose.err) == (10, True)
    secret.chmod(0o600)
    assert fstore(*add, "--password-file", secret, root=root).status == 0
    assert fstore(*add, "--password-stdin", stdin="short\n", root=root).err.startswith("warning:")
    nobody = fstore(*add, root=root)
    assert (nobody.status, "--password-stdin" in nobody.err) == (10, True)
    assert fstore("account", "list", "--json", root=root).json == [{"user": "kimura", "facility": "clinic-a"}]

    assert fstore("grant", "clinic-a", "--to", "hospital_b", root=root).status == 0
    assert fstore("grants", "--json", root=root).json == [{"owner": "clinic-a", "reader": "hospital_b"}]
    assert fstore("revoke", "clinic-a", "--to", "hospital_b", root=root).status == 0
    assert fstore("revoke", "clinic-a", "--to", "hospital_b", root=root).status == 10


def test_the_store_is_named_by_option_or_environment_or_asked_for(made_store: Place) -> None:
    none = fstore("status")
    assert (none.status, "--root" in none.err) == (2, True)
    named = subprocess.run(
        [sys.executable, "-m", "central_store", "status", "--json"],
        env=os.environ | {"FSTORE_ROOT": str(made_store.root)}, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(named.stdout)["store"] == "central"


def test_ingest_status_check_and_rebuild_tell_the_same(place: Place) -> None:
    place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    place.put(place.b, place.b.batch([row(0)], place.card)._replace(sealed=b"broken"))
    waiting = fstore("status", "--json", root=place.root).json["facilities"]
    assert [line["waiting"] for line in waiting] == [1, 1]
    done = fstore("ingest", "--json", root=place.root)
    assert done.json == {"stored": 1, "answered": 0, "refused": 1}
    lines = {
        line["facility"]: line for line in fstore("status", "--json", root=place.root).json["facilities"]
    }
    assert (lines["clinic-a"]["batches"], lines["clinic-a"]["objects"], lines["clinic-a"]["replies"]) == (
        1,
        2,
        1,
    )
    assert (lines["hospital_b"]["batches"], lines["hospital_b"]["quarantined"]) == (0, 1)
    checked = fstore("check", "--read-data", "--json", root=place.root)
    assert checked.status == 0, checked.err
    assert (checked.json["batches"], checked.json["objects"], checked.json["problems"]) == (1, 2, [])
    assert fstore("rebuild", "--json", root=place.root).json == {"batches": 1, "rows": 2}
    next(place.store.layout.packs.glob("*/*.tar")).unlink()
    broken = fstore("check", "--json", root=place.root)
    assert (broken.status, [p["code"] for p in broken.json["problems"]]) == (17, ["pack-missing"])
    people = fstore("check", root=place.root)
    assert (people.status, "pack-missing" in people.out) == (17, True)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--root", "nowhere", "status", "--json"], 10),
        (["--root", "nowhere", "nonsense"], 2),
        (["--root", "nowhere", "grant", "a/b", "--to", "c"], 2),
        (["--root", "nowhere", "serve", "--port", "70000"], 2),
    ],
)
def test_errors_have_their_exit_status(words: list[str], status: int) -> None:
    done = fstore(*words)
    assert done.status == status
    if "--json" in words:
        assert (done.json["exit_code"], done.json["error"]) == (status, "SettingsError")


def test_help_shows_every_exit_code_and_every_command_shows_what_it_does() -> None:
    text = fstore("--help").out
    for code, name, _ in EXIT_CODES:
        assert f"{code:>3}  {name}:" in text
    from central_store.cli.root import _COMMANDS

    for name in _COMMANDS:
        assert fstore(name, "--help").status == 0


def test_no_command_takes_a_secret_as_an_argument() -> None:
    text = fstore("account", "add", "--help").out
    assert "--password-file" in text
    assert "--password " not in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from central_store.cli import root; root.fstore(['--help'], standalone_mode=False); "
        "print(sorted({'duckdb','pyarrow','paramiko','cryptography'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
