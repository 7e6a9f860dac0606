"""A patient is erased: in no answer, gone at two stores, never sent again; all other images stay."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tests.kit import images
from tests.kit.killing import Nursery
from tests.kit.site import Site, Terminal, make_site
from tests.system.conftest import free_port


def below(folder: Path) -> dict[str, bytes]:
    """Files under a folder by the SHA-256 of their bytes."""
    found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return {hashlib.sha256(data).hexdigest(): data for data in found}


def holding(root: Path, needle: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and needle in path.read_bytes()]


def fetched(terminal: Terminal, to: Path, *words: str) -> dict[str, bytes]:
    done = terminal.ask("fetch", "--modality", "CT", *words, "--to", to, "--json")
    assert done.status == 0, done.err
    return below(to)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Site, Site, Terminal, Path]:
    """Two stores that replicate, a terminal that trusts both, and a folder with two patients."""
    site = make_site(tmp_path / "site", free_port())
    other = make_site(tmp_path / "other", free_port(), "north")
    folder = tmp_path / "images"
    for patient in (1, 2):
        for instance in (1, 2):
            images.write(folder, patient, 1, 1, instance, PatientComments=f"of {patient} {instance}" * 20)
    terminal = site.terminal("clinic-a", folder, offline=True)
    terminal.join(other)
    for one, name, another, more in ((site, "north", other, ()), (other, "central", site, ("--wait",))):
        done = one.store("peer", "add", name, another.folder / "store.card", *more)
        assert done.status == 0, done.err
    return site, other, terminal, folder


def test_a_patient_is_erased_and_the_other_is_still_there_bit_for_bit(
    two: tuple[Site, Site, Terminal, Path], tmp_path: Path
) -> None:
    site, other, terminal, folder = two
    with other.serving(), site.serving():
        assert terminal("sync").status == 0
        assert site.store("replicate", "--json").status == 0
        (batch,) = [path.name for path in (site.root / "manifests" / "clinic-a").iterdir()]
        uid = f"{images.ROOT}.1.1.1.1".encode()
        assert holding(site.root, uid)
        packs = [(one.root / f"objects/packs/{batch[:2]}/{batch}.tar").read_bytes() for one in (site, other)]
        assert packs[0] == packs[1]
        assert all(holding(site.root, block) for block in (packs[0][-4096:-1024], packs[0][4096:6000]))
        before = fetched(terminal, tmp_path / "before")
        erased = {key: data for key, data in before.items() if b"PID-00001" in data}
        kept = {key: data for key, data in before.items() if key not in erased}
        assert (len(erased), len(kept)) == (2, 2)
        stays = next(path for path in folder.iterdir() if b"PID-00002" in path.read_bytes())
        stays.unlink()  # it is not here any more: it has to come back from the store to be sent again

        refused = terminal.ask("erase", "--patient", "PID-00001")
        assert refused.status == 10 and "Give --yes" in refused.err and "2 other images" in refused.out
        done = terminal.ask("erase", "--patient", "PID-00001", "--reason", "asked", "--yes", "--json")
        assert done.status == 0, done.err
        said = done.json
        assert (said["images"], said["sent_again"], said["batches"]) == (2, 2, [batch])
        assert said["stores"]["central"] == {"batches": 1, "out_of_answers": 1, "for_good": 0}
        assert said["stores"]["north"]["out_of_answers"] == 1
        assert "PID-00001" not in done.out and "FAMILY1" not in done.out
        assert not (terminal.home / "to-send-again").exists()

        again = terminal("sync", "--json")
        assert again.status == 0, again.out
        assert (again.json["found"], again.json["erased"], again.json["taken"]) == (3, 2, 0)
        status = terminal("status", "--files")
        assert status.status == 0 and "2 erased and not sent again" in status.out, status.out
        assert sum(line.split()[0] == "erased" for line in status.out.splitlines()) == 2
        assert site.store("replicate", "--json").status == 0
        for store in ("central", "north"):
            nothing = terminal.ask("query", "--patient-id", "PID-00001", "--store", store, "--format", "json")
            assert nothing.status == 0 and "PID" not in nothing.out, nothing.out
            after = fetched(terminal, tmp_path / f"after-{store}", "--store", store)
            assert after == kept, "the other patient's, bit for bit"
        offline = terminal("query", "--offline", "--patient-id", "PID-00001", "--count", "--json")
        assert offline.json["matches"] == 0
        sql = terminal.ask("query", "--sql", "SELECT count(*) AS n FROM instances", "--format", "json")
        assert '"n": 2' in sql.out, sql.out

        # The file comes again from elsewhere, and the ledger is lost: it is not sent all the same.
        shutil.copy2(next(p for p in folder.iterdir() if b"PID-00001" in p.read_bytes()), folder / "copy.dcm")
        for path in terminal.home.glob("ledger.sqlite3*"):
            path.unlink()
        lost = terminal("sync", "--json")
        assert (lost.json["erased"], lost.json["taken"], lost.json["held"]) == (3, 0, 1), lost.out

        for one in (site, other):
            assert one.store("status", "--json").json["facilities"][0]["erased"] == 1
            assert one.store("erase", "purge", "--older-than", "24h", "--json").json["purged"] == []
            purged = one.store("erase", "purge", "--older-than", "0s", "--json")
            assert [item["batch"] for item in purged.json["purged"]] == [batch]
        assert terminal("erasures", "--ask").status == 0
        found = terminal("erasures", "--json").json["erasures"]
        assert [bool(one["purged"]) for one in found] == [True, True]
        assert "erased for good" in terminal("erasures").out
    for one, pack in zip((site, other), packs, strict=True):
        assert one.store("rebuild").status == 0
        for block in (pack[-4096:-1024], pack[4096:6000]):
            assert holding(one.root, block) == []
        assert [path for path in holding(one.root, uid) if "audit" not in path.parts] == []
        checked = one.store("check", "--read-data", "--json")
        assert checked.json["problems"] == [], checked.out
        feed = one.store("changes", "--json").json["changes"]
        assert [change["batch"] for change in feed if change["kind"] == "erased"] == [batch]


def test_nothing_is_erased_when_the_others_cannot_be_sent_again(
    two: tuple[Site, Site, Terminal, Path], tmp_path: Path
) -> None:
    site, _, terminal, folder = two
    with site.serving():
        assert terminal("sync", "--store", "central").status == 0
        for path in folder.iterdir():
            if b"PID-00002" in path.read_bytes():
                path.unlink()
        (pack,) = site.root.glob("objects/packs/*/*.tar")
        data = pack.read_bytes()
        pack.unlink()  # the disk lost it: the others cannot come back either
        done = terminal.ask("erase", "--patient", "PID-00001", "--yes", "--store", "central")
        assert done.status == 3 and "nothing is erased" in done.err, done.err
        assert not list(terminal.home.glob("erased/*"))
        pack.write_bytes(data)
        pack.chmod(0o444)
        done = terminal.ask("erase", "--study", f"{images.ROOT}.1.1", "--yes", "--json")
        assert done.status == 3 and "north" in done.json["away"], "one store is away, and is told so"
        assert done.json["stores"]["central"]["out_of_answers"] == 1
        assert len(fetched(terminal, tmp_path / "after", "--store", "central")) == 2


def test_what_one_store_lost_comes_from_another_and_what_lies_nowhere_is_given_up(
    two: tuple[Site, Site, Terminal, Path], tmp_path: Path
) -> None:
    site, other, terminal, folder = two
    third = images.write(folder, 3, 1, 1, 1)
    data = third.read_bytes()
    with site.serving():
        with other.serving():
            assert terminal("sync").status == 0
            assert site.store("replicate", "--json").status == 0
            for path in folder.iterdir():
                if b"PID-00001" not in path.read_bytes():
                    path.unlink()
            (pack,) = site.root.glob("objects/packs/*/*.tar")
            pack.unlink()  # the disk of one store lost it
            done = terminal.ask("erase", "--patient", "PID-00001", "--yes", "--json")
            assert done.status == 0, done.err
            assert (done.json["sent_again"], done.json["given_up"]) == (3, 0)
        assert data in fetched(terminal, tmp_path / "between", "--store", "central").values()
        (pack,) = site.root.glob("objects/packs/*/*.tar")
        pack.unlink()  # the batch they are in now is at no other store yet
        words = ("erase", "--patient", "PID-00002", "--store", "central", "--yes", "--json")
        for more in ((), ("--give-up", "0")):
            refused = terminal.ask(*words, *more)
            assert refused.status == 3 and "--give-up 1" in refused.err, refused.err
            assert len(list(terminal.home.glob("erased/*"))) == 1, "nothing more was erased"
        done = terminal.ask(*words, "--give-up", "1")
        assert done.status == 0, done.err
        assert (done.json["images"], done.json["sent_again"], done.json["given_up"]) == (2, 0, 1)
        third.write_bytes(data)  # it was somewhere after all
        again = terminal("sync", "--store", "central", "--json")
        assert (again.json["taken"], again.json["erased"]) == (1, 2), again.out
        assert list(fetched(terminal, tmp_path / "after", "--store", "central").values()) == [data]


def test_what_the_command_wants(two: tuple[Site, Site, Terminal, Path]) -> None:
    site, other, terminal, _ = two
    with other.serving(), site.serving():
        assert terminal("sync").status == 0
        for words, status in (
            ((), 2),
            (("--study", "1.2.3", "--patient", "1"), 2),
            (("--study", "no UID"), 2),
            (("--batch", "ab"), 2),
            (("--issuer", "x", "--batch", "ab" * 32), 2),
            (("--patient", "1", "--reason", "because"), 2),
        ):
            assert terminal.ask("erase", *words).status == status, words
        none = terminal.ask("erase", "--patient", "O'Brien; DROP", "--yes", "--json")
        assert none.status == 0 and none.json["images"] == 0
        assert terminal("erasures").out == "Nothing was erased from here.\n"
        batch = (
            sqlite3.connect(terminal.home / "ledger.sqlite3")
            .execute("SELECT batch FROM batches")
            .fetchone()[0]
        )
        whole = terminal.ask("erase", "--batch", batch, "--reason", "not-meant", "--yes", "--json")
        assert (whole.json["images"], whole.json["sent_again"]) == (4, 0), whole.err
        assert terminal("sync", "--json").json["erased"] == 4


def test_what_was_not_meant_is_sent_again_and_comes_back_out_of_the_pack(site: Site, tmp_path: Path) -> None:
    """The way back that `docs/erasing.md` says, until the operator purges."""
    folder = tmp_path / "images"
    originals = {images.write(folder, 1, 1, 1, number).read_bytes() for number in (1, 2)}
    terminal = site.terminal("clinic-a", folder)
    with site.serving():
        assert terminal("sync").status == 0
        for path in sorted(folder.iterdir())[:1]:
            path.unlink()  # this one is in no source any more
        assert terminal.ask("erase", "--patient", "PID-00001", "--yes").status == 0
        (tombstone,) = (terminal.home / "erased").iterdir()
        shutil.rmtree(tombstone)
        for path in terminal.home.glob("ledger.sqlite3*"):
            path.unlink()
        (pack,) = site.root.glob("quarantine/_erased/*/pack.tar")
        with tarfile.open(pack) as tar:
            tar.extractall(tmp_path / "pack", filter="data")
        given = set()
        for number, stored in enumerate(p for p in (tmp_path / "pack").rglob("*") if p.is_file()):
            back = folder / f"back-{number}.dcm"
            if terminal("restore", stored, back).status == 0:  # statement and table are no objects
                given.add(back.read_bytes())
        assert given == originals
        cut = tmp_path / "cut.zst"
        cut.write_bytes(next((tmp_path / "pack").rglob("*.dcm.zst")).read_bytes()[:-20])
        assert terminal("restore", cut, tmp_path / "cut.dcm").status == 15
        assert not (tmp_path / "cut.dcm").exists()
        again = terminal("sync", "--json")
        assert (again.status, again.json["erased"], again.json["taken"]) == (0, 0, 2), again.out
        assert set(fetched(terminal, tmp_path / "after").values()) == originals


@pytest.mark.campaign("killed", small=1, large=60)
def test_killed_anywhere_nothing_but_the_patient_is_lost(
    site: Site, tmp_path: Path, campaign_size: int, campaign_seed: int
) -> None:
    """Each turn two patients share a batch; erasing one is killed before some step on the terminal's disk."""
    rng, folder, others = random.Random(campaign_seed), tmp_path / "images", dict[str, bytes]()
    folder.mkdir()
    terminal = site.terminal("clinic-a", folder)
    terminal.settings(workers=1)
    with Nursery() as nursery, site.serving():
        for turn in range(campaign_size):
            gone, kept = (images.write(folder, 10 * turn + n, 1, 1, 1) for n in (1, 2))
            data = kept.read_bytes()
            others[hashlib.sha256(data).hexdigest()] = data
            assert terminal("sync").status == 0
            if rng.random() < 0.5:
                kept.unlink()  # it has to come back from the store
            words = ("erase", "--patient", f"PID-{10 * turn + 1:05}", "--yes", "--user", "kimura")
            words = ("fsync", "--home", terminal.home, *words, "--password-file", site.password)
            at = rng.randint(1, 90)
            nursery.start(*words, log=tmp_path / "log", kill_at=at, below=terminal.home).wait()
            after = fetched(terminal, tmp_path / f"after-{turn}")
            assert others.keys() <= after.keys(), f"killed before step {at}"
            assert nursery.start(*words, log=tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
            assert terminal("sync", "--json").status == 0
            assert fetched(terminal, tmp_path / f"whole-{turn}") == others
            gone.unlink()
    assert site.store("check", "--read-data").status == 0
