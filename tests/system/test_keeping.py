"""What is stored is proved, pruned, damaged, reported and sent again: with the installed commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.kit import images
from tests.kit.site import Site


def test_receipts_status_and_prune(site: Site, tmp_path: Path) -> None:
    source, back = tmp_path / "images", tmp_path / "back"
    wanted = {images.write(source, 1, 1, 1, n).read_bytes() for n in (1, 2, 3)}
    (source / "notes.txt").write_text("no image")
    a = site.terminal("clinic-a", source)
    with site.serving():
        assert a("sync").status == 3
        listed = a("receipts", "--json")
        assert listed.status == 0, listed.err
        receipts = listed.json["receipts"]
        assert sum(item["objects"] for item in receipts) == 3
        assert all(item["verified"] and item["store"] == "central" for item in receipts)
        exported = a("receipts", "--export", tmp_path / "proof")
        assert "verified now" in exported.out
        assert (tmp_path / "proof" / "allowed_signers").exists()

        assert a("prune", "--json").json["kept"] == {"too-young": 3, "not-stored": 1}
        dry = a("prune", "--older-than", "0", "--json").json
        assert (dry["deleted"], dry["count"], len(dry["files"])) == (False, 3, 3)
        assert len(list(source.iterdir())) == 4
        done = a("prune", "--older-than", "0", "--delete")
        assert done.status == 0, done.err
        assert done.out.count("deleted  ") == 3
        assert [path.name for path in source.iterdir()] == ["notes.txt"]

        status = a("status", "--files", "--json")
        assert status.status == 3
        (shown,) = status.json["sources"]
        assert (shown["found"], shown["stored"], shown["pruned"]) == (1, 0, 3)
        assert {(f["state"], f["reason"]) for f in shown["files"]} == {
            ("stored", "pruned"),
            ("refused", "not-dicom"),
        }
        assert "3 more stored and pruned" in a("status", "--files").out
        again = a.ask("fetch", "--facility", "clinic-a", "--to", back, "--json")
        assert again.status == 0, again.err
        assert {path.read_bytes() for path in back.rglob("*.dcm")} == wanted
        shutil.copytree(back, source / "back")
        assert a("sync", "--json").json["held"] == 3
    _spoil(next(a.home.joinpath("receipts").glob("*.sig")))
    wrong = a("receipts", "--verify", "--json")
    assert wrong.status == 16
    assert len(json.loads(wrong.out)["receipts"]) == 1


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_pack_is_sent_again_and_what_was_pruned_is_named(site: Site, tmp_path: Path) -> None:
    source, back = tmp_path / "images", tmp_path / "back"
    files = [images.write(source, 1, 1, 1, n) for n in (1, 2, 3)]
    wanted = {path.read_bytes() for path in files}
    a = site.terminal("clinic-a", source)
    with site.serving():
        assert a("sync").status == 0
        for pack in (site.root / "objects").rglob("*.tar"):
            data = bytearray(pack.read_bytes())
            data[-1500] ^= 1  # in its last object
            pack.chmod(0o600)
            pack.write_bytes(data)
        found = site.store("check", "--read-data", "--max-duration", "1h", "--json")
        assert found.status == 17
        damaged = len(found.json["set_aside"])
        assert damaged >= 1
        kept = files[0].rename(tmp_path / "kept.dcm")  # its batch is lost, and it is not here
        report = a("sync", "--json")
        assert report.status == 3
        assert (report.json["taken"], report.json["held"], report.json["stored"]) == (2, 0, 2)
        assert [line["reason"] for line in report.json["refused"]] == ["lost-and-gone"]
        (shown,) = a("status", "--files", "--json").json["sources"]
        assert sorted((f["state"], f["reason"]) for f in shown["files"]) == [
            ("refused", "lost-and-gone"), ("stored", ""), ("stored", ""),
        ]  # fmt: skip
        assert sum(bool(item["lost"]) for item in a("receipts", "--json").json["receipts"]) == damaged
        kept.rename(files[0])
        done = a("sync", "--json")
        assert (done.status, done.json["taken"]) == (0, 1), done.err
        again = a.ask("fetch", "--facility", "clinic-a", "--to", back, "--json")
        assert (again.status, again.json["restored"]) == (0, 3), again.out
        assert {path.read_bytes() for path in back.rglob("*.dcm")} == wanted
    check = site.store("check", "--read-data", "--json")
    assert check.status == 0, check.out
    assert (check.json["resent"], check.json["catalog"]) == (damaged, "checked")
    assert site.store("rebuild").status == 0
    assert json.loads(site.store("check", "--json").out)["catalog"] == "checked"
