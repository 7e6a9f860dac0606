"""A shelf at its limit, seen from the commands: it is said, others go on, the next round finishes."""

from __future__ import annotations

from pathlib import Path

from tests.kit import images
from tests.kit.site import Site


def test_a_full_shelf_is_told_to_whoever_runs_the_round(site: Site, tmp_path: Path) -> None:
    sources = [tmp_path / "a", tmp_path / "b"]
    for source in sources:
        images.write(source, 1, pixels=b"\1\2" * 50_000)
    a, b = site.terminal("clinic-a", sources[0]), site.terminal("hospital-b", sources[1])
    a.settings(receipt_wait_seconds=3)
    settings = site.root / "store.toml"
    settings.write_text(settings.read_text().replace("shelf_mib = 65536", "shelf_mib = 1"))
    stopped = site.root / "shelves" / "clinic-a" / "in" / f"{'0' * 64}.batch.part"
    stopped.write_bytes(bytes(1 << 20))  # what an upload that stopped left there
    with site.serving():
        full = a("sync", "--json")
        assert full.status == 11, full.err
        assert "shelf is full" in full.err
        assert "has room again" in full.err  # the hint
        assert [line["reason"] for line in full.json["waiting"]] == ["ready"]
        assert full.json["sent_batches"] == full.json["stored"] == 0
        assert len(list(a.home.joinpath("outbox").glob("*.batch"))) == 1
        other = b("sync", "--json")
        assert (other.status, other.json["stored"]) == (0, 1), other.err
        stopped.unlink()
        after = a("sync", "--json")
        assert (after.status, after.json["stored"]) == (0, 1), after.err
        assert list(a.home.joinpath("outbox").iterdir()) == []
    assert site.store("check", "--read-data").status == 0
