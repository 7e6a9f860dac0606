"""What is stored is proved, damaged, reported, sent again and pruned: with the installed commands."""

from __future__ import annotations

from pathlib import Path

from tests.kit import images
from tests.kit.site import Site


def test_a_store_that_loses_a_pack_and_a_terminal_that_prunes(site: Site, tmp_path: Path) -> None:
    source, back = tmp_path / "images", tmp_path / "back"
    files = [images.write(source, 1, 1, 1, n) for n in (1, 2, 3)]
    (source / "notes.txt").write_text("no image")
    wanted = {path.read_bytes() for path in files}
    a = site.terminal("clinic-a", source)
    with site.serving():
        assert a("sync").status == 3
        exported = a("receipts", "--export", tmp_path / "proof")
        assert (exported.status, "verified now" in exported.out) == (0, True), exported.err
        assert (tmp_path / "proof" / "allowed_signers").exists()

        for pack in (site.root / "objects").rglob("*.tar"):
            _spoil(pack, -1500)  # in its last object
        found = site.store("check", "--read-data", "--max-duration", "1h", "--json")
        assert found.status == 17
        damaged = len(found.json["set_aside"])
        assert damaged >= 1

        away = files[0].rename(tmp_path / "away.dcm")  # its batch is lost, and it is not here
        report = a("sync", "--json").json
        assert (report["taken"], report["held"], report["stored"]) == (2, 0, 2)
        assert {line["reason"] for line in report["refused"]} == {"lost-and-gone", "not-dicom"}
        away.rename(files[0])
        assert a("sync", "--json").json["taken"] == 1

        dry = a("prune", "--older-than", "0", "--json").json
        assert (dry["deleted"], dry["count"], dry["kept"]) == (False, 3, {"not-stored": 1})
        done = a("prune", "--older-than", "0", "--delete")
        assert (done.status, done.out.count("deleted  ")) == (0, 3), done.err
        assert [path.name for path in source.iterdir()] == ["notes.txt"]
        status = a("status", "--files", "--json")
        (shown,) = status.json["sources"]
        assert (status.status, shown["found"], shown["stored"], shown["pruned"]) == (3, 1, 0, 3)
        assert {(f["state"], f["reason"]) for f in shown["files"]} == {
            ("stored", "pruned"),
            ("refused", "not-dicom"),
        }
        again = a.ask("fetch", "--facility", "clinic-a", "--to", back, "--json")
        assert (again.status, again.json["restored"]) == (0, 3), again.out
        assert {path.read_bytes() for path in back.rglob("*.dcm")} == wanted
    check = site.store("check", "--read-data", "--json")
    assert check.status == 0, check.out
    assert (check.json["resent"], check.json["catalog"]) == (damaged, "checked")
    _spoil(next(a.home.joinpath("receipts").glob("*.receipt.json.sig")), 60)
    wrong = a("receipts", "--verify", "--json")
    assert (wrong.status, len(wrong.json["receipts"])) == (16, 1)


def _spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
