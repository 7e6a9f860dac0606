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
        assert "verified now" in a("receipts").out
        exported = a("receipts", "--verify", "--export", tmp_path / "proof", "--json")
        assert (exported.json["receipts"], exported.json["exported"]) == ([], len(receipts))
        assert (tmp_path / "proof" / "allowed_signers").exists()

        assert a("prune", "--json").json["kept"] == {"too-young": 3, "not-stored": 1}
        dry = a("prune", "--older-than", "0", "--json").json
        assert (dry["deleted"], dry["count"], len(dry["files"])) == (False, 3, 3)
        replicas = a("prune", "--older-than", "0", "--require-replicas", "1", "--delete", "--json").json
        assert (replicas["count"], replicas["kept"]["replicas"]) == (0, 3)
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
        assert "3 more stored and pruned" in a("status").out
        assert "pruned" in a("status", "--files").out
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
